package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"conduit.io/conduit/cli/cluster"
	"conduit.io/conduit/cli/output"
	"conduit.io/conduit/cli/preflight"

	"github.com/spf13/cobra"
)

// checkOptions are the flags of check.
type checkOptions struct {
	cluster cluster.Flags
	pre     bool
	node    bool
	fix     bool
	timeout time.Duration
	format  format
}

func newCheck(env Env) *cobra.Command {
	var o checkOptions
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check the cluster, or this machine, and say what to do",
		Long: `Check whether Conduit does its work on the cluster: controller, agents, certificates, versions, and whether the kernel is seen to
steer every pod of the mesh. With --pre, check whether it can be installed there. Where there is no kubeconfig, or with
--node, check whether this machine can run a Conduit node: privileges, kernel, mounted file systems, and the programs themselves.

With --fix, what can be mended without harm is mended, each thing by name, and looked at again: objects of the installation that somebody
has removed, the namespace's label, a taint that is still on a node whose agent is ready, and conditions of pods on nodes that no agent is
for. Nothing that works is restarted. The entry in a node's CNI configuration is repaired by its agent's pod itself.

Without --fix nothing is changed. Exit status 1 means that a check failed; warnings do not fail.`,
		Example: `  conduit check --pre && conduit install --apply --wait
  conduit check -o json
  sudo conduit check --node`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case o.pre && o.node:
				return usageError{errors.New("--pre is about a cluster, --node about this machine")}
			case o.fix && (o.pre || o.node):
				return usageError{errors.New("--fix mends an installation: not with --pre or --node")}
			case o.timeout <= 0:
				return usageError{fmt.Errorf("--timeout %s: want more than 0", o.timeout)}
			}
			r, err := o.look(cmd.Context(), env)
			if err != nil {
				return err
			}
			return o.tell(env, r)
		},
	}
	cmd.Flags().BoolVar(&o.pre, "pre", false, "before an installation")
	cmd.Flags().BoolVar(&o.node, "node", false, "this machine, and no cluster")
	cmd.Flags().BoolVar(&o.fix, "fix", false, "mend what can be mended without harm")
	cmd.Flags().DurationVar(&o.timeout, "timeout", 30*time.Second, "how long a cluster may take to answer everything")
	o.cluster.Bind(cmd.Flags())
	addFormat(cmd, &o.format)
	return cmd
}

// look makes the checks.
func (o *checkOptions) look(ctx context.Context, env Env) (preflight.Report, error) {
	if o.node || !o.pre && !o.cluster.Given() && !haveKubeconfig(env) {
		return preflight.Run(env.System()), nil
	}
	c, err := o.cluster.Open(env.Err)
	if err != nil {
		return preflight.Report{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	switch {
	case o.pre:
		return preflight.Before(ctx, c), nil
	case o.fix:
		return mend(ctx, c)
	}
	return preflight.Installed(ctx, c), nil
}

// againAfter is the pause before what was mended is looked at once more: pods take their time.
const againAfter = time.Second

// mend mends what the checks have found, and looks again until all is well, or ctx ends.
func mend(ctx context.Context, c *cluster.Cluster) (preflight.Report, error) {
	r := preflight.Installed(ctx, c)
	var done []string
	mended, err := r.Fix(ctx, c, func(what string) { done = append(done, what) })
	for mended && err == nil {
		if next := preflight.Installed(ctx, c); ctx.Err() == nil {
			r = next
		}
		if r.Success || ctx.Err() != nil {
			break
		}
		select {
		case <-ctx.Done():
		case <-time.After(againAfter):
		}
	}
	r.Fixed = done
	if err != nil {
		r.Success = false
		return r, fmt.Errorf("mend (done before: %s): %w", strings.Join(done, ", "), err)
	}
	return r, nil
}

// haveKubeconfig reports whether kubectl would find a configuration.
func haveKubeconfig(env Env) bool {
	if env.Getenv("KUBECONFIG") != "" {
		return true
	}
	home := env.Getenv("HOME")
	if home == "" {
		return false
	}
	_, err := os.Stat(filepath.Join(home, ".kube", "config"))
	return err == nil
}

// tell writes the report; one that fails is the exit status.
func (o *checkOptions) tell(env Env, r preflight.Report) error {
	if o.format == formatJSON {
		enc := json.NewEncoder(env.Out)
		enc.SetIndent("", "  ")
		if err := enc.Encode(r); err != nil {
			return err
		}
	} else {
		var b bytes.Buffer
		writeReport(&b, output.StyleFor(env.Out, env.Getenv), r)
		if _, err := b.WriteTo(env.Out); err != nil {
			return err
		}
	}
	if !r.Success {
		return errSilent
	}
	return nil
}

func writeReport(w io.Writer, s output.Style, r preflight.Report) {
	for _, what := range r.Fixed {
		fmt.Fprintf(w, "%s fixed: %s\n", s.Good("√"), what)
	}
	for _, category := range r.Categories {
		fmt.Fprintln(w, s.Bold(category.Name))
		for _, c := range category.Checks {
			switch c.Result {
			case preflight.Success:
				fmt.Fprintf(w, "  %s %s\n", s.Good("√"), c.Description)
				continue
			case preflight.Warning:
				fmt.Fprintf(w, "  %s %s\n", s.Warn("‼"), c.Description)
			default:
				fmt.Fprintf(w, "  %s %s\n", s.Bad("×"), c.Description)
			}
			fmt.Fprintf(w, "      %s\n", c.Error)
			fmt.Fprintf(w, "      next: %s\n", c.Hint)
		}
		fmt.Fprintln(w)
	}
	if r.Success {
		fmt.Fprintf(w, "Status check results are %s\n", s.Good("√"))
	} else {
		fmt.Fprintf(w, "Status check results are %s\n", s.Bad("×"))
	}
}
