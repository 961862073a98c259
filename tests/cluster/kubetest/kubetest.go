// Package kubetest gives tests a real Kubernetes cluster (package kube), and short ways to use it. A package whose tests share one
// hands its TestMain over:
//
//	func TestMain(m *testing.M) { os.Exit(kubetest.Main(m, kube.Options{Name: "e2e"})) }
//
// and each test asks for its view, with a namespace of its own that is deleted when it ends:
//
//	c := kubetest.New(t)
package kubetest

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"conduit.io/conduit/tests/cluster/kube"
)

// Env names the environment variable that must be set for tests to start clusters: it takes minutes, and the first time, with
// Kubernetes to be built, many more. `make cluster` and `make e2e` set it.
const Env = "CONDUIT_CLUSTER_TEST"

const (
	upTimeout   = 30 * time.Minute // with the build of Kubernetes
	stepTimeout = 3 * time.Minute  // of everything that is asked of a cluster
)

// why is the reason for which no cluster can be started, or "".
func why() string {
	switch {
	case os.Getenv(Env) == "":
		return "SKIPPED: needs a cluster, which takes minutes: run `make e2e` or `make cluster` (" + Env + "=1)"
	case os.Geteuid() != 0:
		return "SKIPPED: needs root (namespaces and cgroups)"
	}
	return ""
}

// shared is the cluster of Main, from the first test on that needs it.
var shared struct {
	opts    kube.Options
	ctx     context.Context // of Main, for which New starts the cluster
	start   sync.Once
	cluster *kube.Cluster
	err     error
}

// Main runs a package's tests, with one cluster for all of them that want it, and ends it. TestMain passes the result to os.Exit.
func Main(m *testing.M, opts kube.Options) int {
	flag.Parse()
	if why() != "" {
		return m.Run() // tests skip one by one, and are counted
	}
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	shared.ctx, shared.opts = ctx, opts
	if opts.Progress == nil {
		shared.opts.Progress = os.Stderr
	}
	code := m.Run()
	if shared.cluster == nil {
		return code
	}
	if code != 0 {
		shared.cluster.WriteLogs(os.Stderr, 15)
	}
	if err := shared.cluster.Down(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// Cluster is one test's view of a cluster. Its methods fail the test when they cannot do what they should; they are for
// the test's goroutine alone.
type Cluster struct {
	*kube.Cluster
	Namespace string
	t         testing.TB
}

// New is a view of the cluster of Main, with a new namespace.
func New(t testing.TB) *Cluster {
	t.Helper()
	if reason := why(); reason != "" {
		t.Skip(reason)
	}
	if shared.ctx == nil {
		t.Fatal("kubetest: TestMain does not call kubetest.Main")
	}
	shared.start.Do(func() {
		ctx, cancel := context.WithTimeout(shared.ctx, upTimeout)
		defer cancel()
		shared.cluster, shared.err = kube.Up(ctx, shared.opts)
	})
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return View(t, shared.cluster)
}

// Start starts a cluster for one test, which is ended with it.
func Start(t testing.TB, opts kube.Options) *Cluster {
	t.Helper()
	if reason := why(); reason != "" {
		t.Skip(reason)
	}
	ctx, cancel := context.WithTimeout(t.Context(), upTimeout)
	defer cancel()
	if opts.Progress == nil {
		opts.Progress = logWriter{t}
	}
	c, err := kube.Up(ctx, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			c.WriteLogs(logWriter{t}, 15)
		}
		if err := c.Down(); err != nil {
			t.Error(err)
		}
	})
	return View(t, c)
}

// View is a view of any cluster, with a new namespace.
func View(t testing.TB, cluster *kube.Cluster) *Cluster {
	t.Helper()
	var random [3]byte
	rand.Read(random[:])
	c := &Cluster{Cluster: cluster, Namespace: "test-" + hex.EncodeToString(random[:]), t: t}
	c.Kubectl("create", "namespace", c.Namespace)
	// A pod is refused until its ServiceAccount is there.
	c.Eventually("the namespace has its ServiceAccount", func() error {
		_, err := c.Try("get", "serviceaccount", "default")
		return err
	})
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), stepTimeout)
		defer cancel()
		if t.Failed() {
			if out, err := cluster.Kubectl(ctx, nil, "-n", c.Namespace, "get", "pods,events", "-o", "wide"); err == nil {
				t.Log(out)
			}
		}
		if _, err := cluster.Kubectl(ctx, nil, "delete", "namespace", c.Namespace, "--wait=false"); err != nil {
			t.Error(err)
		}
	})
	return c
}

type logWriter struct{ t testing.TB }

func (w logWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimRight(string(p), "\n"))
	return len(p), nil
}

// Context is for one step of the test.
func (c *Cluster) Context() context.Context {
	ctx, cancel := context.WithTimeout(c.t.Context(), stepTimeout)
	c.t.Cleanup(cancel)
	return ctx
}

// Try runs kubectl in the test's namespace.
func (c *Cluster) Try(args ...string) (string, error) {
	return c.Cluster.Kubectl(c.Context(), nil, append([]string{"-n", c.Namespace}, args...)...)
}

// Kubectl is Try, and fails the test on an error.
func (c *Cluster) Kubectl(args ...string) string {
	c.t.Helper()
	began := time.Now()
	out, err := c.Try(args...)
	if err != nil {
		c.t.Fatal(err)
	}
	if took := time.Since(began); took > long {
		c.t.Logf("it took %v to kubectl %s", took.Round(100*time.Millisecond), strings.Join(args, " "))
	}
	return strings.TrimSpace(out)
}

// Apply applies manifests, in the test's namespace unless they say another.
func (c *Cluster) Apply(manifests string) {
	c.t.Helper()
	if _, err := c.Cluster.Kubectl(c.Context(), strings.NewReader(manifests), "-n", c.Namespace, "apply", "-f", "-"); err != nil {
		c.t.Fatal(err)
	}
}

// WaitReady waits until pods, by their names, are ready.
func (c *Cluster) WaitReady(pods ...string) {
	c.t.Helper()
	args := []string{"wait", "--for=condition=Ready", "--timeout=90s"}
	for _, p := range pods {
		args = append(args, "pod/"+p)
	}
	c.Kubectl(args...)
}

// Exec runs a command in a pod's first container.
func (c *Cluster) Exec(pod string, command ...string) (string, error) {
	return c.Try(append([]string{"exec", pod, "--"}, command...)...)
}

// PodIP is a pod's address.
func (c *Cluster) PodIP(pod string) string {
	c.t.Helper()
	return c.Kubectl("get", "pod", pod, "-o", "jsonpath={.status.podIP}")
}

// Run runs a command on a machine of the cluster, and returns what it wrote.
func (c *Cluster) Run(node int, command ...string) string {
	c.t.Helper()
	out, err := c.Node(node).Run(c.Context(), command...)
	if err != nil {
		c.t.Fatal(err)
	}
	return out
}

// Eventually fails the test if ok goes on returning errors. It logs what takes long.
func (c *Cluster) Eventually(what string, ok func() error) {
	c.t.Helper()
	began := time.Now()
	if err := kube.Poll(c.Context(), 200*time.Millisecond, what, ok); err != nil {
		c.t.Fatal(err)
	}
	if took := time.Since(began); took > long {
		c.t.Logf("it took %v until %s", took.Round(100*time.Millisecond), what)
	}
}

// long is what the log should tell of, in tests that take minutes.
const long = 3 * time.Second
