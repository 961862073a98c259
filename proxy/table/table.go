// Package table is the proxy's index over one discovery snapshot: which Service stands at an address and port, which
// workload has an address, and the endpoints of each Service port by address family. A Table is immutable and may be
// read from any goroutine.
package table

import (
	"cmp"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"conduit.io/conduit/api/node"
	"conduit.io/conduit/mesh"
)

// Endpoint is one address behind a Service port. Workload is nil for an address outside the mesh's knowledge.
type Endpoint struct {
	Addr     netip.AddrPort
	Workload *mesh.Workload
}

// Port is one port of a Service. Its endpoints are kept apart by family: a client that dialled an IPv4 address is
// never carried on to an IPv6 one, because the application would see a peer of another family.
type Port struct {
	Service  *Service
	Port     uint16
	Protocol mesh.Protocol // Detect where nothing was declared
	eps      []Endpoint    // IPv4 first
	v4       int           // how many of eps are IPv4
}

// Endpoints are the endpoints of the family of a. The slice is shared: do not change it.
func (p *Port) Endpoints(a netip.Addr) []Endpoint {
	if a.Unmap().Is4() {
		return p.eps[:p.v4]
	}
	return p.eps[p.v4:]
}

// Service is one Service of the snapshot.
type Service struct {
	Label    string        // namespace/name, as metrics have it
	Ports    []Port        // by number
	Affinity time.Duration // for which a client stays with its endpoint; 0: it does not
	sources  []netip.Prefix
}

// Takes reports whether the Service is for a client at a.
func (s *Service) Takes(a netip.Addr) bool {
	a = a.Unmap()
	all := true
	for _, p := range s.sources {
		if p.Contains(a) {
			return true
		}
		all = all && p.Addr().Is4() != a.Is4()
	}
	return all
}

func (s *Service) port(n uint16) *Port {
	i, ok := slices.BinarySearchFunc(s.Ports, n, func(p Port, n uint16) int { return cmp.Compare(p.Port, n) })
	if !ok {
		return nil
	}
	return &s.Ports[i]
}

// Table is one indexed snapshot.
type Table struct {
	Version     uint64 // of the snapshot; 0: none was received
	Generation  uint64 // of this process, one more for every swap; never 0
	TrustDomain string
	Node        string

	workloads []mesh.Workload
	byAddr    map[netip.Addr]*mesh.Workload
	byUID     map[string]*mesh.Workload
	services  map[netip.Addr]*Service
	onDemand  bool
	nobody    map[netip.AddrPort]struct{} // port 0: the whole address
	byPort    map[netip.Addr]struct{}     // addresses that ports, or nobody, may have
	ports     map[netip.AddrPort]*Port    // at such addresses
	declared  map[target]mesh.Protocol
}

// target is a workload's own port, for the protocol that some Service declares for it.
type target struct {
	addr netip.Addr
	port uint16
}

// New indexes s, which it keeps parts of: the caller must not change s afterwards.
func New(s *node.Snapshot) *Table {
	t := &Table{
		Version: s.Version, Generation: 1, TrustDomain: s.TrustDomain, Node: s.Node,
		workloads: s.Workloads,
		byAddr:    make(map[netip.Addr]*mesh.Workload, len(s.Workloads)),
		byUID:     make(map[string]*mesh.Workload, len(s.Workloads)),
		services:  make(map[netip.Addr]*Service, len(s.Services)),
		onDemand:  s.OnDemand,
		nobody:    make(map[netip.AddrPort]struct{}, len(s.Nobody)),
		byPort:    make(map[netip.Addr]struct{}, len(s.ByPort)),
		ports:     map[netip.AddrPort]*Port{},
	}
	for _, a := range s.Nobody {
		t.nobody[unmap(a)] = struct{}{}
	}
	for _, a := range s.ByPort {
		t.byPort[a.Unmap()] = struct{}{}
	}
	for i := range t.workloads {
		w := &t.workloads[i]
		t.byUID[w.UID] = w
		for _, a := range w.Addrs {
			a = a.Unmap()
			// Two records of one address: an ended pod and its successor. The meshed one decides, so that a stale
			// record never turns mTLS off.
			if old := t.byAddr[a]; old == nil || !old.Meshed {
				t.byAddr[a] = w
			}
		}
	}
	for i := range s.Services {
		t.addService(&s.Services[i])
	}
	return t
}

