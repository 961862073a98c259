package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"conduit.io/conduit/cli/cluster"
	"conduit.io/conduit/cli/output"
	"conduit.io/conduit/deploy"
	"conduit.io/conduit/mesh"

	"github.com/spf13/cobra"
	"helm.sh/helm/v4/pkg/strvals"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

// applyOptions are the flags of commands that print, and with --apply act.
type applyOptions struct {
	cluster cluster.Flags
	apply   bool
	wait    bool
	timeout time.Duration
}

func (o *applyOptions) bind(cmd *cobra.Command, wait string) {
	cmd.Flags().BoolVar(&o.apply, "apply", false, "act on the cluster, instead of printing")
	if wait != "" {
		cmd.Flags().BoolVar(&o.wait, "wait", false, "with --apply: "+wait)
	}
	cmd.Flags().DurationVar(&o.timeout, "timeout", 5*time.Minute, "with --apply: how long all of it may take")
	o.cluster.Bind(cmd.Flags())
}

func (o *applyOptions) check() error {
	switch {
	case o.wait && !o.apply:
		return usageError{errors.New("--wait is for --apply")}
	case o.timeout <= 0:
		return usageError{fmt.Errorf("--timeout %s: want more than 0", o.timeout)}
	}
	return nil
}

// onlyHere refuses another namespace than Conduit's.
func (o *applyOptions) onlyHere() error {
	if ns := o.cluster.Namespace(); ns != "" && ns != deploy.Namespace {
		return usageError{fmt.Errorf("--namespace %s: Conduit is in the namespace %s; the controller's identity has it in it", ns, deploy.Namespace)}
	}
	return nil
}

// installOptions are the flags of install and upgrade.
type installOptions struct {
	applyOptions
	files  []string
	sets   []string
	ha     bool
	force  bool
	forget bool // of upgrade: the values of before
	show   bool // of install: the chart's values
}

func (o *installOptions) bind(cmd *cobra.Command) {
	cmd.Flags().StringArrayVarP(&o.files, "values", "f", nil, "`FILE` with values of the chart, YAML; - is standard input; may be repeated")
	cmd.Flags().StringArrayVar(&o.sets, "set", nil, "`KEY=VALUE` of the chart, such as controller.replicas=2; may be repeated, and wins over -f")
	cmd.Flags().BoolVar(&o.ha, "ha", false, "a control plane of three replicas on three nodes; -f and --set win over it")
	cmd.Flags().BoolVar(&o.force, "force-conflicts", false, "with --apply: take over fields that others have set")
	o.applyOptions.bind(cmd, "wait until every part of it is ready")
	_ = cmd.MarkFlagFilename("values", "yaml", "yml", "json") // fails for an unknown flag
}

// values are what the flags say, on top of before.
func (o *installOptions) values(in io.Reader, before map[string]any) (map[string]any, error) {
	all := deploy.Merge(map[string]any{}, before)
	if o.ha {
		v, err := deploy.HighAvailability()
		if err != nil {
			return nil, err
		}
		all = deploy.Merge(all, v)
	}
	for _, name := range o.files {
		data, err := readFile(name, in)
		if err == nil {
			var v map[string]any
			if v, err = deploy.Values(data); err == nil {
				all = deploy.Merge(all, v)
			}
		}
		if err != nil {
			return nil, fmt.Errorf("--values %s: %w", name, err)
		}
	}
	for _, set := range o.sets {
		if err := strvals.ParseInto(set, all); err != nil {
			return nil, usageError{fmt.Errorf("--set %s: %w", set, err)}
		}
	}
	return all, nil
}

func readFile(name string, in io.Reader) ([]byte, error) {
	if name == "-" {
		return io.ReadAll(in)
	}
	return os.ReadFile(name)
}

// installation is every object for these values.
func installation(values map[string]any) ([]*unstructured.Unstructured, error) {
	objects, err := deploy.Installation(values)
	var bad *deploy.ValuesError
	if errors.As(err, &bad) {
		return nil, &output.Problem{What: strings.NewReplacer("- at '': ", "", "- at '/", "", "':", ":").Replace(err.Error()),
			Cause: "the chart has no such value, or not of this kind", Next: "conduit install --defaults, which prints all of them"}
	}
	return objects, err
}

// sameTrust refuses to give identities another trust domain: everything that is known by the one of before would be a stranger.
func sameTrust(before, after map[string]any) error {
	is, err := deploy.TrustDomain(before)
	if err != nil {
		return err
	}
	wanted, err := deploy.TrustDomain(after)
	if err != nil || is == wanted {
		return err
	}
	return &output.Problem{What: "the trust domain is " + is + ", and cannot become " + wanted, Cause: "issuer, certificates and identities of what runs have it in them",
		Next: "leave it out; or conduit uninstall --apply, and conduit install --apply --set trustDomain=" + wanted}
}

