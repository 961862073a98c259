package enrol

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"conduit.io/conduit/agent/discovery"
	"conduit.io/conduit/agent/podnet"
	"conduit.io/conduit/agent/proxylink"
	"conduit.io/conduit/agent/store"
	"conduit.io/conduit/api/podapi"
)

// containerID is what CNI allows (SPEC, "Parameters"); it becomes part of a file name.
var containerID = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)

func fail(code podapi.Code, hint, format string, args ...any) *podapi.Error {
	return &podapi.Error{Code: code, Message: fmt.Sprintf(format, args...), Hint: hint}
}

// identify checks the fields that name an attachment.
func identify(r *podapi.Request) *podapi.Error {
	switch {
	case !containerID.MatchString(r.ContainerID) || len(r.ContainerID) > 200:
		return fail(podapi.CodeBadRequest, "", "container ID %q is not one that CNI allows", r.ContainerID)
	case r.IfName == "" || len(r.IfName) > 15 || strings.ContainsAny(r.IfName, "/: \t\n") || r.IfName == "." || r.IfName == "..":
		return fail(podapi.CodeBadRequest, "", "interface name %q is not one that CNI allows", r.IfName)
	}
	return nil
}

// Add wires a pod. wired is false for a pod that is not part of the mesh: it is remembered, so that a label enrols it
// later. An attachment that is there already is brought up to date.
func (m *Manager) Add(ctx context.Context, r *podapi.Request) (wired bool, e *podapi.Error) {
	if e := identify(r); e != nil {
		return false, e
	}
	if r.Namespace == "" || r.Pod == "" {
		return false, fail(podapi.CodeBadRequest, "the runtime must pass K8S_POD_NAMESPACE and K8S_POD_NAME in CNI_ARGS",
			"the request names no pod")
	}
	a, netns, e := m.attachment(r)
	if e != nil {
		return false, e
	}
	defer netns.Close()
	pod, e := m.describe(ctx, a)
	if e != nil {
		return false, e
	}
	objects, _ := m.cfg.Objects.Objects()
	a.Workload = discovery.Workload(objects, pod, m.cfg.Node)
	a.Workload.Addrs = a.Addrs // as refresh will have it: it is stored once
	for {
		if a.Workload.Meshed {
			if err := m.awaitLink(ctx); err != nil {
				return false, fail(podapi.CodeNotReady, "see the agent's log and proxy.log in its run directory",
					"the node's proxy is not running, so pod %s/%s cannot be wired", a.Namespace, a.Pod)
			}
			if err := m.cfg.Keeper.Await(ctx, a.Workload.Identity(m.cfg.TrustDomain)); err != nil {
				return false, fail(podapi.CodeNotReady, "see the agent's log; the runtime will try again",
					"pod %s/%s cannot be wired: %v", a.Namespace, a.Pod, err)
			}
		}
		if a.Workload.Meshed { // before the lock is taken: it may be a matter of seconds
			if err := podnet.Settle(ctx, netns); err != nil {
				return false, fail(podapi.CodeBadNetns, "", "look for tentative addresses in %s: %v", a.Netns, err)
			}
		}
		wired, err := m.attach(ctx, a, netns)
		switch {
		case err == nil:
			return wired, nil
		case ctx.Err() == nil && (errors.Is(err, proxylink.ErrClosed) || errors.Is(err, errNoProxy) || errors.Is(err, errNoLeaf)):
			continue // the proxy died just now, and the next one is on its way; or the pod is another one by now
		case errors.Is(err, podnet.ErrGone):
			return false, fail(podapi.CodeBadNetns, "", "network namespace %s went away: %v", a.Netns, err)
		}
		return false, fail(podapi.CodeInternal, "see the agent's log; the runtime will try again",
			"wire pod %s/%s: %v", a.Namespace, a.Pod, err)
	}
}

// attachment looks at the namespace that the request names. The caller must close it.
func (m *Manager) attachment(r *podapi.Request) (*store.Attachment, *podnet.Netns, *podapi.Error) {
	const hint = "CNI_NETNS must be the path of the pod's network namespace; pods with hostNetwork cannot be part of the mesh"
	netns, err := podnet.Open(r.Netns)
	if err != nil {
		return nil, nil, fail(podapi.CodeBadNetns, hint, "%v", err)
	}
	a := &store.Attachment{
		Network: r.Network, ContainerID: r.ContainerID, IfName: r.IfName, Netns: r.Netns, Cookie: netns.Cookie,
		Namespace: r.Namespace, Pod: r.Pod, PodUID: r.PodUID,
	}
	for _, addr := range r.Addrs {
		if addr = addr.Unmap().WithZone(""); addr.IsGlobalUnicast() && !slices.Contains(a.Addrs, addr) {
			a.Addrs = append(a.Addrs, addr)
		}
	}
	return a, netns, nil
}

// attach records the attachment and wires its pod, which is in netns. When that fails, nothing of it is left.
func (m *Manager) attach(ctx context.Context, a *store.Attachment, netns *podnet.Netns) (wired bool, err error) {
	m.lock()
	defer m.mu.Unlock()
	defer m.observed()
	m.displace(ctx, a)
	p := m.pods[a.Cookie]
	if p == nil {
		p = &pod{cookie: a.Cookie, attachments: map[store.Key]*store.Attachment{}, workload: a.Workload}
		m.pods[a.Cookie] = p
		delete(m.alone, a.Cookie)
	}
	p.adding = true
	defer func() { p.adding = false }()
	before := p.attachments[a.Key()]
	delete(m.deleted, a.Key())
	p.attachments[a.Key()] = a
	if err = m.cfg.Store.Put(a); err == nil {
		m.refresh()
		err = m.bring(ctx, p, netns)
	}
	if err == nil && p.workload.Meshed && !p.held {
		err = errNoProxy
	}
	if err == nil {
		p.fault = nil
		return p.enrolled, nil
	}
	if before == nil {
		if derr := m.detach(context.WithoutCancel(ctx), p, a.Key()); derr != nil {
			m.cfg.Log.Error("attachment that could not be wired was not undone", "pod", p.name().String(), "error", derr)
		}
		m.refresh()
	}
	return false, err
}

