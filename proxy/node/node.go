// Package node is the data plane of one Kubernetes node: the pods whose listeners the proxy holds, and what happens
// with their connections, outbound and inbound.
//
// A Node spreads its pods over shards. A shard runs on one loop and owns everything of its pods' connections; nothing
// in it locks. What shards share is immutable and swapped atomically: the discovery table and the registry of pods.
package node

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	api "conduit.io/conduit/api/node"
	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/loop"
	"conduit.io/conduit/proxy/meter"
	"conduit.io/conduit/proxy/mtls"
	"conduit.io/conduit/proxy/sock"
	"conduit.io/conduit/proxy/table"
	"conduit.io/conduit/proxy/trip"
)

// Options configure a Node.
type Options struct {
	Loops []*loop.Loop // one shard each; they must be running, or be run soon
	Log   *slog.Logger
	Build string // version of the program, for Hello
	// ConnectTimeout bounds a TCP dial with its TLS handshake; 0: 5 s.
	ConnectTimeout time.Duration
	// Limits bound streams; the zero Limits leave only the deadlines that gRPC calls carry themselves.
	Limits trip.Limits
	// MaxSeries bounds the series of each kind and shard; 0: 2000.
	MaxSeries int
	// MeshPort is the port for mTLS; 0: mesh.MeshPort.
	MeshPort uint16
	// LinkSameNode has streams between two pods of the node go over a link, as between nodes. Without it they take one hop, inside the
	// server's namespace: what filters packets by the pods' addresses does not see them.
	LinkSameNode bool
}

// Node is the data plane. Its methods may be called from any goroutine but those of its loops; each returns when what
// it asks has taken effect.
type Node struct {
	o        Options
	shards   []*shard
	table    *table.Live
	certs    *mtls.Store
	tags     atomic.Pointer[sock.TagMap]
	process  meter.Process
	pods     atomic.Pointer[registry]
	interest *interest

	mu       sync.Mutex // orders changes
	snapshot *api.Snapshot
	drained  func(cookie uint64)
}

// registry is the pods that are held; immutable.
type registry struct {
	byCookie map[uint64]*pod
	byUID    map[string]*pod // draining ones excluded
}

// New makes a Node without pods.
func New(o Options) *Node {
	if o.ConnectTimeout == 0 {
		o.ConnectTimeout = 5 * time.Second
	}
	if o.MaxSeries == 0 {
		o.MaxSeries = 2000
	}
	if o.MeshPort == 0 {
		o.MeshPort = mesh.MeshPort
	}
	n := &Node{o: o, table: table.NewLive(), certs: mtls.New(nil), interest: newInterest()}
	n.pods.Store(&registry{})
	for _, l := range o.Loops {
		n.shards = append(n.shards, newShard(n, l))
	}
	return n
}

// OnDrained says whom to tell that a draining pod's last connection has ended; f is called on a goroutine of its own. It
// must not call the Node, which waits for it.
func (n *Node) OnDrained(f func(cookie uint64)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.drained = f
}

// Hello describes what the Node holds.
func (n *Node) Hello() *api.Hello {
	h := &api.Hello{
		Version: api.Version, PID: os.Getpid(), Build: n.o.Build,
		Kernel: n.tags.Load() != nil, Snapshot: n.table.Load().Version,
		Pods: []uint64{}, Draining: []uint64{}, Interest: n.interest.all(),
	}
	for c, p := range n.pods.Load().byCookie {
		if p.draining.Load() {
			h.Draining = append(h.Draining, c)
		} else {
			h.Pods = append(h.Pods, c)
		}
	}
	slices.Sort(h.Pods)
	slices.Sort(h.Draining)
	return h
}

// SetKernel takes the socket-tag map, replacing an earlier one. f stays the caller's.
func (n *Node) SetKernel(f *os.File) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	t, err := sock.NewTagMap(f)
	if err != nil {
		return err
	}
	if old := n.tags.Swap(t); old != nil {
		n.each(func(*shard) {}) // whoever was about to use it has done so
		return old.Close()
	}
	return nil
}