func (t *Table) addService(s *mesh.Service) {
	svc := &Service{Label: s.Namespace + "/" + s.Name, Ports: make([]Port, 0, len(s.Ports)),
		Affinity: time.Duration(s.Affinity) * time.Second, sources: s.Sources}
	for i := range s.Ports {
		svc.Ports = append(svc.Ports, t.newPort(svc, &s.Ports[i]))
	}
	slices.SortStableFunc(svc.Ports, func(a, b Port) int { return cmp.Compare(a.Port, b.Port) })
	for _, a := range s.Addrs {
		t.services[a.Unmap()] = svc
	}
	for i := range s.Ports {
		for _, a := range s.Ports[i].At {
			t.ports[unmap(a)] = svc.port(s.Ports[i].Port)
		}
	}
}

func unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

func (t *Table) newPort(svc *Service, p *mesh.Port) Port {
	out := Port{Service: svc, Port: p.Port, Protocol: p.Protocol, eps: make([]Endpoint, 0, len(p.Endpoints))}
	if out.Protocol == "" {
		out.Protocol = mesh.Detect
	}
	for _, is4 := range []bool{true, false} {
		for _, e := range p.Endpoints {
			a := netip.AddrPortFrom(e.Addr.Addr().Unmap(), e.Addr.Port())
			if a.Addr().Is4() != is4 {
				continue
			}
			w := t.byUID[e.Workload]
			if w == nil {
				w = t.byAddr[a.Addr()]
			}
			if w == nil && e.Workload != "" && t.onDemand {
				continue // who it is will be told: taken for nobody's, it would get plaintext
			}
			out.eps = append(out.eps, Endpoint{Addr: a, Workload: w})
			t.declare(a, out.Protocol)
		}
		if is4 {
			out.v4 = len(out.eps)
		}
	}
	return out
}

// declare notes what a Service says about a workload's port, for connections that arrive there without one.
// Two Services that disagree cancel out: the bytes decide.
func (t *Table) declare(a netip.AddrPort, p mesh.Protocol) {
	if p == mesh.Detect {
		return
	}
	if t.declared == nil {
		t.declared = make(map[target]mesh.Protocol)
	}
	k := target{a.Addr(), a.Port()}
	if old, ok := t.declared[k]; ok && old != p {
		p = mesh.Detect
	}
	t.declared[k] = p
}

// Service is the Service port at dst, or nil. An address that is a Service's but not on this port gives (nil, svc).
func (t *Table) Service(dst netip.AddrPort) (*Port, *Service) {
	dst = unmap(dst)
	if svc := t.services[dst.Addr()]; svc != nil {
		return svc.port(dst.Port()), svc
	}
	if p := t.ports[dst]; p != nil {
		return p, p.Service
	}
	return nil, nil
}

// Workload is the workload that has address a, or nil.
func (t *Table) Workload(a netip.Addr) *mesh.Workload { return t.byAddr[a.Unmap()] }

// Covers reports whether the snapshot says who has dst, if only that nobody has; port 0: the address as a whole. A whole snapshot
// covers every address.
func (t *Table) Covers(dst netip.AddrPort) bool {
	dst = unmap(dst)
	a := dst.Addr()
	if !t.onDemand || t.byAddr[a] != nil || t.services[a] != nil || t.ports[dst] != nil {
		return true
	}
	if !t.ByPort(a) {
		dst = netip.AddrPortFrom(a, 0)
	} else if dst.Port() == 0 {
		return true
	}
	_, ok := t.nobody[dst]
	return ok
}

// ByPort reports whether the ports of a may belong to others than a as a whole.
func (t *Table) ByPort(a netip.Addr) bool {
	_, ok := t.byPort[a.Unmap()]
	return ok
}

// Declared is the protocol that Services declare for port dst of a workload; Detect where none does.
func (t *Table) Declared(dst netip.AddrPort) mesh.Protocol {
	if p, ok := t.declared[target{dst.Addr().Unmap(), dst.Port()}]; ok {
		return p
	}
	return mesh.Detect
}

// Live is the Table in force. The zero value is not usable: NewLive.
type Live struct {
	p atomic.Pointer[Table]
}

// NewLive holds an empty Table of version 0.
func NewLive() *Live {
	l := &Live{}
	l.p.Store(New(&node.Snapshot{}))
	return l
}

// Load is the Table in force.
func (l *Live) Load() *Table { return l.p.Load() }

// Swap puts t in force, with the next generation. Calls must not overlap.
func (l *Live) Swap(t *Table) {
	t.Generation = l.p.Load().Generation + 1
	l.p.Store(t)
}
