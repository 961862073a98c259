package netns_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"conduit.io/conduit/cli/lab"
	"conduit.io/conduit/tests/testnet"
)

// TestEnrolRunningNamespace labels a namespace whose pods run and talk, and takes the label away again. Connections
// that are open at either moment go on; new ones are steered, or not, from then on.
func TestEnrolRunningNamespace(t *testing.T) {
	n := testnet.New(t, testnet.Config{Mesh: true})
	label := func(labels map[string]string) {
		t.Helper()
		if err := n.WriteNamespace("shop", labels, nil); err != nil {
			t.Fatal(err)
		}
	}
	label(nil)
	one, two := n.MeshNode("one", lab.NodeConfig{}), n.MeshNode("two", lab.NodeConfig{})
	client, server := n.Pod(one, "shop", "client", lab.PodOptions{}), n.Pod(two, "shop", "server", lab.PodOptions{})
	port := testnet.Echo(t, server, 0)
	to := netip.AddrPortFrom(server.IP(lab.IPv4), port)
	state := func(want ...string) {
		t.Helper()
		testnet.Eventually(t, 20*time.Second, func(context.Context) error {
			if got := slices.Concat(enrolled(t, one), enrolled(t, two)); !slices.Equal(got, want) {
				return fmt.Errorf("enrolled: %v, want %v", got, want)
			}
			return nil
		})
	}
	before := open(t, client, to)
	say(t, before, "before")

	label(map[string]string{"conduit.io/mesh": "enabled"})
	state("shop/client", "shop/server")
	say(t, before, "enrolled meanwhile")
	during := open(t, client, to)
	say(t, during, "through the mesh")
	if got := steered(t, one, client); got != 1 {
		t.Errorf("%v sockets of the client steered, want the one that was opened in the mesh", got)
	}

	label(nil)
	state()
	say(t, before, "still there")
	say(t, during, "through a mesh that has been left")
	after := open(t, client, to)
	say(t, after, "after")
	for _, c := range []net.Conn{before, during, after} {
		c.Close()
	}
	wantUntouchedSoon(t, client)
	wantUntouchedSoon(t, server)
}

func wantUntouchedSoon(t *testing.T, p *lab.Pod) {
	t.Helper()
	testnet.Eventually(t, 20*time.Second, func(context.Context) error {
		if got := tracesIn(t, p.Netns); got != (traces{}) {
			return fmt.Errorf("in %s, whose last steered connection has ended: %+v", p, got)
		}
		return nil
	})
}

func open(t *testing.T, from *lab.Pod, to netip.AddrPort) net.Conn {
	t.Helper()
	c, err := testnet.Dial(t.Context(), from, to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// say sends a message to an echo server and wants it back.
func say(t *testing.T, c net.Conn, message string) {
	t.Helper()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(c, message); err != nil {
		t.Fatalf("%q: %v", message, err)
	}
	got := make([]byte, len(message))
	if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, []byte(message)) {
		t.Fatalf("%q: got %q, %v", message, got, err)
	}
}

func steered(t *testing.T, node *lab.Node, p *lab.Pod) float64 {
	t.Helper()
	v, err := testnet.Metric(t.Context(), node, "conduit_sockets_steered_total", `pod="`+p.String()+`"`)
	if err != nil {
		t.Fatal(err)
	}
	return v
}
