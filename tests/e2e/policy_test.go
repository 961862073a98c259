package e2e

import (
	"cmp"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"conduit.io/conduit/tests/cluster/kubetest"
)

// filter is a program that filters packets by the addresses of pods, as implementations of NetworkPolicy do.
type filter struct {
	// rules drop packets from the first pod to the third, and count those from the second one to it.
	rules func(cut, counted, to string) string
	list  string
	end   func(cut, counted, to string) string
}

// filters are by the mode of kube-proxy: the program is the same.
var filters = map[string]filter{
	"iptables": {
		func(cut, counted, to string) string {
			return fmt.Sprintf("iptables -I FORWARD -s %s -d %s -j DROP && iptables -I FORWARD -s %s -d %s", cut, to, counted, to)
		},
		"iptables -nvxL FORWARD",
		func(cut, counted, to string) string {
			return fmt.Sprintf("iptables -D FORWARD -s %s -d %s -j DROP && iptables -D FORWARD -s %s -d %s", cut, to, counted, to)
		}},
	"nftables": {
		func(cut, counted, to string) string {
			return fmt.Sprintf("nft 'table inet filtered { chain forward { type filter hook forward priority filter - 5; "+
				"ip saddr %s ip daddr %s counter drop; ip saddr %s ip daddr %s counter; }; }'", cut, to, counted, to)
		},
		"nft list table inet filtered",
		func(_, _, _ string) string { return "nft delete table inet filtered" }},
}

// packetsBetween is how many packets a listing counts from one address to another.
func packetsBetween(listing, from, to string) string {
	line := regexp.MustCompile(`(?m)^.*\b` + regexp.QuoteMeta(from) + `\b.*\b` + regexp.QuoteMeta(to) + `\b.*$`).FindString(listing)
	if counted := regexp.MustCompile(`packets (\d+)`).FindStringSubmatch(line); counted != nil {
		return counted[1] // nft
	}
	if fields := strings.Fields(line); len(fields) > 0 {
		return fields[0] // iptables -v
	}
	return ""
}

// policy filters between pods by their addresses on the node of one of them, as proxy.sameNode=link lets it on one and the same: whom it cuts off is cut off in the mesh as well, however it
// dials, on links that are there already too; nobody else is; and what the others send is counted under their addresses. The pods are
// those of reach.
func policy(t *testing.T, nodes *byHand) {
	c := nodes.Cluster
	mode := cmp.Or(kubetest.Options("").ProxyMode, "iptables")
	for _, pair := range []struct {
		what             string
		node             int
		cut, counted, to string
		open             string // where who is cut off gets still
	}{
		{"between nodes", 2, "client", "near", "far", "server"},
		{"within a node", 1, "client", "far", "near", "server"},
	} {
		t.Run(pair.what+"/"+mode, func(t *testing.T) { filters[mode].cuts(t, c, pair.node, pair.cut, pair.counted, pair.to, pair.open) })
	}
}

func (f filter) cuts(t *testing.T, c *kubetest.Cluster, node int, cut, counted, to, open string) {
	targets := []string{fmt.Sprintf("%s:%d", c.PodIP(to), kubetest.LoadPort), fmt.Sprintf("%s:%d", c.Kubectl("get", "service", to, "-o", "jsonpath={.spec.clusterIP}"), portDetected)}
	reaches := func(from, target string) error {
		return c.Load(from, target, "--requests", "3", "--churn", "50", "--timeout", "2s")
	}
	for _, target := range targets {
		if err := reaches(cut, target); err != nil { // and there are links
			t.Fatalf("before: %v", err)
		}
	}
	ips := []string{c.PodIP(cut), c.PodIP(counted), c.PodIP(to)}
	c.Run(node, "sh", "-c", f.rules(ips[0], ips[1], ips[2]))
	ended := false
	end := func() {
		if !ended {
			ended = true
			c.Run(node, "sh", "-c", f.end(ips[0], ips[1], ips[2]))
		}
	}
	defer end()
	for _, target := range targets {
		if err := reaches(cut, target); err == nil {
			t.Errorf("%s reaches %s at %s past the filter", cut, to, target)
		}
		if err := reaches(counted, target); err != nil {
			t.Errorf("%s, which is not cut off: %v", counted, err)
		}
	}
	if err := reaches(cut, fmt.Sprintf("%s:%d", c.PodIP(open), kubetest.LoadPort)); err != nil {
		t.Errorf("%s, from which nobody is cut off: %v", open, err)
	}
	listing := c.Run(node, "sh", "-c", f.list)
	for _, from := range ips[:2] {
		if n := packetsBetween(listing, from, ips[2]); n == "" || n == "0" {
			t.Errorf("%q packets from %s to %s are counted:\n%s", n, from, ips[2], listing)
		}
	}
	end()
	for _, target := range targets {
		c.Eventually(cut+" reaches "+to+" again", func() error { return reaches(cut, target) })
	}
}
