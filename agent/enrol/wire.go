package enrol

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"conduit.io/conduit/agent/podnet"
	"conduit.io/conduit/agent/store"
	"conduit.io/conduit/api/kernel"
	"conduit.io/conduit/api/node"
	"conduit.io/conduit/api/v1alpha1"
	"conduit.io/conduit/loader"
	"conduit.io/conduit/mesh"
)

var (
	// errNoProxy: the pod must wait for a proxy.
	errNoProxy = errors.New("the proxy is not ready")
	// errNoLeaf: the pod must wait for its certificate. Enrolled without one, it could speak to nobody.
	errNoLeaf = errors.New("it has no certificate yet")
	// errEarly: it is with another proxy, which can do more for it.
	errEarly = fmt.Errorf("%w to take it over", errNoProxy)
)

// partAfter is how long a pod that is to leave the mesh stays in it, while others hear that it is to be reached in plaintext.
const partAfter = 2 * time.Second

// sync brings one pod to what it should be.
func (m *Manager) sync(ctx context.Context, p *pod) error {
	switch {
	case p.workload.Meshed:
		netns, err := m.open(p)
		if err != nil {
			return err
		}
		defer netns.Close()
		return m.wire(ctx, p, netns, nothingSaid)
	case p.enrolled:
		return m.part(ctx, p)
	case p.leaving && m.link != nil && !p.held:
		return m.left(p) // the proxy that had its connections is gone, or has said that it is done
	}
	return nil
}

// word is what the proxy has yet to say to something that it was asked. It must be called once.
type word func(context.Context) error

func nothingSaid(context.Context) error { return nil }

// after waits, and returns err if there was one before.
func (w word) after(ctx context.Context, err error) error {
	if said := w(ctx); err == nil {
		return said
	}
	return err
}

// wire enrols the pod, or repairs and updates it. The order makes sure that nothing is steered before it can be served:
// rules and routes, listeners, lookup program, the proxy's word, the listener map, and the pod's entry last. The proxy works meanwhile: its
// word, and an earlier one, is waited for no sooner than it is needed.
func (m *Manager) wire(ctx context.Context, p *pod, netns *podnet.Netns, earlier word) error {
	p.parts = time.Time{}
	if !p.enrolled && !m.cfg.Keeper.Holds(p.workload.Identity(m.cfg.TrustDomain)) {
		return earlier.after(ctx, errNoLeaf)
	}
	err := m.address(p, netns)
	if err == nil {
		err = m.route(p, netns)
	}
	said := word(nothingSaid)
	if err == nil {
		said, err = m.listeners(p, netns)
	}
	if p.enrolled && errors.Is(err, errNoProxy) {
		err = nil // this is what its agent-down mode is for
	}
	if err == nil {
		err = m.lookup(p, netns)
	}
	if err = said.after(ctx, earlier.after(ctx, err)); err != nil {
		return err
	}
	return m.enrol(p)
}

// lookup sees to the pod's lookup program. When the kernel has lost something of the pod, enrol tells it all again.
func (m *Manager) lookup(p *pod, netns *podnet.Netns) error {
	d := m.cfg.Datapath
	if p.enrolled {
		lost := d.CheckPod(p.cookie)
		if lost == nil {
			return nil
		}
		m.cfg.Log.Warn("kernel state of the pod differs; repairing it", "pod", p.name().String(), "found", lost)
		p.kernel = loader.Pod{}
	}
	return d.AttachLookup(netns.File, p.cookie)
}

// enrol makes the pod's entry.
func (m *Manager) enrol(p *pod) error {
	want := kernelPod(p)
	if p.enrolled && samePod(want, p.kernel) {
		p.leaving = false
		return nil
	}
	if err := m.cfg.Datapath.Enrol(p.cookie, want); err != nil {
		return err
	}
	if !p.enrolled {
		m.cfg.Log.Info("pod enrolled", "pod", p.name().String(), "mode", p.workload.Mode, "agent_down", p.workload.Down)
	}
	p.enrolled, p.leaving, p.kernel = true, false, want
	return nil
}

// route makes the pod's rules and routes. Of a pod that is not enrolled there are none, mostly.
func (m *Manager) route(p *pod, netns *podnet.Netns) error {
	n := podnet.Net{IfName: p.first().IfName, Addrs: p.kernelAddrs}
	if p.enrolled {
		err := podnet.Verify(netns, n)
		if err == nil {
			return nil
		}
		m.cfg.Log.Warn("repairing the pod's rules and routes", "pod", p.name().String(), "found", err)
	}
	return podnet.Setup(netns, n)
}

