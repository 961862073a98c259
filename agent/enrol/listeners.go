package enrol

import (
	"context"
	"os"
	"time"

	"conduit.io/conduit/agent/podnet"
	"conduit.io/conduit/api/kernel"
	"conduit.io/conduit/api/node"
)

// listeners makes sure that the proxy holds listeners of the pod, that the kernel has the same, and that the proxy knows
// the pod as it is now: when the proxy's word has come. Listeners that are alive are left alone.
func (m *Manager) listeners(p *pod, netns *podnet.Netns) (word, error) {
	if m.link == nil {
		return nothingSaid, errNoProxy
	}
	alive, err := m.cfg.Datapath.Listeners(p.cookie)
	if err != nil {
		return nothingSaid, err
	}
	msg := &node.Message{Pod: &node.Pod{Cookie: p.cookie, Workload: p.workload}}
	if p.held && !p.leaving && complete(alive) {
		if sameWorkload(&p.told, &p.workload) {
			return nothingSaid, nil
		}
		answer, err := m.link.Send(msg)
		if err != nil {
			return nothingSaid, err
		}
		return func(ctx context.Context) error {
			_, err := answer.Wait(ctx)
			if err == nil {
				p.told = msg.Pod.Workload
			}
			return err
		}, nil
	}
	if m.early(p, complete(alive)) {
		time.AfterFunc(retryAfter, m.Kick) // of its end nobody tells
		return nothingSaid, errEarly
	}
	l, err := podnet.Listen(netns)
	if err != nil {
		return nothingSaid, err
	}
	answer, err := m.link.Send(msg, append([]*os.File{netns.File}, l.Files[:]...)...)
	if err != nil {
		l.Close()
		return nothingSaid, err
	}
	return func(ctx context.Context) error {
		defer l.Close() // the proxy's copies stay: when it dies, the kernel empties the slots
		if _, err := answer.Wait(ctx); err != nil {
			return err
		}
		p.held, p.told = true, msg.Pod.Workload
		return m.mapListeners(p, l)
	}, nil
}

// mapListeners hands the kernel what the proxy accepts on.
func (m *Manager) mapListeners(p *pod, l *podnet.Listeners) error {
	for slot, f := range l.Files {
		if !l.Present[slot] {
			continue
		}
		if err := m.cfg.Datapath.SetListener(p.cookie, kernel.Slot(slot), int(f.Fd())); err != nil {
			return err
		}
	}
	return nil
}

// early reports whether the pod is better off with another proxy, which has all of its listeners (served), than with the linked one: that
// has started together with this agent, which has no certificates yet, or has not heard the controller. Who waits for an ADD does not want another one.
func (m *Manager) early(p *pod, served bool) bool {
	untold := m.cfg.Directory != nil && !m.cfg.Directory.Told()
	return served && !p.held && p.enrolled && !p.adding && (untold || !m.cfg.Keeper.Holds(p.workload.Identity(m.cfg.TrustDomain)))
}

// complete reports whether the slots are filled: those of IPv4, and those of IPv6 together or, in a namespace without
// it, not at all.
func complete(alive [kernel.SlotCount]bool) bool {
	return alive[node.InV4] && alive[node.OutV4] && alive[node.InV6] == alive[node.OutV6]
}
