package enrol

import (
	"net/netip"
	"strconv"

	"conduit.io/conduit/identity"
	"conduit.io/conduit/loader"
	"conduit.io/conduit/mesh"
)

// PodStatus is what is known of one pod; the kernel's part is read from the kernel.
type PodStatus struct {
	UID       string          `json:"uid"`
	Namespace string          `json:"namespace"`
	Name      string          `json:"name"`
	Identity  string          `json:"identity"`
	Cookie    string          `json:"netnsCookie"` // decimal: JSON numbers are not exact
	Netns     string          `json:"netns"`
	Addrs     []netip.Addr    `json:"addrs"`
	Wanted    bool            `json:"wanted"`   // the manifests want it in the mesh
	Enrolled  bool            `json:"enrolled"` // the kernel steers it
	Leaving   bool            `json:"leaving"`  // un-enrolled, connections not finished
	Mode      mesh.Mode       `json:"mode"`
	Down      mesh.Down       `json:"agentDown"`
	OutOpen   bool            `json:"outOpen"`
	InOpen    bool            `json:"inOpen"`
	Listeners map[string]bool `json:"listeners"` // alive in the kernel
	Counters  Counters        `json:"counters"`
	Error     string          `json:"error,omitempty"`
}

// Counters are the kernel's counts of a pod's sockets.
type Counters struct {
	Created  uint64            `json:"created"`
	Steered  uint64            `json:"steered"`
	Bypassed map[string]uint64 `json:"bypassed"`
}

// Pods is the state of the pods of this node, in the order in which their namespaces were made. The kernel is asked last, and nobody
// waits for that.
func (m *Manager) Pods() ([]PodStatus, error) {
	out, cookies := m.known()
	d := m.cfg.Datapath
	enrolled, err := d.Enrolled()
	if err != nil {
		return nil, err
	}
	counters, err := d.Counters()
	if err != nil {
		return nil, err
	}
	for i, cookie := range cookies {
		k, isEnrolled := enrolled[cookie]
		s := &out[i]
		s.Enrolled, s.OutOpen, s.InOpen, s.Counters = isEnrolled, k.OutOpen, k.InOpen, kernelCounters(counters[cookie])
		alive, err := d.Listeners(cookie)
		if err != nil {
			return nil, err
		}
		for slot, name := range []string{"inV4", "inV6", "outV4", "outV6"} {
			s.Listeners[name] = alive[slot]
		}
	}
	return out, nil
}

// known is Pods without the kernel's part, and their cookies.
func (m *Manager) known() (out []PodStatus, cookies []uint64) {
	m.lock()
	defer m.mu.Unlock()
	out = []PodStatus{}
	for _, p := range m.sorted() {
		s := PodStatus{
			UID:       p.workload.UID,
			Namespace: p.workload.Namespace, Name: p.workload.Name,
			Identity: p.workload.Identity(m.cfg.TrustDomain).String(),
			Cookie:   strconv.FormatUint(p.cookie, 10), Netns: p.first().Netns, Addrs: p.workload.Addrs,
			Wanted: p.workload.Meshed, Leaving: p.leaving, Mode: p.workload.Mode, Down: p.workload.Down,
			Listeners: map[string]bool{},
		}
		if p.fault != nil {
			s.Error = p.fault.Error()
		}
		out, cookies = append(out, s), append(cookies, p.cookie)
	}
	return out, cookies
}

func kernelCounters(c loader.Counters) Counters {
	if c.Bypassed == nil {
		c.Bypassed = map[string]uint64{}
	}
	return Counters{Created: c.Created, Steered: c.Steered, Bypassed: c.Bypassed}
}

// Elsewhere is how many pods the linked proxy has not taken over yet; 0 while there is none.
func (m *Manager) Elsewhere() (n int) {
	m.lock()
	defer m.mu.Unlock()
	for _, p := range m.pods {
		if m.link != nil && p.enrolled && p.workload.Meshed && !p.held && p.fault == nil {
			n++
		}
	}
	return n
}

// Summary is the node in numbers.
type Summary struct {
	Wanted, Enrolled, Leaving, Other int
	Snapshot                         uint64
	Certificates                     identity.Summary
}

// Summary counts the pods by their state, and names the newest snapshot.
func (m *Manager) Summary() Summary {
	m.lock()
	defer m.mu.Unlock()
	s := Summary{Certificates: m.cfg.Keeper.Summary()}
	for _, p := range m.pods {
		switch {
		case p.enrolled:
			s.Enrolled++
		case p.leaving:
			s.Leaving++
		case p.workload.Meshed:
			s.Wanted++
		default:
			s.Other++
		}
	}
	if m.snapshot != nil {
		s.Snapshot = m.snapshot.Version
	}
	return s
}