// SetSnapshot puts s, which the Node keeps, in force, whatever its version: the agent knows best. Of what it was asked and does not know yet
// the snapshot before goes on telling.
func (n *Node) SetSnapshot(s *api.Snapshot) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.supersede(s)
}

// Update changes the snapshot in force, as SetSnapshot would. It is an error, and changes nothing, if u is not about that one.
func (n *Node) Update(u *api.Update) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	s, err := u.Apply(n.snapshot)
	if err == nil {
		n.supersede(s)
	}
	return err
}

func (n *Node) supersede(s *api.Snapshot) {
	n.snapshot = s
	t := table.New(s)
	t.Keep(n.table.Load(), n.interest.list())
	n.table.Swap(t)
	n.process.Snapshot.Store(s.Version)
	n.each(func(sh *shard) { sh.snapshotChanged() })
}

// SetCertificates adds or replaces certificates, and replaces the roots.
func (n *Node) SetCertificates(c *api.Certificates) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.certs.Set(*c)
}

// errFiles is a Pod message with a wrong number of descriptors.
var errFiles = errors.New("want the network namespace and four listeners")

// SetPod adds a pod, or replaces its listeners, or without files changes its record. It returns when the listeners
// accept. The files stay the caller's.
func (n *Node) SetPod(m *api.Pod, files []*os.File) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	p := n.pods.Load().byCookie[m.Cookie]
	switch {
	case len(files) == 0 && p == nil:
		return fmt.Errorf("update pod %d: it is not here", m.Cookie)
	case len(files) == 0:
		n.update(p, &m.Workload)
		return nil
	case len(files) != 1+int(api.Slots):
		return fmt.Errorf("add pod %d: %d descriptors: %w", m.Cookie, len(files), errFiles)
	case p == nil:
		return n.addPod(m, files)
	}
	if err := n.listen(p, files[1:]); err != nil {
		return err
	}
	if p.draining.Swap(false) {
		p.drains++
		n.process.Draining.Add(-1)
		n.process.Pods.Add(1)
		n.each(func(sh *shard) { sh.stay(p) })
	}
	n.update(p, &m.Workload)
	return nil
}

func (n *Node) addPod(m *api.Pod, files []*os.File) error {
	ns, err := sock.OpenNetns(files[0])
	if err != nil {
		return fmt.Errorf("add pod %d: %w", m.Cookie, err)
	}
	p := &pod{cookie: m.Cookie, netns: ns}
	p.set(&m.Workload)
	if err := n.listen(p, files[1:]); err != nil {
		ns.Close()
		return err
	}
	n.process.Pods.Add(1)
	n.register(p)
	return nil
}

// update puts another record of p in force.
func (n *Node) update(p *pod, w *mesh.Workload) {
	old := p.record()
	p.set(w)
	n.register(p)
	identity := old.ServiceAccount != w.ServiceAccount || old.Namespace != w.Namespace
	n.each(func(sh *shard) { sh.recordChanged(p, identity) })
}

// listen makes the pod's shard accept on the listeners among files.
func (n *Node) listen(p *pod, files []*os.File) error {
	sh := n.home(p)
	var err error
	if e := sh.loop.Do(func() { err = sh.listen(p, files) }); e != nil {
		return e
	}
	if err != nil {
		return fmt.Errorf("listen for pod %d: %w", p.cookie, err)
	}
	return nil
}

