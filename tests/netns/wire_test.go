package netns_test

import (
	"bytes"
	"net/netip"
	"testing"

	"conduit.io/conduit/cli/lab"
	"conduit.io/conduit/tests/testnet"
)

// TestNoPlaintextBetweenNodes records the wire between two nodes: what enrolled pods say to each other is not
// readable there, and what a pod outside the mesh says is (or the test could not fail).
func TestNoPlaintextBetweenNodes(t *testing.T) {
	n := testnet.New(t, testnet.Config{Mesh: true})
	n.EnrolledNamespace("shop")
	if err := n.WriteNamespace("plain", nil, nil); err != nil {
		t.Fatal(err)
	}
	one, two := n.MeshNode("one", lab.NodeConfig{}), n.MeshNode("two", lab.NodeConfig{Primary: lab.PTP})
	server := n.Pod(two, "shop", "server", lab.PodOptions{})
	client := n.Pod(one, "shop", "client", lab.PodOptions{})
	outsider := n.Pod(one, "plain", "outsider", lab.PodOptions{})
	port := testnet.Echo(t, server, 0)

	capture, err := n.Switch().Capture()
	if err != nil {
		t.Fatal(err)
	}
	secret, open := []byte("the-secret-of-the-shop"), []byte("the-outsider-speaks")
	for _, ip := range server.IPs {
		to := netip.AddrPortFrom(ip, port)
		for _, say := range []struct {
			from    *lab.Pod
			message []byte
		}{{client, secret}, {outsider, open}} {
			got, err := testnet.RoundTrip(t.Context(), say.from, to, say.message)
			if err != nil || !bytes.Equal(got, say.message) {
				t.Errorf("%s to %s: got %q, %v; want %q", say.from, to, got, err, say.message)
			}
		}
	}
	if err := capture.Stop(); err != nil {
		t.Fatal(err)
	}
	if flows := capture.Find(open); len(flows) != 2*len(server.IPs) {
		t.Errorf("the outsider's words are in %v, want both directions of %d connections", flows, len(server.IPs))
	}
	if flows := capture.Find(secret); len(flows) != 0 {
		t.Errorf("plaintext of enrolled pods is on the wire: %v", flows)
	}
	mesh := 0
	for f := range capture.Flows() {
		if f.Dst.Port() == 15008 && f.Src.Addr() == client.IP(lab.IPv4) || f.Src.Addr() == client.IP(lab.IPv6) {
			mesh++
		}
	}
	if mesh == 0 {
		t.Error("no connection of the client's address to the mesh port was seen")
	}
}
