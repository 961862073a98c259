package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"conduit.io/conduit/api/kube"
	"conduit.io/conduit/api/v1alpha1"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

var policies = schema.GroupVersionResource{Group: v1alpha1.Group, Version: v1alpha1.Version, Resource: "meshpolicies"}

// dissolver is the manager of the one field that an uninstall sets.
const dissolver = "conduit-uninstall"

// Dissolve takes all pods out of the mesh, and waits until their connections have ended, at most for patience: agents lead HTTP out of
// it, and other protocols are waited for. What goes on after that, or what no agent answers for, is cut by what follows.
func (c *Cluster) Dissolve(ctx context.Context, patience time.Duration, say func(string)) error {
	if patience <= 0 {
		return nil
	}
	in, _, err := c.meshed(ctx)
	switch {
	case err != nil:
		return explain("list pods", err)
	case in == 0:
		return nil
	}
	switch err := c.setEnrolment(ctx, v1alpha1.EnrolmentNone); {
	case apierrors.IsNotFound(err):
		return nil // there are no definitions any more: an uninstall was interrupted
	case err != nil:
		return explain("take all pods out of the mesh", err)
	}
	say(fmt.Sprintf("%d pods leave the mesh; their connections have %v", in, patience))
	wait, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	steered, leaving := 0, 0
	err = await(wait, func(string) {}, func(ctx context.Context) (string, bool, error) {
		s, l, err := c.meshed(ctx)
		if err != nil {
			return "", false, err
		}
		steered, leaving = s, l
		return "", s+l == 0, nil
	})
	switch {
	case err == nil:
		say("no pod has a connection in the mesh any more")
	case ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded):
		say(fmt.Sprintf("the connections of %d pods have not ended, and are cut", steered+leaving))
	default:
		return explain("list pods", err)
	}
	return nil
}

// Restore takes back what an interrupted uninstall has said.
func (c *Cluster) Restore(ctx context.Context) error {
	p, err := c.Policy(ctx)
	if err != nil || !p.Uninstalling() {
		return err
	}
	if err := c.setEnrolment(ctx, v1alpha1.EnrolmentLabelled); err != nil {
		return explain("put pods into the mesh again", err)
	}
	return nil
}

// setEnrolment sets the field, in a MeshPolicy that is there or in a new one.
func (c *Cluster) setEnrolment(ctx context.Context, value string) error {
	patch, err := json.Marshal(map[string]any{"apiVersion": v1alpha1.Group + "/" + v1alpha1.Version, "kind": "MeshPolicy",
		"metadata": map[string]any{"name": v1alpha1.MeshPolicyName}, "spec": map[string]any{"enrolment": value}})
	if err != nil {
		return err
	}
	_, err = c.dynamic.Resource(policies).Patch(ctx, v1alpha1.MeshPolicyName, types.ApplyPatchType, patch,
		metav1.PatchOptions{FieldManager: dissolver, Force: new(true)})
	return err
}

// meshed counts the pods that the kernel steers, and those that have left with connections open.
func (c *Cluster) meshed(ctx context.Context) (steered, leaving int, err error) {
	pods, err := c.Client.CoreV1().Pods("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return 0, 0, err
	}
	for i := range pods.Items {
		p := &pods.Items[i]
		switch {
		case p.Status.Phase != corev1.PodRunning || p.DeletionTimestamp != nil:
		case isLeaving(p):
			leaving++
		case slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
			return c.Type == kube.ConditionEnrolled && c.Status == corev1.ConditionTrue
		}):
			steered++
		}
	}
	return steered, leaving, nil
}
