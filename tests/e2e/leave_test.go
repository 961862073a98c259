package e2e

import (
	"fmt"
	"net/netip"
	"regexp"
	"strings"
)

// unmesh takes the pods out of the mesh, and puts them into it again.
func (w *world) unmesh() {
	ns := "ns/" + w.meshed.Namespace
	conduit(w.t, w.meshed, "unmesh", ns, "--apply", "--wait", "--timeout", "60s")
	w.load.goOn("outside of the mesh")
	conduit(w.t, w.meshed, "mesh", ns, "--apply", "--wait", "--timeout", "60s")
	w.load.goOn("in the mesh again")
	w.green()
}

// uninstall takes everything away; requests go on without it.
func (w *world) uninstall() {
	said := conduit(w.t, w.meshed, "uninstall", "--apply", "--timeout", "150s")
	for _, want := range []string{"no pod has a connection in the mesh any more", fmt.Sprintf("verified: %d nodes clean, 0 objects left", w.meshed.Nodes())} {
		if !strings.Contains(said, want) {
			w.t.Errorf("uninstall does not say %q", want)
		}
	}
}

// packet is a line of tcpdump.
var packet = regexp.MustCompile(`IP ([0-9.]+)\.([0-9]+) > ([0-9.]+)\.([0-9]+):`)

// podAddresses looks at the packets between the nodes: what filters them by the addresses of pods must see those of client and
// server, and of what they say nothing but TLS on the mesh's port.
func (w *world) podAddresses() {
	pods := map[netip.Addr]bool{}
	for _, ip := range strings.Fields(w.meshed.Kubectl("get", "pods", "-o", "jsonpath={.items[*].status.podIP}")) {
		pods[netip.MustParseAddr(ip)] = true
	}
	said := w.meshed.Run(1, "timeout", "60", "tcpdump", "-i", "eth0", "-nn", "-c", "400", "tcp", "and", "net", "10.244.0.0/16")
	between := 0
	for _, p := range packet.FindAllStringSubmatch(said, -1) {
		from, to := netip.MustParseAddr(p[1]), netip.MustParseAddr(p[3])
		if !pods[from] && !pods[to] {
			continue // of others
		}
		between++
		if !pods[from] || !pods[to] || p[2] != "15008" && p[4] != "15008" {
			w.t.Errorf("on the wire: %s", p[0])
		}
	}
	if between < 50 {
		w.t.Errorf("tcpdump has seen %d packets of the mesh:\n%s", between, said)
	}
}
