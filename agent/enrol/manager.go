// Package enrol keeps kernel, namespaces and proxy in the state that the manifests ask for: it answers the CNI plugin,
// follows labels and policies, and repairs what differs.
package enrol

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"conduit.io/conduit/agent/cnicache"
	"conduit.io/conduit/agent/discovery"
	"conduit.io/conduit/agent/kubelet"
	"conduit.io/conduit/agent/manifest"
	"conduit.io/conduit/agent/podnet"
	"conduit.io/conduit/agent/proxylink"
	"conduit.io/conduit/agent/store"
	"conduit.io/conduit/api/node"
	"conduit.io/conduit/identity"
	"conduit.io/conduit/loader"
	"conduit.io/conduit/mesh"
)

const (
	// inspectEvery is how often the kernel is compared with what it should be.
	inspectEvery = 10 * time.Second
	retryAfter   = time.Second
)

// Config is what a Manager works with. Nothing of it is closed by the Manager.
type Config struct {
	Node        string
	TrustDomain string
	Datapath    *loader.Datapath
	Objects     Objects
	Directory   Directory // nil: Objects has everything
	Store       *store.Store
	Keeper      *identity.Keeper
	Log         *slog.Logger
	Records     func() ([]cnicache.Record, error) // what the container runtime remembers of pods' networks; nil: nobody knows
	Observed    func()                            // called, with the Manager locked, when what Pods says may have changed; nil: nobody asks
}

// Manager owns the node's pods. It is safe for concurrent use; one thing at a time is changed.
type Manager struct {
	cfg  Config
	kick chan struct{}

	turn     sync.Mutex      // held by the one that is to have mu next
	mu       sync.Mutex      // taken by lock
	pods     map[uint64]*pod // by netns cookie
	snapshot *node.Snapshot  // the newest; nil before the first
	link     *proxylink.Link // nil while no proxy is ready
	linked   chan struct{}   // closed when link becomes non-nil, and made anew when it is lost
	sent     *node.Snapshot  // the one that the linked proxy has; nil when that is not known
	alone    map[uint64]bool // cookies of pods whose record is lost or cannot be read: left as they are
	debris   map[uint64]bool // cookies of pods that are gone, of which the kernel may still have something
	strays   map[manifest.Name]Stray
	deleted  map[store.Key]bool // by DEL, and perhaps still in the runtime's records
}

// pod is one network namespace with its attachments.
type pod struct {
	cookie      uint64
	attachments map[store.Key]*store.Attachment
	workload    mesh.Workload // as wanted; Addrs are those by which others reach it
	kernelAddrs []netip.Addr  // every address of the namespace, for the kernel program
	probes      []uint16      // ports at which the kubelet dials it
	enrolled    bool          // the kernel steers it
	kernel      loader.Pod    // as the kernel was told, when enrolled
	adding      bool          // an ADD is about to enrol it
	parts       time.Time     // when it is un-enrolled, to leave; zero: it does not leave
	leaving     bool          // un-enrolled, with connections that are not finished
	held        bool          // the linked proxy has its listeners
	told        mesh.Workload // as the linked proxy was told
	fault       error         // of the last attempt
	doubtful    bool          // to be compared with the kernel and its namespace, although nothing else is wanted of it
}

// New makes a Manager; call Restore, and then Run.
func New(cfg Config) *Manager {
	return &Manager{cfg: cfg, kick: make(chan struct{}, 1), pods: map[uint64]*pod{}, linked: make(chan struct{}), alone: map[uint64]bool{}, debris: map[uint64]bool{},
		strays: map[manifest.Name]Stray{}, deleted: map[store.Key]bool{}}
}

// name is the pod that the attachments belong to.
func (p *pod) name() manifest.Name {
	return manifest.Name{Namespace: p.workload.Namespace, Name: p.workload.Name}
}

// first is the attachment that names the pod's interface: that of eth0, else the one with the lowest name.
func (p *pod) first() *store.Attachment {
	var best *store.Attachment
	for _, a := range p.attachments {
		switch {
		case best == nil, a.IfName == "eth0", best.IfName != "eth0" && a.IfName < best.IfName:
			best = a
		}
	}
	return best
}

// addrs are the addresses that the CNI plugin reported, those of the first attachment first.
func (p *pod) addrs() []netip.Addr {
	first := p.first()
	out := slices.Clone(first.Addrs)
	for _, a := range p.attachments {
		for _, addr := range a.Addrs {
			if a != first && !slices.Contains(out, addr) {
				out = append(out, addr)
			}
		}
	}
	return out
}

