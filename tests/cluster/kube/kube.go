package kube

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"conduit.io/conduit/tests/cluster/machine"
)

// Options say what a cluster is.
type Options struct {
	Name          string         // unique on this computer; default "default"
	Nodes         int            // default 2
	CNI           string         // "bridge" (default) or "ptp"
	ProxyMode     string         // "iptables" (default) or "nftables"
	DualStack     bool           // IPv6 beside IPv4
	Binds         []machine.Bind `json:",omitempty"` // more of the host's files on the nodes
	APIServerArgs []string       `json:",omitempty"` // more arguments of kube-apiserver
	Progress      io.Writer      `json:"-"`          // lines of text about what is being done; default none
}

// Cluster is a running cluster. Its methods may be called from several goroutines.
type Cluster struct {
	opts  Options
	dir   string
	bins  Binaries
	net   network
	ca    *authority // of Up alone
	cp    *machine.Machine
	nodes map[int]*machine.Machine

	progress sync.Mutex
	begun    time.Time
}

const kubeconfigFile = "kubeconfig"

var validName = regexp.MustCompile(`^[a-z0-9][-a-z0-9]{0,30}$`)

func (o *Options) complete() error {
	o.Name, o.CNI, o.ProxyMode = cmp.Or(o.Name, "default"), cmp.Or(o.CNI, "bridge"), cmp.Or(o.ProxyMode, "iptables")
	o.Nodes = cmp.Or(o.Nodes, 2)
	if o.Progress == nil {
		o.Progress = io.Discard
	}
	switch {
	case !validName.MatchString(o.Name):
		return fmt.Errorf("cluster name %q: want up to 31 lower-case letters, digits and dashes", o.Name)
	case o.Nodes < 1 || o.Nodes > maxNodes:
		return fmt.Errorf("%d nodes: want 1 to %d", o.Nodes, maxNodes)
	case o.CNI != "bridge" && o.CNI != "ptp":
		return fmt.Errorf("CNI plugin %q: want bridge or ptp", o.CNI)
	case o.ProxyMode != "iptables" && o.ProxyMode != "nftables":
		return fmt.Errorf("kube-proxy mode %q: want iptables or nftables", o.ProxyMode)
	}
	return nil
}

// Up starts a cluster, and returns when its nodes are ready and its DNS runs. If anything fails, nothing is left.
// The cluster ends with this process, unless Disown is called.
func Up(ctx context.Context, opts Options) (c *Cluster, err error) {
	if err := opts.complete(); err != nil {
		return nil, err
	}
	if err := checkHost(); err != nil {
		return nil, err
	}
	if err := allowWatches(); err != nil {
		return nil, err
	}
	if err := Sweep(); err != nil {
		return nil, err
	}
	c = &Cluster{opts: opts, dir: filepath.Join(baseDir, opts.Name), net: network{dual: opts.DualStack},
		nodes: map[int]*machine.Machine{}, begun: time.Now()}
	if c.bins, err = Build(ctx, c); err != nil {
		return nil, err
	}
	if err := c.claim(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			c.WriteLogs(opts.Progress, 5)
			err = errors.Join(err, c.Down())
		}
	}()
	return c, c.start(ctx)
}

func (c *Cluster) start(ctx context.Context) error {
	if err := copyFile(filepath.Join(c.bins.Own, "initd"), filepath.Join(c.dir, "initd"), 0o755); err != nil {
		return err
	}
	if err := c.makeImages(c.bins); err != nil {
		return err
	}
	if err := c.startControlPlane(ctx, c.bins); err != nil {
		return err
	}
	if err := c.startControllers(); err != nil {
		return err
	}
	for i := 1; i <= c.opts.Nodes; i++ {
		c.say("starting %s", nodeName(i))
		if err := c.addNode(ctx, i, c.bins); err != nil {
			return err
		}
	}
	if err := c.startDNS(ctx); err != nil {
		return err
	}
	c.say("waiting for nodes and DNS")
	if err := c.waitForNodes(ctx); err != nil {
		return err
	}
	if _, err := c.Kubectl(ctx, nil, "-n", "kube-system", "rollout", "status", "deployment/coredns", "--timeout=180s"); err != nil {
		return err
	}
	c.say("ready; KUBECONFIG=%s", c.Kubeconfig())
	return nil
}