func newInstall(env Env) *cobra.Command {
	var o installOptions
	cmd := &cobra.Command{
		Use:   "install",
		Short: "Install Conduit on a cluster: print its YAML, or apply it",
		Long: `Print everything that Conduit is on a cluster, as YAML for kubectl. With --apply it is applied to the cluster by server-side apply,
and with --wait the command ends when the controller and the agents of all nodes are ready.

Values are those of the Helm chart in deploy/chart, and nothing else: what it does not have is refused. kubectl's other flags that say
which cluster (--as, --cluster, --server, --token, --user, ...) are taken as well.`,
		Example: `  conduit install --apply --wait
  conduit install --ha --set trustDomain=example.org | kubectl apply --server-side -f -
  conduit install -f values.yaml --context staging --apply`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := errors.Join(o.check(), o.onlyHere()); err != nil {
				return usageError{err}
			}
			if o.show {
				text, err := deploy.Defaults()
				if err == nil {
					_, err = env.Out.Write(text)
				}
				return err
			}
			values, err := o.values(env.In, nil)
			if err != nil {
				return err
			}
			objects, err := installation(values)
			if err != nil {
				return err
			}
			if !o.apply {
				return printYAML(env.Out, objects)
			}
			return o.act(cmd.Context(), env, func(ctx context.Context, c *cluster.Cluster, say func(string)) error {
				if err := notAnother(ctx, c, values); err != nil {
					return err
				}
				if err := o.roll(ctx, c, objects, say); err != nil {
					return err
				}
				next := "next: conduit check"
				if o.wait {
					next = "next: conduit mesh ns/NAME --apply --wait, and conduit check"
				}
				say(next)
				return nil
			})
		},
	}
	o.bind(cmd)
	cmd.Flags().BoolVar(&o.show, "defaults", false, "print the chart's values, what they mean and what they are by default, and nothing else")
	return cmd
}

// notAnother refuses to install over an installation with other values, or of another version.
func notAnother(ctx context.Context, c *cluster.Cluster, values map[string]any) error {
	r, there, err := c.Record(ctx)
	if err != nil || !there {
		return err
	}
	if r.Version == mesh.Version() && sameValues(r.Values, values) {
		return nil // the same once more: what is missing is added
	}
	return &output.Problem{What: "Conduit " + r.Version + " is installed already", Cause: "it has another version, or other values; install would forget those",
		Next: "conduit upgrade --apply, with the flags of what is to change"}
}

func sameValues(a, b map[string]any) bool {
	x, err1 := yaml.Marshal(a)
	y, err2 := yaml.Marshal(b)
	return err1 == nil && err2 == nil && bytes.Equal(x, y)
}

func newUpgrade(env Env) *cobra.Command {
	var o installOptions
	cmd := &cobra.Command{
		Use:   "upgrade",
		Short: "Bring an installation to this version, or to other values",
		Long: `Bring the installation of a cluster to the version of this program. The values that it was installed with stay, but for those that
flags change. The YAML is printed; with --apply it is applied, first the controller, then the agents, node after node, and
what the new version does not have any more is removed.`,
		Example: `  conduit upgrade --apply --wait
  conduit upgrade --set controller.replicas=3 --apply`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := errors.Join(o.check(), o.onlyHere()); err != nil {
				return usageError{err}
			}
			return o.act(cmd.Context(), env, func(ctx context.Context, c *cluster.Cluster, say func(string)) error {
				objects, err := o.upgraded(ctx, env, c, say)
				if err != nil {
					return err
				}
				if !o.apply {
					return printYAML(env.Out, objects)
				}
				if err := o.roll(ctx, c, objects, say); err != nil {
					return err
				}
				return c.Prune(ctx, objects, func(old *unstructured.Unstructured) { say(cluster.Name(old) + " " + string(cluster.Removed)) })
			})
		},
	}
	o.bind(cmd)
	cmd.Flags().BoolVar(&o.forget, "reset-values", false, "begin with the chart's defaults, not with the values of before")
	return cmd
}

// upgraded is the installation that the cluster is to have.
func (o *installOptions) upgraded(ctx context.Context, env Env, c *cluster.Cluster, say func(string)) ([]*unstructured.Unstructured, error) {
	r, there, err := c.Record(ctx)
	if err != nil {
		return nil, err
	}
	if !there {
		return nil, &output.Problem{What: "there is nothing to upgrade", Cause: "Conduit is not installed on " + c.Host + ", or Helm has installed it",
			Next: "conduit install --apply --wait"}
	}
	before := r.Values
	if o.forget {
		before = nil
	}
	values, err := o.values(env.In, before)
	if err != nil {
		return nil, err
	}
	if err := sameTrust(r.Values, values); err != nil {
		return nil, err
	}
	say("from version " + r.Version + " to " + mesh.Version())
	return installation(values)
}

// act runs do on the cluster, within the time.
func (o *applyOptions) act(ctx context.Context, env Env, do func(ctx context.Context, c *cluster.Cluster, say func(string)) error) error {
	c, err := o.cluster.Open(env.Err)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	return do(ctx, c, func(line string) { fmt.Fprintln(env.Err, line) })
}

// roll applies the objects in their order. With --wait the agents come when the controller is ready: they need its trust bundle
// at their start.
func (o *installOptions) roll(ctx context.Context, c *cluster.Cluster, objects []*unstructured.Unstructured, say func(string)) error {
	objects, err := c.Claim(ctx, objects, say)
	if err != nil {
		return err
	}
	for _, obj := range objects {
		if o.wait && obj.GetKind() == "DaemonSet" {
			if err := c.AwaitController(ctx, say); err != nil {
				return err
			}
		}
		outcome, err := c.Apply(ctx, obj, o.force)
		if err != nil {
			return err
		}
		say(cluster.Name(obj) + " " + string(outcome))
	}
	if err := c.Restore(ctx); err != nil {
		return err
	}
	if !o.wait {
		return nil
	}
	return c.AwaitAgents(ctx, say)
}

func printYAML(w io.Writer, objects []*unstructured.Unstructured) error {
	for _, o := range objects {
		text, err := yaml.Marshal(o.Object)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(w, "---\n%s", text); err != nil {
			return err
		}
	}
	return nil
}