// Remove takes a pod away, at once or when its connections have ended. A pod that is not here is no error.
func (n *Node) Remove(m *api.Remove) {
	n.mu.Lock()
	defer n.mu.Unlock()
	p := n.pods.Load().byCookie[m.Cookie]
	if p == nil {
		return
	}
	if !m.Drain {
		n.remove(p)
		return
	}
	if m.Usher {
		defer n.each(func(sh *shard) { sh.usher(sh.shares[p]) })
	}
	if p.draining.Swap(true) {
		return
	}
	p.drains++
	drain := p.drains
	n.process.Pods.Add(-1)
	n.process.Draining.Add(1)
	n.register(p)
	left := &atomic.Int32{}
	left.Store(int32(len(n.shards)))
	n.each(func(sh *shard) {
		sh.drain(p, func() {
			if left.Add(-1) == 0 {
				go n.podDrained(p, drain)
			}
		})
	})
}

// remove ends everything of p.
func (n *Node) remove(p *pod) {
	p.removed.Store(true)
	n.unregister(p)
	n.each(func(sh *shard) { sh.remove(p) })
	p.netns.Close()
	if p.draining.Load() {
		n.process.Draining.Add(-1)
	} else {
		n.process.Pods.Add(-1)
	}
}

// podDrained ends a drain of p, unless the pod has come back or was removed meanwhile. It is reported before anything else
// can be changed, so that the agent does not take it for the end of a later drain.
func (n *Node) podDrained(p *pod, drain uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if p.drains != drain || p.removed.Load() {
		return
	}
	n.remove(p)
	if n.drained != nil {
		n.drained(p.cookie)
	}
}

func (n *Node) register(p *pod) { n.reregister(p, true) }

func (n *Node) unregister(p *pod) { n.reregister(p, false) }

func (n *Node) reregister(p *pod, keep bool) {
	r := &registry{byCookie: map[uint64]*pod{}, byUID: map[string]*pod{}}
	for c, q := range n.pods.Load().byCookie {
		if q != p {
			r.byCookie[c] = q
		}
	}
	if keep {
		r.byCookie[p.cookie] = p
	}
	for _, q := range r.byCookie {
		if uid := q.record().UID; uid != "" && !q.draining.Load() {
			r.byUID[uid] = q
		}
	}
	n.pods.Store(r)
}

// local is the pod of this node that is the workload with uid, or nil.
func (n *Node) local(uid string) *pod { return n.pods.Load().byUID[uid] }

func (n *Node) home(p *pod) *shard { return n.shards[p.cookie%uint64(len(n.shards))] }

// each runs f on every shard and waits. A loop that has ended has nothing left to change.
func (n *Node) each(f func(sh *shard)) {
	for _, sh := range n.shards {
		_ = sh.loop.Do(func() { f(sh) })
	}
}

// Stats is the metrics as Prometheus text.
func (n *Node) Stats() []byte {
	n.each(func(sh *shard) { sh.countLive() })
	readings := make([]*meter.Reading, len(n.shards))
	for i, sh := range n.shards {
		readings[i] = sh.set.Read(sh.loop.Do)
	}
	var b bytes.Buffer
	meter.Write(&b, &n.process, readings...)
	return b.Bytes()
}

// Busy reports whether there are pods whose connections the Node accepts, or connections that go on.
func (n *Node) Busy() bool {
	return len(n.pods.Load().byCookie) > 0 || n.process.Open.Load() > 0
}

// Usher has clients end their connections as their protocols allow, and come again: by now to another proxy, which is told what is
// so, as this one is not. Nothing fails, and what they do not end goes on.
func (n *Node) Usher() {
	n.each(func(sh *shard) {
		for _, s := range sh.shares {
			s.each((*down).usher)
		}
	})
}

// Shutdown stops accepting, lets connections end for at most grace, and then returns. Connections that are left end
// with the process.
func (n *Node) Shutdown(grace time.Duration) {
	if grace <= 0 {
		return
	}
	n.each(func(sh *shard) { sh.leave() })
	deadline := time.NewTimer(grace)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for n.process.Open.Load() > 0 {
		select {
		case <-deadline.C:
			return
		case <-tick.C:
		}
	}
}
