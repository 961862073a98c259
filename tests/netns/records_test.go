package netns_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"conduit.io/conduit/cli/lab"
	"conduit.io/conduit/tests/testnet"
)

// TestLostRecords: an agent that finds a STRICT pod in the kernel, and no record of it in its run directory, does not let
// the pod out in plaintext. The pod is whole again when it has been deleted and added.
func TestLostRecords(t *testing.T) {
	n := testnet.New(t, testnet.Config{Mesh: true})
	strict := map[string]string{"conduit.io/mtls-mode": "STRICT", "conduit.io/agent-down": "Closed"}
	if err := n.WriteNamespace("shop", map[string]string{"conduit.io/mesh": "enabled"}, strict); err != nil {
		t.Fatal(err)
	}
	if err := n.WriteNamespace("plain", nil, nil); err != nil {
		t.Fatal(err)
	}
	node := n.MeshNode("one", lab.NodeConfig{})
	web, outsider := n.Pod(node, "shop", "web", lab.PodOptions{}), n.Pod(node, "plain", "outsider", lab.PodOptions{})
	to := netip.AddrPortFrom(outsider.IP(lab.IPv4), testnet.Echo(t, outsider, 7000))
	if _, err := testnet.RoundTrip(t.Context(), web, to, []byte("hello")); err != nil {
		t.Fatalf("before the loss: %v", err)
	}
	killAgent(t, node)
	killProxy(t, node)
	records, err := filepath.Glob(filepath.Join(node.RunDir(), "pods", "*.json"))
	if err != nil || len(records) != 2 {
		t.Fatalf("records %v, %v; want two", records, err)
	}
	for _, file := range records {
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
	}
	if err := node.StartAgent(t.Context(), lab.AgentConfig{}); err != nil {
		t.Fatal(err)
	}
	if c, err := testnet.Dial(t.Context(), web, to); !errors.Is(err, syscall.ECONNREFUSED) {
		if err == nil {
			c.Close()
		}
		t.Errorf("a STRICT pod without a record: %v, want ECONNREFUSED", err)
	}
	lookups := filepath.Join(node.PinDir(), "lookups")
	if pins, err := os.ReadDir(lookups); err != nil || len(pins) != 1 {
		t.Fatalf("%s has %v, %v; want the pod's program", lookups, pins, err)
	}
	if err := web.Delete(t.Context()); err != nil {
		t.Fatal(err)
	}
	if pins, err := os.ReadDir(lookups); err != nil || len(pins) != 0 {
		t.Errorf("%s has %v, %v after the pod's DEL; want nothing", lookups, pins, err)
	}
	web = n.Pod(node, "shop", "web", lab.PodOptions{})
	testnet.Eventually(t, 5*time.Second, func(ctx context.Context) error {
		if _, err := testnet.RoundTrip(ctx, web, to, []byte("again")); err != nil {
			return fmt.Errorf("after it was added again: %w", err)
		}
		return nil
	})
}