// open opens the pod's namespace.
func (m *Manager) open(p *pod) (*podnet.Netns, error) {
	return podnet.OpenAs(p.first().Netns, p.cookie)
}

// address finds every address of the pod: those that CNI reported, and others that the namespace has.
func (m *Manager) address(p *pod, netns *podnet.Netns) error {
	found, err := podnet.Addresses(netns, p.first().IfName)
	if err != nil {
		return err
	}
	all := p.addrs()
	for _, a := range found {
		if !slices.Contains(all, a) {
			all = append(all, a)
		}
	}
	if len(all) == 0 {
		return errors.New("the pod has no IP address")
	}
	if len(all) > kernel.MaxAddrs {
		m.cfg.Log.Warn("pod has more addresses than the kernel program knows; connections from and to the last ones are refused",
			"pod", p.name().String(), "addresses", len(all), "known", kernel.MaxAddrs)
		all = all[:kernel.MaxAddrs]
	}
	p.kernelAddrs = all
	return nil
}

// kernelPod is how the kernel must treat the pod. Inbound connections go on without a proxy only where plaintext would
// be accepted from anybody anyway.
func kernelPod(p *pod) loader.Pod {
	open := p.workload.Down == mesh.DownOpen
	return loader.Pod{Addrs: p.kernelAddrs, OutOpen: open, InOpen: open && p.workload.Mode == mesh.Permissive, Probes: p.probes}
}

func samePod(a, b loader.Pod) bool {
	return a.OutOpen == b.OutOpen && a.InOpen == b.InOpen && slices.Equal(a.Addrs, b.Addrs) && slices.Equal(a.Probes, b.Probes)
}

// part has a running pod take plaintext, whatever its mode was, and un-enrols it later: those who are still about to reach it by mTLS, because
// word that it leaves has not come to them yet, would find nobody.
func (m *Manager) part(ctx context.Context, p *pod) error {
	if p.parts.IsZero() {
		p.parts = time.Now().Add(partAfter)
		time.AfterFunc(partAfter, m.Kick)
	}
	if !time.Now().Before(p.parts) {
		return m.leave(ctx, p)
	}
	w := p.workload
	w.Mode = mesh.Permissive
	if m.link == nil || !p.held || sameWorkload(&p.told, &w) {
		return nil
	}
	if _, err := m.link.Call(ctx, &node.Message{Pod: &node.Pod{Cookie: p.cookie, Workload: w}}); err != nil {
		return err
	}
	p.told = w
	return nil
}

// leave un-enrols a running pod: nothing new is steered from now on, while its connections go on to their end. Rules,
// routes and lookup program stay until then, for those connections need them.
func (m *Manager) leave(ctx context.Context, p *pod) error {
	if err := m.cfg.Datapath.Unenrol(p.cookie); err != nil {
		return err
	}
	p.enrolled, p.leaving, p.kernel, p.parts = false, true, loader.Pod{}, time.Time{}
	m.cfg.Log.Info("pod un-enrolled; its connections go on", "pod", p.name().String())
	if m.link == nil || !p.held {
		return nil // Attach sees to it
	}
	_, err := m.link.Call(ctx, &node.Message{Remove: &node.Remove{Cookie: p.cookie, Drain: true, Usher: m.dissolved()}})
	return err
}

// dissolved reports whether there is to be no mesh any more: then connections are led out of it, not only let go on.
func (m *Manager) dissolved() bool {
	o, _ := m.cfg.Objects.Objects()
	return o.Policy != nil && o.Policy.Spec.Enrolment == v1alpha1.EnrolmentNone
}

// left removes what an un-enrolled pod's connections needed, when there are none: those of a proxy that another one has followed go on, and
// of them no proxy that the agent can ask knows. The kernel does.
func (m *Manager) left(p *pod) error {
	netns, err := m.open(p)
	if err == nil {
		defer netns.Close()
		if busy, err := podnet.Steered(netns); busy || err != nil {
			time.AfterFunc(retryAfter, m.Kick)
			return err
		}
		err = podnet.Teardown(netns)
	} else {
		err = nil // the namespace is gone, with all that was in it
	}
	if err = errors.Join(m.removeKernel(p.cookie), err); err == nil {
		p.leaving = false
		m.cfg.Log.Info("pod has left the mesh", "pod", p.name().String())
	}
	return err
}

