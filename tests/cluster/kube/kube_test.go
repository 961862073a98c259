package kube_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"conduit.io/conduit/tests/cluster/kube"
	"conduit.io/conduit/tests/cluster/kubetest"
)

const ownerEnv = "KUBE_TEST_OWNER"

func TestMain(m *testing.M) {
	if name := os.Getenv(ownerEnv); name != "" {
		os.Exit(ownAndWait(name))
	}
	os.Exit(m.Run())
}

// traffic proves that a cluster's network is what pods expect.
func traffic(t *testing.T, c *kubetest.Cluster) {
	t.Helper()
	c.ImportLoad()
	c.Apply(kubetest.LoadPod("client", 1, nil) +
		kubetest.LoadPod("near", 1, map[string]string{"app": "server"}) +
		kubetest.LoadPod("far", 2, map[string]string{"app": "server"}) +
		`{"apiVersion":"v1","kind":"Service","metadata":{"name":"server"},"spec":{"selector":{"app":"server"},"ports":[{"port":80,"targetPort":9000}]}}`)
	c.WaitReady("client", "near", "far")
	serviceIP := c.Kubectl("get", "service", "server", "-o", "jsonpath={.spec.clusterIP}")
	for what, target := range map[string]string{
		"a pod on the same node":      c.PodIP("near") + ":9000",
		"a pod across nodes":          c.PodIP("far") + ":9000",
		"a Service":                   serviceIP + ":80",
		"a Service by its name":       "server:80",
		"a Service by its whole name": "server." + c.Namespace + ".svc.cluster.local:80",
		"a pod by its name in DNS":    strings.ReplaceAll(c.PodIP("far"), ".", "-") + "." + c.Namespace + ".pod.cluster.local:9000",
	} {
		// kube-proxy and CoreDNS hear of a Service a moment after it is there.
		c.Eventually(what+" answers", func() error { return c.Load("client", target, "--requests", "1") })
		if err := c.Load("client", target, "--requests", "200", "--connections", "20", "--churn", "100"); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	if logs := c.Kubectl("logs", "far"); !strings.Contains(logs, "listening on") {
		t.Errorf("logs of a pod: %q", logs)
	}
}

func TestBridgeAndIptables(t *testing.T) {
	if err := kube.Sweep(); err != nil { // of earlier runs
		t.Fatal(err)
	}
	before, spaces := snapshot(t), namespaces(t)
	t.Run("cluster", func(t *testing.T) {
		c := kubetest.Start(t, kube.Options{Name: "test-bridge"})
		traffic(t, c)
		if rules := c.Run(1, "iptables-save", "-t", "nat"); !strings.Contains(rules, "KUBE-SVC-") {
			t.Error("kube-proxy has written no iptables rules")
		}
		restarts(t, c)
		confined(t, c)
	})
	if t.Skipped() || os.Getenv(kubetest.Env) == "" {
		return
	}
	wantSame(t, before, snapshot(t))
	for ns := range namespaces(t) {
		if !spaces[ns] {
			t.Logf("network namespace %s is new: of this cluster, or of another test that runs at the same time", ns)
		}
	}
}

// restarts kills daemons, as nodes' service managers must endure: each is back by itself, and pods live on.
func restarts(t *testing.T, c *kubetest.Cluster) {
	t.Helper()
	uid := c.Kubectl("get", "pod", "far", "-o", "jsonpath={.metadata.uid} {.status.containerStatuses[0].restartCount}")
	for _, d := range []string{"containerd", "kubelet", "kube-proxy"} {
		if err := c.Node(2).RestartDaemon(d); err != nil {
			t.Error(err)
		}
	}
	for _, d := range []string{"kube-apiserver", "etcd"} {
		if err := c.ControlPlane().RestartDaemon(d); err != nil {
			t.Error(err)
		}
	}
	c.Eventually("the API answers again, and the pod is the same", func() error {
		now, err := c.Try("get", "pod", "far", "-o", "jsonpath={.metadata.uid} {.status.containerStatuses[0].restartCount}")
		if err == nil && now != uid {
			err = fmt.Errorf("the pod was %s and is %s", uid, now)
		}
		return err
	})
	c.Eventually("exec on the node whose daemons were restarted", func() error {
		_, err := c.Exec("far", "/load", "help")
		return err
	})
}

// confined checks that the node's processes are in the node's cgroup, pods included, and that it is the root of what they see.
func confined(t *testing.T, c *kubetest.Cluster) {
	t.Helper()
	cookie := c.Run(1, "sh", "-c", "cat /sys/fs/cgroup/unified/system/cgroup.procs /sys/fs/cgroup/system/cgroup.procs 2>/dev/null; true")
	if strings.TrimSpace(cookie) == "" {
		t.Error("no process is in the node's cgroup of version 2")
	}
	out := c.Run(1, "sh", "-c", "ls -d /sys/fs/cgroup/kubepods /sys/fs/cgroup/memory/kubepods 2>/dev/null; true")
	if !strings.Contains(out, "kubepods") {
		t.Error("the kubelet's cgroups are not at the root that the node sees")
	}
	if groups, err := filepath.Glob("/sys/fs/cgroup/*/kubepods"); err != nil || len(groups) > 0 {
		t.Errorf("the kubelet's cgroups are at the host's root: %v, %v", groups, err)
	}
}

// Two clusters side by side, with the same addresses: neither sees the other.
func TestPtpNftablesDualStackBesideAnother(t *testing.T) {
	c := kubetest.Start(t, kube.Options{Name: "test-ptp", CNI: "ptp", ProxyMode: "nftables", DualStack: true})
	other := kubetest.Start(t, kube.Options{Name: "test-beside", Nodes: 1})
	traffic(t, c)
	if rules := c.Run(1, "nft", "list", "tables"); !strings.Contains(rules, "kube-proxy") {
		t.Errorf("kube-proxy has written no nftables: %s", rules)
	}
	if ips := c.Kubectl("get", "pod", "far", "-o", "jsonpath={.status.podIPs[*].ip}"); !strings.Contains(ips, "fd00:244:") {
		t.Errorf("the pod's addresses are %s", ips)
	}
	if pods := other.Kubectl("get", "pods", "-A", "-o", "name"); strings.Contains(pods, "far") {
		t.Errorf("the other cluster has this one's pods: %s", pods)
	}
	if _, err := kube.Up(t.Context(), kube.Options{Name: "test-ptp"}); err == nil || !strings.Contains(err.Error(), "is there already") {
		t.Errorf("a second cluster of the same name: %v", err)
	}
}

// A process that is killed while it starts a cluster leaves nothing but files, and these the next one removes.
func TestKilledOwner(t *testing.T) {
	if os.Getenv(kubetest.Env) == "" || os.Geteuid() != 0 {
		t.Skip("SKIPPED: needs root and " + kubetest.Env + "=1: run `make cluster`")
	}
	if err := kube.Sweep(); err != nil { // of earlier runs
		t.Fatal(err)
	}
	before := snapshot(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	owner := exec.Command(self)
	owner.Env = append(os.Environ(), ownerEnv+"=test-killed")
	out, err := owner.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := owner.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() && !strings.Contains(lines.Text(), "starting node2") {
		continue
	}
	spaces := namespaces(t)
	if err := owner.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	owner.Wait() //nolint:errcheck // it was killed
	if err := kube.Poll(t.Context(), 100*time.Millisecond, "the kernel has ended the machines", func() error {
		inits, err := filepath.Glob("/var/tmp/conduit-cluster/test-killed/*/pid")
		if err != nil || len(inits) < 2 {
			return fmt.Errorf("inits %v, %v", inits, err)
		}
		if len(namespaces(t)) >= len(spaces) {
			return errors.New("no network namespace has gone")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := kube.Sweep(); err != nil {
		t.Fatal(err)
	}
	wantSame(t, before, snapshot(t))
}

// ownAndWait is a process that starts a cluster and does not end.
func ownAndWait(name string) int {
	if _, err := kube.Up(context.Background(), kube.Options{Name: name, Progress: os.Stdout}); err != nil {
		fmt.Println(err)
		return 1
	}
	select {}
}
