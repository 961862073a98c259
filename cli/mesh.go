package cli

import (
	"context"
	"fmt"

	"conduit.io/conduit/cli/cluster"

	"github.com/spf13/cobra"
)

func newMesh(env Env) *cobra.Command {
	return meshCommand(env, true, &cobra.Command{
		Use:   "mesh ns/NAME|pod/NAME...",
		Short: "Put a namespace or a pod into the mesh, without restarting anything",
		Long: `Print the kubectl commands that put namespaces or pods into the mesh, by the label conduit.io/mesh. With --apply the label is set,
and with --wait the command ends when the kernel is seen to steer every pod that runs, or says why one is refused.

A pod's own label wins over its namespace's. The label of one pod is gone with the pod: for all pods of a workload it belongs into
its template.`,
		Example: `  conduit mesh ns/shop --apply --wait
  conduit mesh ns/shop ns/bank | sh
  conduit mesh pod/web-0 -n shop --apply`,
	})
}

func newUnmesh(env Env) *cobra.Command {
	return meshCommand(env, false, &cobra.Command{
		Use:   "unmesh ns/NAME|pod/NAME...",
		Short: "Take a namespace or a pod out of the mesh, without restarting anything",
		Long: `Print the kubectl commands that take namespaces or pods out of the mesh, by the label conduit.io/mesh. With --apply the label is
changed, and with --wait the command ends when the kernel is seen to steer no pod any more. A namespace loses the label; a pod
is labelled disabled, which wins over its namespace.

Open connections go on until they end.`,
		Example: `  conduit unmesh ns/shop --apply --wait`,
	})
}

// meshCommand completes either command.
func meshCommand(env Env, meshed bool, cmd *cobra.Command) *cobra.Command {
	var o applyOptions
	cmd.Args = cobra.MinimumNArgs(1)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := o.check(); err != nil {
			return err
		}
		if !o.apply {
			return eachTarget(args, o.cluster.Namespace(), func(t cluster.Target) error {
				_, err := fmt.Fprintln(env.Out, t.Command(meshed))
				return err
			})
		}
		return o.act(cmd.Context(), env, func(ctx context.Context, c *cluster.Cluster, say func(string)) error {
			if meshed {
				if err := c.Serves(ctx); err != nil {
					return err
				}
			}
			return eachTarget(args, c.Namespace, func(t cluster.Target) error { return o.label(ctx, c, t, meshed, say) })
		})
	}
	wait := "wait until all pods that run are in the mesh"
	if !meshed {
		wait = "wait until no pod is in the mesh"
	}
	o.bind(cmd, wait)
	return cmd
}

// label sets the target's label, waits if that is asked for, and says what is not as the label says.
func (o *applyOptions) label(ctx context.Context, c *cluster.Cluster, t cluster.Target, meshed bool, say func(string)) error {
	if err := c.SetMesh(ctx, t, meshed); err != nil {
		return err
	}
	say(t.String() + " labelled")
	if meshed {
		if err := c.Nobody(ctx); err != nil {
			return err
		}
	}
	if o.wait {
		if err := c.AwaitMesh(ctx, t, meshed, say); err != nil {
			return err
		}
	}
	return c.Exceptions(ctx, t, meshed, say)
}

// eachTarget reads all arguments before it does anything.
func eachTarget(args []string, namespace string, do func(cluster.Target) error) error {
	var targets []cluster.Target
	for _, arg := range args {
		t, err := cluster.ParseTarget(arg, namespace)
		if err != nil {
			return usageError{err}
		}
		targets = append(targets, t)
	}
	for _, t := range targets {
		if err := do(t); err != nil {
			return err
		}
	}
	return nil
}
