package nodes

import (
	"context"
	"fmt"

	"conduit.io/conduit/api/kube"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// taint takes the taint off a node whose agent is ready: once in the agent's life, and again after it was not ready.
func (w *Writer) taint(ctx context.Context, node string) error {
	n := w.r.Get(node, false)
	if n == nil {
		return nil
	}
	w.mu.Lock()
	life, off := w.wired[n.Name]
	if !n.Connected || !n.Agent.GetReady() {
		delete(w.wired, n.Name)
	}
	w.mu.Unlock()
	if !n.Connected || !n.Agent.GetReady() || off && life == n.Agent.GetInstance() {
		return nil
	}
	if err := w.untaint(ctx, n.Name); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.wired[n.Name] = n.Agent.GetInstance()
	return nil
}

func (w *Writer) untaint(ctx context.Context, name string) error {
	n, err := w.nodes.Nodes().Get(ctx, name, metav1.GetOptions{ResourceVersion: "0"}) // the API server's cache will do
	if apierrors.IsNotFound(err) {
		w.r.Forget(name)
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the node: %w", err)
	}
	patch := kube.Untaint(n)
	if patch == nil {
		return nil
	}
	if _, err = w.nodes.Nodes().Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		return fmt.Errorf("take the taint off: %w", err)
	}
	w.log.Info("node is wired: taint taken off", "node", name)
	return nil
}