// lock takes mu. Whoever gives it away and wants it back gets it after the one that waits for it now: with a mutex alone it would mostly be
// the first to have it again.
func (m *Manager) lock() {
	m.turn.Lock()
	m.mu.Lock()
	m.turn.Unlock()
}

// Kick asks Run to reconcile soon; it never blocks.
func (m *Manager) Kick() {
	select {
	case m.kick <- struct{}{}:
	default:
	}
}

// Run reconciles when asked, and inspects from time to time, until ctx ends.
func (m *Manager) Run(ctx context.Context) {
	tick := time.NewTicker(inspectEvery)
	defer tick.Stop()
	for {
		inspect := false
		select {
		case <-ctx.Done():
			return
		case <-m.kick:
		case <-tick.C:
			inspect = true
		}
		m.lock()
		if inspect {
			m.sweep(ctx)
			m.takeUp(true)
			m.inspect()
		}
		m.reconcile(ctx)
		m.mu.Unlock()
	}
}

// Restore takes up the pods of an earlier agent: attachments from the store, the rest from the kernel. Attachments of no
// living namespace are dropped.
func (m *Manager) Restore() error {
	m.lock()
	defer m.mu.Unlock()
	all, err := m.cfg.Store.Load()
	if err != nil {
		m.cfg.Log.Error("attachments could not all be read; their pods are left as they are until they are deleted", "error", err)
	}
	enrolled, err := m.cfg.Datapath.Enrolled()
	if err != nil {
		return err
	}
	lookups, err := m.cfg.Datapath.Lookups()
	if err != nil {
		return err
	}
	for _, a := range all {
		p := m.pods[a.Cookie]
		if p == nil {
			p = &pod{cookie: a.Cookie, attachments: map[store.Key]*store.Attachment{}, workload: a.Workload}
			p.kernel, p.enrolled = enrolled[a.Cookie]
			p.kernelAddrs, p.probes = p.kernel.Addrs, p.kernel.Probes
			p.leaving = !p.enrolled && slices.Contains(lookups, a.Cookie)
			m.pods[a.Cookie] = p
		}
		p.attachments[a.Key()] = a
	}
	m.sweep(context.Background())
	left, err := m.inKernel()
	if err != nil {
		return err
	}
	for _, cookie := range left {
		if m.pods[cookie] != nil {
			continue
		}
		// Its namespace lives, or the loader would have swept it. Without the kernel's state a STRICT pod would go on in
		// plaintext: it stays, and with no proxy refuses or passes connections as was last decided.
		m.alone[cookie] = true
		m.cfg.Log.Error("pod in the kernel has no record; it is left as it is until it is deleted, added again, or found by the runtime's records", "cookie", cookie)
	}
	m.refresh()
	return nil
}

// inKernel lists the pods of which the kernel has something.
func (m *Manager) inKernel() ([]uint64, error) {
	enrolled, err := m.cfg.Datapath.Enrolled()
	if err != nil {
		return nil, err
	}
	cookies, err := m.cfg.Datapath.Lookups()
	if err != nil {
		return nil, err
	}
	for cookie := range enrolled {
		if !slices.Contains(cookies, cookie) {
			cookies = append(cookies, cookie)
		}
	}
	return cookies, nil
}

// breathe gives the lock away between two pods, so that nobody's ADD waits for all.
func (m *Manager) breathe() {
	m.mu.Unlock()
	m.lock()
}

// reconcile brings everything up to what the manifests say now. It breathes.
func (m *Manager) reconcile(ctx context.Context) {
	m.takeUp(false)
	failed, again := !m.renew(ctx), false
	failed = !m.tidy() || failed
	for _, p := range m.sorted() {
		if m.pods[p.cookie] != p || m.settled(p) {
			continue
		}
		before, was := p.fault, p.enrolled
		p.fault = m.sync(ctx, p)
		switch {
		case p.fault == nil:
			p.doubtful = false
		case before != nil && before.Error() == p.fault.Error():
		case errors.Is(p.fault, errNoLeaf):
			m.cfg.Log.Info("pod waits for its certificate", "pod", p.name().String())
		case errors.Is(p.fault, errNoProxy): // which has faults of its own to tell
			m.cfg.Log.Info("pod waits for the proxy", "pod", p.name().String())
		default:
			m.cfg.Log.Error("pod is not as it should be; trying again", "pod", p.name().String(), "error", p.fault)
		}
		failed = failed || p.fault != nil
		again = again || p.enrolled != was // which the snapshot is to say
		m.breathe()
		select {
		case <-m.kick: // all pods may take their time, and the proxy is to hear of others at once
			failed = !m.renew(ctx) || failed
			again = true // for pods that were passed by
		default:
		}
	}
	if again {
		m.Kick()
	}
	if failed {
		time.AfterFunc(retryAfter, m.Kick)
	}
	m.observed()
}

