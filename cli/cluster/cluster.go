// Package cluster is how commands work on a Kubernetes cluster: with kubectl's own flags and configuration, and with the rights of
// whoever runs the command.
package cluster

import (
	"fmt"
	"io"

	"conduit.io/conduit/cli/output"
	"conduit.io/conduit/deploy"
	"conduit.io/conduit/mesh"

	"github.com/spf13/pflag"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// FieldManager is the name under which fields are owned that commands apply.
const FieldManager = "conduit"

// Flags say which cluster. The zero value is the current context's.
type Flags struct {
	kubeconfig string
	overrides  clientcmd.ConfigOverrides
}

// Bind adds kubectl's flags. Help shows those that people use every day.
func (f *Flags) Bind(fs *pflag.FlagSet) {
	own := pflag.NewFlagSet("", pflag.ContinueOnError)
	clientcmd.BindOverrideFlags(&f.overrides, own, clientcmd.RecommendedConfigOverrideFlags(""))
	own.VisitAll(func(flag *pflag.Flag) { flag.Hidden = true })
	for name, usage := range map[string]string{"context": "`NAME` of the kubeconfig's context to use", "namespace": "`NAME` of the namespace"} {
		flag := own.Lookup(name)
		flag.Hidden, flag.Usage = false, usage
	}
	own.StringVar(&f.kubeconfig, "kubeconfig", "", "`FILE` that says how to reach clusters (default: $KUBECONFIG, ~/.kube/config, or a pod's own cluster)")
	fs.AddFlagSet(own)
}

// Namespace is what -n says; empty: nothing.
func (f *Flags) Namespace() string { return f.overrides.Context.Namespace }

// Given reports whether any flag names a cluster.
func (f *Flags) Given() bool {
	o := f.overrides
	return f.kubeconfig != "" || o.CurrentContext != "" || o.Context.Cluster != "" || o.ClusterInfo.Server != ""
}

// Cluster is a connection to one. It is safe for concurrent use.
type Cluster struct {
	Client    kubernetes.Interface
	Host      string // the API server's URL
	Namespace string // the context's, or what -n says

	dynamic dynamic.Interface
}

// Open reads the configuration; the API server is not asked yet. Warnings of the API server go to errOut.
func (f *Flags) Open(errOut io.Writer) (*Cluster, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = f.kubeconfig
	config := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &f.overrides)
	cfg, err := config.ClientConfig()
	if err != nil {
		return nil, &output.Problem{What: "no cluster to work on", Err: err,
			Cause: "there is no kubeconfig, or it has no such context", Next: "kubectl config get-contexts"}
	}
	namespace, _, err := config.Namespace()
	if err != nil {
		return nil, fmt.Errorf("read kubeconfig: %w", err)
	}
	cfg.WarningHandler = rest.NewWarningWriter(errOut, rest.WarningWriterOptions{Deduplicate: true})
	c, err := New(cfg)
	if err != nil {
		return nil, err
	}
	c.Namespace = namespace
	return c, nil
}

// New is a Cluster for a configuration, of which it has a copy.
func New(cfg *rest.Config) (*Cluster, error) {
	cfg = rest.CopyConfig(cfg)
	cfg.UserAgent = "conduit/" + mesh.Version()
	cfg.QPS, cfg.Burst = 50, 100 // as kubectl's: the default is for controllers
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("use kubeconfig: %w", err)
	}
	anything, err := dynamic.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("use kubeconfig: %w", err)
	}
	return &Cluster{Client: client, Host: cfg.Host, Namespace: "default", dynamic: anything}, nil
}

// resource is where objects of a kind are, in the namespace if the kind is of namespaces.
func (c *Cluster) resource(k deploy.Kind, namespace string) dynamic.ResourceInterface {
	if k.Cluster {
		return c.dynamic.Resource(k.Resource)
	}
	return c.dynamic.Resource(k.Resource).Namespace(namespace)
}
