package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"conduit.io/conduit/cli/cluster"
	"conduit.io/conduit/deploy"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

func newUninstall(env Env) *cobra.Command {
	var o applyOptions
	var drain time.Duration
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Remove Conduit from a cluster and its nodes, and prove it",
		Long: `Print what of Conduit is on a cluster, as YAML for kubectl delete. That leaves the nodes as they are. With --apply everything is
removed: the agents; then, by a pod on each node, the CNI plugin and all programs, pins, rules and routes, each node
proving that none is left; then the controller, the conditions that it has written, the definitions, the issuer's key, and the
namespace, unless something is in it that Conduit has not made. The command ends when nothing of Conduit is left, and fails when
something is.

First all pods leave the mesh, by the MeshPolicy: new connections go directly, those of HTTP are led out of the mesh, and others have as
long as --drain says; then they are cut, and it is said of how many pods. The labels of namespaces and pods are yours, and stay.`,
		Example: `  conduit uninstall --apply
  conduit uninstall | kubectl delete --ignore-not-found -f -`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := errors.Join(o.check(), o.onlyHere()); err != nil {
				return usageError{err}
			}
			if !o.apply {
				fmt.Fprintln(env.Err, "Nodes keep the CNI plugin and the programs: conduit uninstall --apply takes them away, too.")
				return printRemoval(env)
			}
			return o.act(cmd.Context(), env, func(ctx context.Context, c *cluster.Cluster, say func(string)) error {
				if err := c.Marked(ctx); err != nil {
					return err
				}
				if err := c.Dissolve(ctx, drain, say); err != nil {
					return err
				}
				return c.Uninstall(ctx, say)
			})
		},
	}
	cmd.Flags().DurationVar(&drain, "drain", 30*time.Second, "with --apply: how long connections of the mesh may take to end; 0: they are cut")
	o.bind(cmd, "")
	return cmd
}

// printRemoval prints the names of everything that an installation can have, the last one first.
func printRemoval(env Env) error {
	objects, err := deploy.Installation(map[string]any{"controller": map[string]any{"replicas": int64(2)}}) // with a disruption budget
	if err != nil {
		return err
	}
	var names []*unstructured.Unstructured
	for _, o := range slices.Backward(objects) {
		metadata := map[string]any{"name": o.GetName()}
		if ns := o.GetNamespace(); ns != "" {
			metadata["namespace"] = ns
		}
		names = append(names, &unstructured.Unstructured{Object: map[string]any{"apiVersion": o.GetAPIVersion(), "kind": o.GetKind(), "metadata": metadata}})
	}
	return printYAML(env.Out, names)
}