// settled reports whether p is what it should be, as far as is known without a look at the kernel and its namespace.
func (m *Manager) settled(p *pod) bool {
	switch {
	case p.doubtful, p.leaving, p.fault != nil, p.enrolled != p.workload.Meshed:
		return false
	case !p.enrolled:
		return true
	}
	return m.link != nil && p.held && sameWorkload(&p.told, &p.workload) && samePod(kernelPod(p), p.kernel)
}

func (m *Manager) observed() {
	if m.cfg.Observed != nil {
		m.cfg.Observed()
	}
}

func (m *Manager) sorted() []*pod {
	out := make([]*pod, 0, len(m.pods))
	for _, p := range m.pods {
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b *pod) int {
		if a.cookie < b.cookie {
			return -1
		}
		return 1
	})
	return out
}

// refresh takes in the manifests: what each pod should be, the snapshot, the identities.
func (m *Manager) refresh() {
	objects, _ := m.cfg.Objects.Objects()
	local, own := map[manifest.Name][]netip.Addr{}, map[manifest.Name]*pod{}
	for _, p := range m.sorted() { // of two sandboxes of one pod the younger one has its addresses
		a := p.first()
		name := manifest.Name{Namespace: a.Namespace, Name: a.Pod}
		// What nothing describes any more stays as it was: a pod never leaves the mesh because a file is missing.
		if o := objects.Pods[name]; o != nil && discovery.Local(o, m.cfg.Node) && decided(objects, o) {
			m.redescribe(p, discovery.Workload(objects, o, m.cfg.Node))
			p.probes = kubelet.Ports(&o.Spec)
		}
		p.workload.Addrs = p.addrs()
		if len(p.workload.Addrs) == 0 {
			p.workload.Addrs = p.kernelAddrs
		}
		local[name], own[name] = p.workload.Addrs, p
		for _, a := range p.attachments {
			m.remember(a, &p.workload)
		}
	}
	next := discovery.Build(objects, discovery.Options{Node: m.cfg.Node, TrustDomain: m.cfg.TrustDomain, LocalAddrs: local})
	m.describeOwn(next, objects, own)
	if d := m.cfg.Directory; d != nil {
		var all []netip.Addr
		for _, addrs := range local {
			all = append(all, addrs...)
		}
		d.Local(all)
		discovery.Extend(next, d.View())
	}
	m.supersede(next)
	var ids []mesh.Identity
	for _, p := range m.pods {
		if id := p.workload.Identity(m.cfg.TrustDomain); p.workload.Meshed && !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	m.cfg.Keeper.Want(ids)
}

// remember stores the workload with the attachment when it has changed.
func (m *Manager) remember(a *store.Attachment, w *mesh.Workload) {
	if sameWorkload(&a.Workload, w) {
		return
	}
	a.Workload = *w
	if err := m.cfg.Store.Put(a); err != nil {
		m.cfg.Log.Error("attachment not stored; a restarted agent would not know it as it is", "error", err)
	}
}

func sameWorkload(a, b *mesh.Workload) bool {
	return a.UID == b.UID && a.Namespace == b.Namespace && a.Name == b.Name && a.ServiceAccount == b.ServiceAccount &&
		a.Owner == b.Owner && a.Node == b.Node && a.Meshed == b.Meshed && a.Mode == b.Mode && a.Down == b.Down &&
		slices.Equal(a.Addrs, b.Addrs)
}

// sweep drops attachments whose namespace is gone, or was replaced by another one. It breathes.
func (m *Manager) sweep(ctx context.Context) {
	for _, p := range m.sorted() {
		m.breathe()
		if m.pods[p.cookie] != p {
			continue
		}
		for key, a := range p.attachments {
			if err := m.alive(a); err == nil || !errors.Is(err, podnet.ErrGone) {
				continue
			}
			m.cfg.Log.Info("dropping attachment of a namespace that is gone", "pod", a.Namespace+"/"+a.Pod,
				"container", a.ContainerID, "netns", a.Netns)
			if err := m.detach(ctx, p, key); err != nil {
				m.cfg.Log.Error("attachment not dropped; trying again", "pod", a.Namespace+"/"+a.Pod, "error", err)
			}
		}
	}
}

// alive checks that the attachment's path still leads to its namespace; otherwise the error is podnet.ErrGone.
func (m *Manager) alive(a *store.Attachment) error {
	netns, err := podnet.OpenAs(a.Netns, a.Cookie)
	if err != nil {
		return err
	}
	return netns.Close()
}
