package testnet_test

import (
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"conduit.io/conduit/agent/manifest"
	"conduit.io/conduit/cli/lab"
	"conduit.io/conduit/tests/testnet"
)

// TestManifests writes everything the lab can write and has the agent's own strict reader look at it.
func TestManifests(t *testing.T) {
	n := testnet.New(t, testnet.Config{})
	one, two := n.Node("one", lab.NodeConfig{}), n.Node("two", lab.NodeConfig{})
	n.EnrolledNamespace("shop")
	pod := n.Pod(one, "shop", "web", lab.PodOptions{
		Labels:         map[string]string{"app": "web"},
		Annotations:    map[string]string{"conduit.io/mtls-mode": "STRICT"},
		ServiceAccount: "web",
		Owner:          "Deployment/web",
		Ports:          map[string]int32{"http": 8080, "admin": 9090},
	})
	services := []lab.Service{
		{Namespace: "shop", Name: "web", Selector: map[string]string{"app": "web"}, ClusterIPs: lab.ServiceIPs(1),
			Ports: []lab.ServicePort{{Name: "http", Port: 80, TargetPort: "http"}, {Name: "db", Port: 5432, AppProtocol: "tcp"}}},
		{Namespace: "shop", Name: "headless", Selector: map[string]string{"app": "web"}, Ports: []lab.ServicePort{{Port: 80, TargetPort: "8080"}}},
	}
	for _, s := range services {
		if err := n.WriteService(s); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.WriteMeshPolicy("STRICT", "Closed"); err != nil {
		t.Fatal(err)
	}
	three := n.Node("three", lab.NodeConfig{}) // comes late, and sees all of it
	for node, addrs := range map[*lab.Node][]netip.Addr{one: nil, two: pod.IPs, three: pod.IPs} {
		src, err := manifest.Open(node.ManifestDir(), slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range src.Faults() {
			t.Errorf("%s: %s", node.Name(), f)
		}
		if files, _ := os.ReadDir(node.ManifestDir()); len(files) != 5 {
			t.Errorf("%s has %d manifests, want 5: %v", node.Name(), len(files), files)
		}
		objects, _ := src.Objects()
		var got []netip.Addr
		for _, ip := range objects.Pods[manifest.Name{Namespace: "shop", Name: "web"}].Status.PodIPs {
			got = append(got, netip.MustParseAddr(ip.IP))
		}
		if !slices.Equal(got, addrs) {
			t.Errorf("%s: the pod's status has addresses %v, want %v", node.Name(), got, addrs)
		}
	}
	if err := pod.Delete(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, node := range n.Nodes() {
		if _, err := os.Stat(filepath.Join(node.ManifestDir(), "pod-shop.web.yaml")); !os.IsNotExist(err) {
			t.Errorf("%s still has the pod's manifest: %v", node.Name(), err)
		}
	}
}