// drained is the proxy's word that a leaving pod has no connection any more.
func (m *Manager) drained(cookie uint64) {
	m.lock()
	defer m.mu.Unlock()
	p := m.pods[cookie]
	if p == nil || !p.leaving {
		return // it came back, or is gone
	}
	p.held = false
	defer m.observed()
	if err := m.left(p); err != nil {
		p.fault = err
		m.Kick()
	}
}

// removeKernel removes the pod from the kernel, in the order that lets nothing be steered into the void.
func (m *Manager) removeKernel(cookie uint64) error {
	d := m.cfg.Datapath
	return errors.Join(d.Unenrol(cookie), d.DetachLookup(cookie), d.ClearListeners(cookie), d.DropCounters(cookie))
}

// detach forgets one attachment, and with the last one the pod, at once. What the kernel would not give up is left to
// be removed later: no attachment remains that could remind of it.
func (m *Manager) detach(ctx context.Context, p *pod, key store.Key) error {
	if len(p.attachments) > 1 {
		delete(p.attachments, key)
		return m.cfg.Store.Delete(key)
	}
	var errs []error
	errs = append(errs, m.cfg.Datapath.Unenrol(p.cookie))
	// A wiring that failed half-way, or whose answer was lost, has left more than the flags say.
	wired := p.workload.Meshed || p.enrolled || p.leaving || p.held
	if m.link != nil && wired {
		_, err := m.link.Call(ctx, &node.Message{Remove: &node.Remove{Cookie: p.cookie}})
		errs = append(errs, err)
	}
	if err := m.removeKernel(p.cookie); err != nil {
		m.debris[p.cookie] = true
		errs = append(errs, err)
	}
	if wired {
		if netns, err := m.open(p); err == nil {
			errs = append(errs, podnet.Teardown(netns))
			netns.Close()
		}
	}
	delete(m.pods, p.cookie)
	errs = append(errs, m.cfg.Store.Delete(key))
	return errors.Join(errs...)
}

// tidy removes what the kernel still has of pods that are gone. It reports whether nothing is left.
func (m *Manager) tidy() bool {
	for cookie := range m.debris {
		if m.pods[cookie] == nil {
			if err := m.removeKernel(cookie); err != nil {
				m.cfg.Log.Error("kernel state of a removed pod is still there; trying again", "cookie", cookie, "error", err)
				continue
			}
		}
		delete(m.debris, cookie)
	}
	return len(m.debris) == 0
}

// release ends the pod of which no record is left, when its namespace is removed: its DEL names nothing else.
func (m *Manager) release(ctx context.Context, path string) {
	netns, err := podnet.Open(path)
	if err != nil {
		return
	}
	defer netns.Close()
	cookie := netns.Cookie
	if !m.alone[cookie] {
		return
	}
	if m.link != nil {
		_, err = m.link.Call(ctx, &node.Message{Remove: &node.Remove{Cookie: cookie}})
	}
	if err = errors.Join(err, m.removeKernel(cookie), podnet.Teardown(netns)); err != nil {
		m.cfg.Log.Warn("pod without a record removed, not without trouble", "cookie", cookie, "error", err)
		m.debris[cookie] = true
	}
	delete(m.alone, cookie)
}

// inspect attaches again what the kernel has lost of the programs at the cgroup, and has the reconciliation that follows compare every pod.
func (m *Manager) inspect() {
	if err := m.cfg.Datapath.CheckHooks(); err != nil {
		m.cfg.Log.Error("programs at the cgroup are lost; attaching them again", "found", err)
		if err := m.cfg.Datapath.RepairHooks(); err != nil {
			m.cfg.Log.Error("programs not attached; trying again", "error", err)
		}
	}
	for cookie := range m.alone {
		if alive, err := m.cfg.Datapath.Alive(cookie); err == nil && !alive {
			m.cfg.Log.Info("removing what is left of a pod without a record: its namespace is gone", "cookie", cookie)
			delete(m.alone, cookie)
			m.debris[cookie] = true
		}
	}
	for _, p := range m.pods {
		p.doubtful = true
	}
}