func (c *Cluster) startDNS(ctx context.Context) error {
	if err := c.importArchive(ctx, c.nodes[1], filepath.Join(c.dir, corednsArchive)); err != nil {
		return err
	}
	manifest := strings.ReplaceAll(strings.ReplaceAll(corednsManifest, "CLUSTER_DNS", c.net.dns()), "COREDNS_IMAGE", corednsImage)
	_, err := c.Kubectl(ctx, strings.NewReader(manifest), "apply", "-f", "-")
	return err
}

func (c *Cluster) waitForNodes(ctx context.Context) error {
	return Poll(ctx, 500*time.Millisecond, "all nodes are ready", func() error {
		out, err := c.Kubectl(ctx, nil, "get", "nodes", "-o", "json")
		if err != nil {
			return err
		}
		var list struct {
			Items []struct {
				Metadata struct{ Name string }
				Status   struct {
					Conditions []struct{ Type, Status, Message string }
				}
			}
		}
		if err := json.Unmarshal([]byte(out), &list); err != nil {
			return err
		}
		if len(list.Items) < len(c.nodes) {
			return fmt.Errorf("%d of %d nodes are registered", len(list.Items), len(c.nodes))
		}
		for _, n := range list.Items {
			for _, cond := range n.Status.Conditions {
				if cond.Type == "Ready" && cond.Status != "True" {
					return fmt.Errorf("%s: %s", n.Metadata.Name, cond.Message)
				}
			}
		}
		return nil
	})
}

// WriteLogs writes the last lines of the logs of every daemon and container.
func (c *Cluster) WriteLogs(w io.Writer, lines int) {
	daemons, err := filepath.Glob(filepath.Join(c.dir, "*/root/var/log/machine/*.log"))
	if err != nil {
		fmt.Fprintln(w, err)
	}
	containers, err := filepath.Glob(filepath.Join(c.dir, "*/root/var/log/pods/*/*/*.log"))
	if err != nil {
		fmt.Fprintln(w, err)
	}
	for _, log := range append(daemons, containers...) {
		data, err := os.ReadFile(log)
		if err != nil {
			fmt.Fprintln(w, err)
		}
		all := strings.Split(strings.TrimSpace(string(data)), "\n")
		fmt.Fprintf(w, "%s:\n%s\n", strings.TrimPrefix(log, c.dir), strings.Join(all[max(0, len(all)-lines):], "\n"))
	}
}

func (c *Cluster) say(format string, args ...any) {
	c.progress.Lock()
	defer c.progress.Unlock()
	fmt.Fprintf(c.opts.Progress, "%5.1fs %s: %s\n", time.Since(c.begun).Seconds(), c.opts.Name, fmt.Sprintf(format, args...))
}

// Write is for lines about progress.
func (c *Cluster) Write(p []byte) (int, error) {
	c.say("%s", strings.TrimRight(string(p), "\n"))
	return len(p), nil
}

// Name is the cluster's name.
func (c *Cluster) Name() string { return c.opts.Name }

// Kubeconfig is the path of a client configuration, of a user who may do everything. It works on the host.
func (c *Cluster) Kubeconfig() string { return filepath.Join(c.dir, kubeconfigFile) }

// Nodes is the number of nodes.
func (c *Cluster) Nodes() int { return len(c.nodes) }

// Node is node i, from 1. Its daemons are containerd, kubelet and kube-proxy.
func (c *Cluster) Node(i int) *machine.Machine { return c.nodes[i] }

// ControlPlane is the machine of etcd, kube-apiserver, kube-controller-manager and kube-scheduler.
func (c *Cluster) ControlPlane() *machine.Machine { return c.cp }

// Machines are the control plane and the nodes, in this order.
func (c *Cluster) Machines() []*machine.Machine {
	list := []*machine.Machine{c.cp}
	for _, i := range sortedKeys(c.nodes) {
		list = append(list, c.nodes[i])
	}
	return list
}

func (c *Cluster) group(name string) string { return "conduit-cluster/" + c.opts.Name + "/" + name }

func nodeName(i int) string { return fmt.Sprintf("node%d", i) }

func joined(list []string) string { return strings.Join(list, ",") }

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }
