// Package inpod lets a test on the host be in a pod of a cluster (package kube): the sockets that it makes and the programs that it runs
// there are in the pod's network namespace and in the cgroup of the pod's first container, which is all that the kernel, and so the mesh,
// goes by. So the same scenarios run in a lab's pods and in those of a kubelet, and need no image; files are the host's.
package inpod

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"conduit.io/conduit/cli/lab"
	"conduit.io/conduit/tests/cluster/kubetest"
)

// Pod is a running pod. Its methods may be called from several goroutines.
type Pod struct {
	*lab.Netns
	namespace, name string
	addrs           []netip.Addr
	node            *Node
	group           *os.File // its first container's cgroup
	hand            *hand
	ports           chan uint16
}

// Enter is a test in a pod, which must run. ports are those that Listen chooses from when it may; none: the kernel chooses. It is left
// when the test ends: what the test runs there is killed.
func Enter(t testing.TB, c *kubetest.Cluster, name string, ports ...uint16) *Pod {
	t.Helper()
	p := &Pod{namespace: c.Namespace, name: name, ports: make(chan uint16, len(ports))}
	for _, port := range ports {
		p.ports <- port
	}
	if err := p.find(c); err != nil {
		t.Fatalf("enter pod %s: %v", p, err)
	}
	t.Cleanup(func() { p.group.Close() })
	var err error
	if p.hand, err = p.startHand(); err != nil {
		t.Fatalf("enter pod %s: %v", p, err)
	}
	t.Cleanup(func() {
		if err := p.hand.stop(); err != nil {
			t.Errorf("leave pod %s: %v", p, err)
		}
	})
	return p
}

// find looks at what Kubernetes and the container runtime know of the pod.
func (p *Pod) find(c *kubetest.Cluster) error {
	var seen struct {
		Spec   struct{ NodeName string }
		Status struct {
			PodIPs            []struct{ IP netip.Addr }
			ContainerStatuses []struct{ ContainerID string }
		}
	}
	said, err := c.Try("get", "pod", p.name, "-o", "json")
	if err == nil {
		err = json.Unmarshal([]byte(said), &seen)
	}
	if err != nil {
		return err
	}
	for _, a := range seen.Status.PodIPs {
		p.addrs = append(p.addrs, a.IP)
	}
	if len(p.addrs) == 0 || len(seen.Status.ContainerStatuses) == 0 {
		return errors.New("it does not run")
	}
	for i := 1; i <= c.Nodes(); i++ {
		if c.Node(i).Name() == seen.Spec.NodeName {
			p.node = NodeOf(c, i)
		}
	}
	id := strings.TrimPrefix(seen.Status.ContainerStatuses[0].ContainerID, "containerd://")
	proc, err := p.node.process(c.Context(), id)
	if err != nil {
		return err
	}
	p.Netns = lab.OpenNetns(filepath.Join(proc, "ns/net"))
	p.group, err = cgroupOf(proc)
	return err
}

// process is the directory, in the host's file system, of a container's first process.
func (n *Node) process(ctx context.Context, container string) (string, error) {
	said, err := n.machine.Run(ctx, "ctr", "-n", "k8s.io", "task", "ls")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(said) { // TASK PID STATUS
		if f := strings.Fields(line); len(f) == 3 && f[0] == container {
			return fmt.Sprintf("/proc/%d/root/proc/%s", n.machine.PID(), f[1]), nil // the number is one of the node's own
		}
	}
	return "", fmt.Errorf("container %s is none of %s's", container, n.Name())
}

// cgroupOf is the version 2 group of a process.
func cgroupOf(proc string) (*os.File, error) {
	root, err := lab.CgroupRoot()
	if err != nil {
		return nil, err
	}
	groups, err := os.ReadFile(filepath.Join(proc, "cgroup"))
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(groups)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return os.Open(filepath.Join(root, path))
		}
	}
	return nil, fmt.Errorf("no cgroup of version 2 in %q", groups)
}

// String is NAMESPACE/NAME.
func (p *Pod) String() string { return p.namespace + "/" + p.name }

// Name is the pod's name, without its namespace's.
func (p *Pod) Name() string { return p.name }

// Addrs are the pod's addresses, the first of them that which Kubernetes calls its IP.
func (p *Pod) Addrs() []netip.Addr { return p.addrs }

// IP is the pod's address of a family, or the zero Addr.
func (p *Pod) IP(f lab.Families) netip.Addr {
	for _, a := range p.addrs {
		if a.Is4() == (f == lab.IPv4) {
			return a
		}
	}
	return netip.Addr{}
}

// IfName is the pod's interface.
func (p *Pod) IfName() string { return "eth0" }

// Get asks the agent of the pod's node.
func (p *Pod) Get(ctx context.Context, path string) (status int, body []byte, err error) {
	return p.node.Get(ctx, path)
}

// Command prepares a program of the host that runs in the pod (lab.Netns.Command).
func (p *Pod) Command(ctx context.Context, name string, args ...string) *lab.Cmd {
	cmd := p.Netns.Command(ctx, name, args...)
	cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(p.group.Fd())
	return cmd
}