// bring tells the proxy of what has come with p, and makes p what it should be.
func (m *Manager) bring(ctx context.Context, p *pod, netns *podnet.Netns) error {
	said, err := m.announce()
	switch {
	case err == nil && p.workload.Meshed:
		return m.wire(ctx, p, netns, said)
	case err == nil:
		err = said(ctx)
	}
	if !p.workload.Meshed && (err == nil || errors.Is(err, proxylink.ErrClosed)) {
		return m.sync(ctx, p)
	}
	return err
}

// displace drops an attachment of the same key whose namespace was another one: a sandbox that was made anew.
func (m *Manager) displace(ctx context.Context, a *store.Attachment) {
	for _, p := range m.sorted() {
		if _, ok := p.attachments[a.Key()]; ok && p.cookie != a.Cookie {
			if err := m.detach(ctx, p, a.Key()); err != nil {
				m.cfg.Log.Error("earlier attachment not dropped", "pod", p.name().String(), "error", err)
			}
		}
	}
}

func (m *Manager) find(key store.Key) *pod {
	for _, p := range m.pods {
		if _, ok := p.attachments[key]; ok {
			return p
		}
	}
	return nil
}

// Del forgets an attachment. It never fails a pod's removal: what goes wrong is logged, and swept later.
func (m *Manager) Del(ctx context.Context, r *podapi.Request) *podapi.Error {
	m.lock()
	defer m.mu.Unlock()
	key := store.Key{ContainerID: r.ContainerID, IfName: r.IfName}
	if m.cfg.Records != nil {
		m.deleted[key] = true
	}
	p := m.find(key)
	if p == nil {
		m.release(ctx, r.Netns)
		return nil
	}
	m.drop(ctx, p, key)
	return nil
}

func (m *Manager) drop(ctx context.Context, p *pod, key store.Key) {
	name := p.name().String()
	defer m.observed()
	if err := m.detach(ctx, p, key); err != nil {
		m.cfg.Log.Warn("pod removed, not without trouble", "pod", name, "container", key.ContainerID, "error", err)
	} else {
		m.cfg.Log.Info("pod removed", "pod", name, "container", key.ContainerID)
	}
	m.refresh()
	if err := m.publish(ctx); err != nil {
		m.cfg.Log.Warn("proxy was not told of the removal", "pod", name, "error", err)
	}
	m.Kick()
}

// GC drops the network's attachments that are not among the valid ones.
func (m *Manager) GC(ctx context.Context, r *podapi.Request) *podapi.Error {
	m.lock()
	defer m.mu.Unlock()
	for _, p := range m.sorted() {
		for key, a := range p.attachments {
			valid := slices.ContainsFunc(r.Valid, func(v podapi.Attachment) bool {
				return v.ContainerID == key.ContainerID && v.IfName == key.IfName
			})
			if a.Network == r.Network && !valid {
				m.drop(ctx, p, key)
			}
		}
	}
	return nil
}

// Check compares the attachment's pod with kernel, namespace and proxy.
func (m *Manager) Check(_ context.Context, r *podapi.Request) (wired bool, e *podapi.Error) {
	if e := identify(r); e != nil {
		return false, e
	}
	m.lock()
	defer m.mu.Unlock()
	const again = "the agent repairs it within seconds; if not, see its log, and delete the pod"
	p := m.find(store.Key{ContainerID: r.ContainerID, IfName: r.IfName})
	if p == nil {
		return false, fail(podapi.CodeMismatch, "delete the pod, so that it is added again", "container %s with interface %s was never added",
			r.ContainerID, r.IfName)
	}
	netns, err := m.open(p)
	if err != nil {
		return false, fail(podapi.CodeMismatch, "delete the pod, so that it is added again", "%v", err)
	}
	defer netns.Close()
	if p.workload.Meshed != p.enrolled {
		return false, fail(podapi.CodeMismatch, again, "pod %s: wanted in the mesh %v, enrolled %v", p.name(), p.workload.Meshed, p.enrolled)
	}
	if !p.enrolled {
		return false, nil
	}
	defer func() {
		if e != nil {
			p.doubtful = true
			m.Kick() // what CHECK finds is repaired now, not at the next inspection
		}
	}()
	if err := m.cfg.Datapath.Check(p.cookie); err != nil {
		return false, fail(podapi.CodeMismatch, again, "pod %s: %v", p.name(), err)
	}
	if err := podnet.Verify(netns, podnet.Net{IfName: p.first().IfName, Addrs: p.kernelAddrs}); err != nil {
		return false, fail(podapi.CodeMismatch, again, "pod %s: %v", p.name(), err)
	}
	alive, err := m.cfg.Datapath.Listeners(p.cookie)
	if err != nil || !complete(alive) {
		return false, fail(podapi.CodeMismatch, again, "pod %s: the proxy's listeners are not all there: %v (%v)", p.name(), alive, err)
	}
	return true, nil
}

// Status says whether ADD can be served.
func (m *Manager) Status(context.Context) *podapi.Error {
	if m.Link() == nil {
		return fail(podapi.CodeNotReady, "it is started again by itself; see proxy.log in the agent's run directory",
			"the node's proxy is not ready")
	}
	if err := m.cfg.Datapath.CheckHooks(); err != nil {
		return fail(podapi.CodeNotReady, "restart the agent", "%v", err)
	}
	return nil
}
