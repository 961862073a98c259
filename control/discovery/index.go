// Package discovery knows what lies behind every address of the cluster, and tells agents of those they ask about.
//
// The index is built from records of Kubernetes objects as they change: the cost of a change is that of what it touches, never
// of what there is. Its resources (answers, services, endpoints, workloads) are immutable messages, each with the version
// in which it came to be. What streams are sent is read under one lock, at one version.
package discovery

import (
	"crypto/rand"
	"net/netip"
	"slices"
	"sync"
	"time"

	discoveryv1 "conduit.io/conduit/api/discoveryv1"
	"conduit.io/conduit/api/kube"
	"conduit.io/conduit/api/v1alpha1"

	corev1 "k8s.io/api/core/v1"
)

// Index is what is known of the cluster. It is safe for concurrent use. Records may come in any order: what is not complete yet
// is not published.
type Index struct {
	mu sync.Mutex // guards everything, streams included

	epoch   string
	version uint64 // of the newest change
	changed bool   // something has changed under the present lock
	times   history

	records    map[Kind]map[Name]Record
	policy     *v1alpha1.MeshPolicySpec
	namespaces map[string]*members // by name: pods
	nodes      map[string]*members // by name: pods, and streams of its agent
	workloads  map[Name]*workload
	services   map[Name]*entry
	addrs      map[netip.Addr]*address
	nodePorts  map[uint32][]*entry        // in the order of their keys
	hostPorts  map[hostPort][]*workload   // the last one counts
	portSubs   map[uint32]map[*Stream]int // streams that ask about a port, and for how many addresses
	misspelt   map[Record]struct{}        // pods and namespaces
	slipped    chan struct{}              // told when one was added
	streams    int
}

// members are what belongs to a namespace or node; they may be known before it is.
type members struct {
	pods    map[*workload]struct{}
	streams map[*Stream]struct{}
}

// workload is a pod as it is published.
type workload struct {
	rec     *pod
	msg     *discoveryv1.Workload // nil: it has no identity that an address could prove
	version uint64
}

// entry is a service as it is published. It is there before its object is, when a slice or a stream has named it.
type entry struct {
	name      Name
	rec       *service // nil: there is no object
	version   uint64   // of rec
	removed   uint64   // version in which the last of its endpoints was removed
	endpoints map[string]*endpoint
	streams   map[*Stream]struct{} // that have been sent it
}

// address is what claims an address, and who wants to know.
type address struct {
	services []*entry    // by their virtual addresses, in the order of their keys
	pods     []*workload // whose own it is; the last one counts
	nodes    []string    // nodes whose internal address it is, in their order
	hosts    int         // nodes that have it, as whatever
	behind   []ref       // endpoints at it
	version  uint64
	watch    []*Stream // in no order
}

func (a *address) empty() bool {
	return len(a.services) == 0 && len(a.pods) == 0 && a.hosts == 0 && len(a.behind) == 0 && len(a.watch) == 0
}

// ref names an endpoint.
type ref struct {
	service *entry
	id      string
}

// New makes an empty index, in an epoch of its own.
func New() *Index {
	x := &Index{epoch: rand.Text(), records: map[Kind]map[Name]Record{}, namespaces: map[string]*members{}, nodes: map[string]*members{},
		workloads: map[Name]*workload{}, services: map[Name]*entry{}, addrs: map[netip.Addr]*address{},
		nodePorts: map[uint32][]*entry{}, hostPorts: map[hostPort][]*workload{}, portSubs: map[uint32]map[*Stream]int{},
		misspelt: map[Record]struct{}{}, slipped: make(chan struct{}, 1)}
	for _, k := range []Kind{Pods, Namespaces, Services, Slices, Nodes, Policies} {
		x.records[k] = map[Name]Record{}
	}
	return x
}

// Put adds or replaces an object.
func (x *Index) Put(r Record) {
	defer x.begin()()
	x.put(r)
}

// Remove takes an object away; one that is not there is passed over.
func (x *Index) Remove(k Kind, n Name) {
	defer x.begin()()
	x.remove(k, n)
}

// Replace makes rs all the objects of a kind.
func (x *Index) Replace(k Kind, rs []Record) {
	defer x.begin()()
	there := make(map[Name]bool, len(rs))
	for _, r := range rs {
		there[r.Named()] = true
		x.put(r)
	}
	for n := range x.records[k] {
		if !there[n] {
			x.remove(k, n)
		}
	}
}

// begin locks; what it returns unlocks, when the change is complete.
func (x *Index) begin() func() {
	x.mu.Lock()
	x.changed = false
	return func() {
		if x.changed {
			x.times.add(x.version, time.Now())
		}
		x.mu.Unlock()
	}
}

// stamp is the version of the change that is being made.
func (x *Index) stamp() uint64 {
	if !x.changed {
		x.changed = true
		x.version++
	}
	return x.version
}

func (x *Index) put(r Record) {
	n := r.Named()
	old := x.records[r.Kind()][n]
	x.records[r.Kind()][n] = r
	x.respell(old, r)
	switch r := r.(type) {
	case *pod:
		x.putPod(r)
	case *namespace:
		if o, ok := old.(*namespace); !ok || o.said != r.said {
			x.refresh(member(x.namespaces, n.Name))
		}
	case *node:
		o, _ := old.(*node)
		x.putNode(o, r)
	case *policy:
		x.putPolicy()
	case *service:
		x.putService(n, r)
	case *slice:
		o, _ := old.(*slice)
		x.putSlice(o, r)
	}
}

