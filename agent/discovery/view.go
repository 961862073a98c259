package discovery

import (
	"net/netip"
	"slices"
	"strings"

	"conduit.io/conduit/api/node"
	"conduit.io/conduit/mesh"
)

// View is what is known of addresses that this node has asked for. It is immutable.
type View struct {
	Workloads []mesh.Workload
	Services  []mesh.Service
	Nobody    []netip.AddrPort // outside the mesh; port 0: the whole address
	ByPort    []netip.Addr     // addresses whose ports belong to others
}

// Extend adds v to the node's own part of a snapshot, which is then on demand. Of the node's own pods the node knows
// best: what v says of them and of their addresses is left out. A pod of this node of which the node has not heard yet is taken from v:
// as an endpoint without a workload it would be outside of the mesh, and get plaintext.
func Extend(s *node.Snapshot, v *View) {
	s.OnDemand = true
	own, uids := map[netip.Addr]bool{}, map[string]bool{}
	for _, w := range s.Workloads {
		uids[w.UID] = true
		for _, a := range w.Addrs {
			own[a.Unmap()] = true
		}
	}
	for _, w := range v.Workloads {
		if !uids[w.UID] && !slices.ContainsFunc(w.Addrs, func(a netip.Addr) bool { return own[a.Unmap()] }) {
			s.Workloads = append(s.Workloads, w)
		}
	}
	s.Services = append(s.Services, v.Services...)
	for _, a := range v.Nobody {
		if !own[a.Addr().Unmap()] {
			s.Nobody = append(s.Nobody, a)
		}
	}
	slices.SortFunc(s.Workloads, func(a, b mesh.Workload) int { return strings.Compare(a.UID, b.UID) })
	slices.SortStableFunc(s.Services, func(a, b mesh.Service) int {
		return strings.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name)
	})
	for _, a := range v.ByPort {
		if !own[a.Unmap()] {
			s.ByPort = append(s.ByPort, a)
		}
	}
	slices.SortFunc(s.Nobody, netip.AddrPort.Compare)
	slices.SortFunc(s.ByPort, netip.Addr.Compare)
}
