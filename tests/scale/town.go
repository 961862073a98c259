package main

import (
	"fmt"
	"net/netip"
)

// What a node and a service have, at every size.
const (
	podsPerNode     = 50
	podsPerService  = 10
	servicesPerNode = podsPerNode / podsPerService
	dialled         = 20 // services that the pods of a node dial
	perNamespace    = 50 // services
)

// town is a cluster of so many nodes. Its objects are numbered from 0, and all about them follows from their numbers.
type town struct{ nodes int }

func (t town) pods() int     { return t.nodes * podsPerNode }
func (t town) services() int { return t.nodes * servicesPerNode }

func nodeName(n int) string    { return fmt.Sprintf("node-%04d", n) }
func agentName(n int) string   { return fmt.Sprintf("conduit-agent-%04d", n) }
func namespaceOf(s int) string { return fmt.Sprintf("shop-%03d", s/perNamespace) }
func serviceName(s int) string { return fmt.Sprintf("svc-%05d", s) }
func podName(p int) string {
	return fmt.Sprintf("%s-6d4cf56db6-%05d", serviceName(p/podsPerService), p)
}
func nodeAddr(n int) netip.Addr    { return address(172, 16, n) }
func podAddr(p int) netip.Addr     { return address(10, 128, p) }
func serviceAddr(s int) netip.Addr { return address(10, 96, 256+s) }

// address is the i-th of those that begin with a.b.
func address(a, b byte, i int) netip.Addr {
	return netip.AddrFrom4([4]byte{a, b + byte(i>>16), byte(i >> 8), byte(i)})
}

// nodeOf is the node of a pod: the pods of one service are on different nodes.
func (t town) nodeOf(p int) int { return p % t.nodes }

// podsOn are the pods of a node.
func (t town) podsOn(n int) []int {
	var out []int
	for p := n; p < t.pods(); p += t.nodes {
		out = append(out, p)
	}
	return out
}

// dials are the services that the pods of a node dial: each service is dialled from dialled/servicesPerNode nodes.
func (t town) dials(n int) []int {
	var out []int
	for i := range min(dialled, t.services()) {
		out = append(out, (n*servicesPerNode+i)%t.services())
	}
	return out
}

// callers are pods that dial those of a node: the proxy asks for their addresses, too.
func (t town) callers(n int) []int { return t.podsOn((n + 1) % t.nodes) }

// busy are how many services change while changes are measured, of those with the lowest numbers: the rest is nobody's news.
func (t town) busy() int { return t.services() * 2 / 5 }

// idle reports whether a node dials none of those that change.
func (t town) idle(n int) bool {
	for _, s := range t.dials(n) {
		if s < t.busy() {
			return false
		}
	}
	return true
}