func (x *Index) remove(k Kind, n Name) {
	old := x.records[k][n]
	if old == nil {
		return
	}
	delete(x.records[k], n)
	delete(x.misspelt, old)
	switch o := old.(type) {
	case *pod:
		x.removePod(n)
	case *namespace:
		x.refresh(member(x.namespaces, n.Name))
		x.release(x.namespaces, n.Name)
	case *node:
		x.putNode(o, &node{name: n})
		x.release(x.nodes, n.Name)
	case *policy:
		x.putPolicy()
	case *service:
		x.putService(n, nil)
	case *slice:
		x.putSlice(o, nil)
	}
}

func member(m map[string]*members, name string) *members {
	g := m[name]
	if g == nil {
		g = &members{pods: map[*workload]struct{}{}, streams: map[*Stream]struct{}{}}
		m[name] = g
	}
	return g
}

func (x *Index) release(m map[string]*members, name string) {
	if g := m[name]; g != nil && len(g.pods) == 0 && len(g.streams) == 0 {
		delete(m, name)
	}
}

// refresh publishes the pods anew, as far as they have changed.
func (x *Index) refresh(g *members) {
	for w := range g.pods {
		x.publish(w)
	}
}

// putPolicy is the one change whose cost is the cluster's size: what it says is said of every pod.
func (x *Index) putPolicy() {
	x.policy = nil
	if p, ok := x.records[Policies][Name{Name: v1alpha1.MeshPolicyName}].(*policy); ok {
		x.policy = &p.spec
	}
	for _, w := range x.workloads {
		x.publish(w)
	}
}

func (x *Index) putNode(old, n *node) {
	if old == nil {
		old = &node{}
	}
	same := func(a netip.Addr) bool {
		return slices.Contains(old.addrs, a) && slices.Contains(n.addrs, a) && slices.Contains(old.internal, a) == slices.Contains(n.internal, a)
	}
	for _, a := range old.addrs {
		if !same(a) {
			x.claim(a, func(c *address) { c.leave(n.name.Name) })
		}
	}
	for _, a := range n.addrs {
		if !same(a) {
			x.claim(a, func(c *address) { c.join(n.name.Name, slices.Contains(n.internal, a)) })
		}
	}
	if g := member(x.nodes, n.name.Name); old.zone != n.zone || old.region != n.region {
		x.refresh(g)
		for _, a := range n.internal { // whose answers say the zone
			x.touchAddress(a, x.addrs[a])
		}
		for st := range g.streams {
			st.moved = true
			st.poke()
		}
	}
}

func (x *Index) nodeRecord(name string) *node {
	if n, ok := x.records[Nodes][Name{Name: name}].(*node); ok {
		return n
	}
	return &node{}
}

// at is the account of an address; it must be let go by forget if nothing was put into it.
func (x *Index) at(a netip.Addr) *address {
	c := x.addrs[a]
	if c == nil {
		c = &address{version: x.version}
		x.addrs[a] = c
	}
	return c
}

func (x *Index) forget(a netip.Addr) {
	if c := x.addrs[a]; c != nil && c.empty() {
		delete(x.addrs, a)
	}
}

// claim changes who claims an address, and tells those who watch it.
func (x *Index) claim(a netip.Addr, change func(*address)) {
	c := x.at(a)
	change(c)
	x.touchAddress(a, c)
	x.forget(a)
}

func (x *Index) touchAddress(a netip.Addr, c *address) {
	c.version = x.stamp()
	for _, st := range c.watch {
		st.answers[a] = struct{}{}
		st.poke()
	}
}

// Runs reports whether a pod of the service account runs, or is about to run, on the node.
func (x *Index) Runs(node, namespace, serviceAccount string) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	g := x.nodes[node]
	if g == nil {
		return false
	}
	for w := range g.pods {
		if w.rec.name.Namespace == namespace && w.rec.account == serviceAccount && !w.rec.ended {
			return true
		}
	}
	return false
}

// Node reports whether there is a node of that name.
func (x *Index) Node(name string) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.records[Nodes][Name{Name: name}] != nil
}

// Condition is conduit.io/Enrolled or conduit.io/Wired of a pod, without its times, zero for none, and the pod's node; none: there is
// no such pod, or it is bound to no node.
func (x *Index) Condition(namespace, name, uid string, kind corev1.PodConditionType) (c corev1.PodCondition, node string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	w := x.workloads[Name{Namespace: namespace, Name: name}]
	if w == nil || w.rec.uid != uid {
		return corev1.PodCondition{}, ""
	}
	if kind == kube.ConditionWired {
		return valueOf(w.rec.wired), w.rec.node
	}
	return valueOf(w.rec.enrolled), w.rec.node
}

// Size is how much there is, for metrics.
type Size struct {
	Services, Workloads, Addresses, Streams int
	Version                                 uint64
}

// Size is how much there is now.
func (x *Index) Size() Size {
	x.mu.Lock()
	defer x.mu.Unlock()
	return Size{Services: len(x.records[Services]), Workloads: len(x.workloads), Addresses: len(x.addrs), Streams: x.streams, Version: x.version}
}
