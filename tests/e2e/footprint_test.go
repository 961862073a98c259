package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"conduit.io/conduit/tests/cluster/kubetest"

	"github.com/cilium/ebpf/link"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// passing are resources that come and go by themselves, or whose objects are about what does.
var passing = []string{"bindings", "componentstatuses", "controllerrevisions.apps", "endpoints", "endpointslices.discovery.k8s.io", "events", "events.events.k8s.io",
	"leases.coordination.k8s.io", "pods", "replicasets.apps"}

// footprint is everything that an uninstall has to leave as an installation has found it, by name: of the cluster, objects of every kind
// that it has; of each node, files of plugins, their configuration, routing, mounts, sockets, and the programs that are attached.
func footprint(t *testing.T, c *kubetest.Cluster) map[string]string {
	t.Helper()
	all := map[string]string{}
	objects(t, c, all)
	for i := 1; i <= c.Nodes(); i++ {
		for what, command := range map[string]string{
			"files":     "find /etc/cni /opt/cni/bin -type f -exec sha256sum {} + -o -type l -printf '%p -> %l\\n' | sort -k2; ls -d /run/conduit* /sys/fs/bpf/* 2>&1 | sort",
			"directory": "stat -c '%A %u:%g %n' /etc/cni /etc/cni/net.d /etc/cni/net.d/* /opt/cni/bin /opt/cni/bin/*",
			"rules":     "ip rule; ip -6 rule; ip route show table 100 2>&1; iptables-save | grep -i -e conduit -e 4d1 -e 1500; true",
			"mounts":    "grep -e ' /run/conduit' -e bpf /proc/mounts | sort; true",
			"listeners": "ss -Hltn 'sport = 4191 or sport = 8085 or sport = 8086 or sport = 15001 or sport = 15006 or sport = 15008'",
			"processes": "grep -l conduit /proc/[0-9]*/comm 2>/dev/null | wc -l",
		} {
			all[fmt.Sprintf("node %d, %s", i, what)] = c.Run(i, "sh", "-c", command)
		}
		all[fmt.Sprintf("node %d, programs", i)] = strings.Join(attached(t, c, i), "\n")
	}
	return all
}

// objects are those of the cluster, without what changes by itself, and without those of tests.
func objects(t *testing.T, c *kubetest.Cluster, all map[string]string) {
	t.Helper()
	kinds := strings.Fields(c.Kubectl("api-resources", "--verbs=list", "-o", "name"))
	kinds = slices.DeleteFunc(kinds, func(k string) bool { return slices.Contains(passing, k) })
	var list struct{ Items []map[string]any }
	if err := json.Unmarshal([]byte(c.Kubectl("get", strings.Join(kinds, ","), "-A", "-o", "json")), &list); err != nil {
		t.Fatal(err)
	}
	if len(list.Items) < 50 {
		t.Fatalf("a cluster of %d objects", len(list.Items))
	}
	for _, o := range list.Items {
		kind, _ := o["kind"].(string)
		meta, _ := o["metadata"].(map[string]any)
		ns, _ := meta["namespace"].(string)
		name, _ := meta["name"].(string)
		of, _, _ := unstructured.NestedString(o, "spec", "parentRef", "namespace") // an IPAddress is a Service's
		if strings.HasPrefix(ns, "test-") || strings.HasPrefix(of, "test-") || kind == "Namespace" && strings.HasPrefix(name, "test-") {
			continue
		}
		for _, volatile := range []string{"resourceVersion", "generation", "managedFields"} {
			delete(meta, volatile)
		}
		delete(o, "status")
		if kind == "Node" {
			annotations, _ := meta["annotations"].(map[string]any)
			delete(annotations, "volumes.kubernetes.io/controller-managed-attach-detach")
			labels, _ := meta["labels"].(map[string]any)
			delete(labels, "topology.kubernetes.io/zone") // of the test's Services
		}
		text, err := json.MarshalIndent(o, "", " ")
		if err != nil {
			t.Fatal(err)
		}
		all[fmt.Sprintf("%s %s/%s", kind, ns, name)] = string(text)
	}
}

// attached are the kernel's links to the cgroups of a node, and to the network namespaces of its pods.
func attached(t *testing.T, c *kubetest.Cluster, node int) (found []string) {
	t.Helper()
	inodes := func(command string) map[uint64]string {
		of := map[uint64]string{}
		for line := range strings.Lines(c.Run(node, "sh", "-c", command)) {
			number, name, _ := strings.Cut(strings.TrimSpace(line), " ")
			if n, err := strconv.ParseUint(number, 10, 64); err == nil {
				of[n] = name
			}
		}
		return of
	}
	cgroups, namespaces := inodes("find /sys/fs/cgroup -type d -printf '%i %p\\n'"), inodes("stat -Lc '%i %n' /proc/self/ns/net /run/netns/* 2>/dev/null; true")
	if len(cgroups) == 0 || len(namespaces) == 0 {
		t.Fatalf("node %d has %d cgroups, and %d network namespaces", node, len(cgroups), len(namespaces))
	}
	look := func(l link.Link) {
		info, err := l.Info()
		if errors.Is(err, os.ErrNotExist) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if l := info.Cgroup(); l != nil && cgroups[l.CgroupId] != "" {
			found = append(found, fmt.Sprintf("%v at %s", l.AttachType, cgroups[l.CgroupId]))
		}
		if l := info.NetNs(); l != nil && namespaces[uint64(l.NetnsInode)] != "" {
			found = append(found, fmt.Sprintf("%v in %s", l.AttachType, namespaces[uint64(l.NetnsInode)]))
		}
	}
	for last := link.ID(0); ; {
		it := &link.Iterator{ID: last}
		for it.Next() {
			look(it.Link)
		}
		last = it.ID
		err := it.Err()
		it.Close()
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EAGAIN) { // else it is being made, by somebody else on this kernel
			t.Fatal(err)
		}
	}
	slices.Sort(found)
	return found
}

// sameFootprint waits until everything is as it was.
func sameFootprint(t *testing.T, c *kubetest.Cluster, before map[string]string) {
	t.Helper()
	c.Eventually("the cluster is as it was", func() error { // the API server takes a moment to forget a group of kinds
		var wrong []string
		after := footprint(t, c)
		for what := range maps.Keys(before) {
			if diff := cmp.Diff(before[what], after[what]); diff != "" {
				wrong = append(wrong, what+" (-was +is):\n"+diff)
			}
		}
		for what := range maps.Keys(after) {
			if _, there := before[what]; !there {
				wrong = append(wrong, what+" is left:\n"+after[what])
			}
		}
		if len(wrong) > 0 {
			slices.Sort(wrong)
			return errors.New(strings.Join(wrong, "\n"))
		}
		return nil
	})
}
