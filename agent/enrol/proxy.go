package enrol

import (
	"context"
	"errors"
	"reflect"
	"time"

	"conduit.io/conduit/agent/discovery"
	"conduit.io/conduit/agent/proxylink"
	"conduit.io/conduit/api/node"
	"conduit.io/conduit/identity"
	"conduit.io/conduit/mesh"
)

// supersede puts next in the place of the snapshot when it says anything else.
func (m *Manager) supersede(next *node.Snapshot) {
	var version uint64
	if old := m.snapshot; old != nil {
		version = old.Version
		next.Version = version
		if reflect.DeepEqual(old, next) {
			return
		}
	}
	next.Version = discovery.NextVersion(version, time.Now())
	m.snapshot = next
}

// publish sends the snapshot to the proxy if it has another one.
func (m *Manager) publish(ctx context.Context) error {
	said, err := m.announce()
	if err != nil {
		return err
	}
	return said(ctx)
}

// announce is publish that does not wait for the proxy.
func (m *Manager) announce() (word, error) {
	before, now := m.sent, m.snapshot
	if m.link == nil || now == nil || before == now {
		return nothingSaid, nil
	}
	msg := &node.Message{Snapshot: now}
	if before != nil {
		msg = &node.Message{Update: node.Changes(before, now)}
	}
	answer, err := m.link.Send(msg)
	if err != nil {
		return nil, err
	}
	m.sent = nil // until it is known
	return func(ctx context.Context) error {
		_, err := answer.Wait(ctx)
		if err == nil {
			m.sent = now
		}
		return err
	}, nil
}

// renew makes the snapshot anew, and sends it to the proxy if it has changed. It reports whether the proxy has it.
func (m *Manager) renew(ctx context.Context) bool {
	m.refresh()
	err := m.publish(ctx)
	if err != nil {
		m.cfg.Log.Error("proxy was not brought up to date; trying again", "error", err)
	}
	return err == nil
}

func (m *Manager) certificates(leaves []*identity.Leaf) *node.Message {
	c := &node.Certificates{Roots: m.cfg.Keeper.Roots(), Leaves: []node.Leaf{}}
	for _, l := range leaves {
		c.Leaves = append(c.Leaves, node.Leaf{Identity: l.Identity, Chain: l.Chain, Key: l.Key})
	}
	return &node.Message{Certificates: c}
}

func (m *Manager) sendLeaves(ctx context.Context, leaves []*identity.Leaf) {
	if _, err := m.link.Call(ctx, m.certificates(leaves)); err != nil {
		m.cfg.Log.Error("proxy did not take certificates", "error", err)
		m.link.Close() // the next link begins with all of them
	}
}

// Certified hands new certificates to the proxy, and the roots to trust from now on. It is the Keeper's.
func (m *Manager) Certified(leaves []*identity.Leaf) {
	m.lock()
	defer m.mu.Unlock()
	if m.link != nil {
		m.sendLeaves(context.Background(), leaves)
	}
	if len(leaves) == 0 {
		m.cfg.Log.Info("trust bundle has changed")
	} else {
		m.cfg.Log.Info("certificates issued", "count", len(leaves))
	}
	m.Kick() // pods may have waited for one
}

// Attach brings a proxy that was just found or started up to date: kernel map, certificates, snapshot, pods. Pods whose
// listeners it holds keep them. It is the Supervisor's.
func (m *Manager) Attach(ctx context.Context, l *proxylink.Link) error {
	m.lock()
	defer m.mu.Unlock()
	// Always, also to a proxy that has one: the map may have been made anew, and a socket without its tag is steered.
	tags := m.cfg.Datapath.SockTags()
	if tags == nil {
		return errors.New("no descriptor of the socket-tag map could be made")
	}
	defer tags.Close()
	if _, err := l.Call(ctx, &node.Message{Kernel: &node.Kernel{}}, tags); err != nil {
		return err
	}
	m.refresh()
	if len(m.cfg.Keeper.Roots()) > 0 { // else the Keeper will call when it has some
		if _, err := l.Call(ctx, m.certificates(m.cfg.Keeper.Leaves())); err != nil {
			return err
		}
	}
	former := m.link // of a proxy that goes on with what it has: nil, unless this one takes its place
	m.link, m.sent = l, nil
	if err := m.publish(ctx); err != nil {
		m.link = nil
		return err
	}
	if err := m.adopt(ctx, l.Hello()); err != nil {
		m.link = nil
		return err
	}
	l.OnDrained(m.drained)
	if d := m.cfg.Directory; d != nil {
		if former == nil {
			d.Reset(l.Hello().Interest)
		} else { // its clients come here, and dial the same
			d.Lookup(&node.Lookup{Add: l.Hello().Interest})
		}
		l.OnLookup(d.Lookup)
	}
	m.reconcile(ctx)
	select {
	case <-l.Done():
		m.link = nil
		return errors.New("the link ended")
	default:
	}
	if former == nil {
		close(m.linked)
	}
	return nil
}

// adopt takes note of what the proxy holds, and takes away what it should not.
func (m *Manager) adopt(ctx context.Context, h *node.Hello) error {
	for _, p := range m.pods {
		p.held, p.told = false, mesh.Workload{}
	}
	remove := func(cookie uint64, drain bool) error {
		_, err := m.link.Call(ctx, &node.Message{Remove: &node.Remove{Cookie: cookie, Drain: drain}})
		return err
	}
	for _, cookie := range h.Pods {
		p := m.pods[cookie]
		if p == nil && m.alone[cookie] {
			continue
		}
		if p == nil {
			if err := remove(cookie, false); err != nil {
				return err
			}
			continue
		}
		p.held = !h.Displaced // else it gets listeners anew
		if p.leaving && !p.workload.Meshed {
			if err := remove(cookie, true); err != nil {
				return err
			}
		}
	}
	for _, cookie := range h.Draining {
		if p := m.pods[cookie]; p != nil {
			p.held, p.leaving = true, true
		} else if m.alone[cookie] {
			continue
		} else if err := remove(cookie, false); err != nil {
			return err
		}
	}
	return nil
}

// Detach notes that the link has ended. It is the Supervisor's.
func (m *Manager) Detach(l *proxylink.Link) {
	m.lock()
	defer m.mu.Unlock()
	if m.link != nil && m.link != l {
		return // another one has taken its place
	}
	select {
	case <-m.linked:
		m.linked = make(chan struct{})
	default:
	}
	m.link = nil
	for _, p := range m.pods {
		p.held = false
	}
	m.observed()
}

// Link is the proxy's link, or nil while there is none.
func (m *Manager) Link() *proxylink.Link {
	m.lock()
	defer m.mu.Unlock()
	return m.link
}

// awaitLink waits for a proxy.
func (m *Manager) awaitLink(ctx context.Context) error {
	for {
		m.lock()
		linked, up := m.linked, m.link != nil
		m.mu.Unlock()
		if up {
			return nil
		}
		select {
		case <-linked:
		case <-ctx.Done():
			return errNoProxy
		}
	}
}
