package mtls

import (
	"crypto/tls"
	"math/rand/v2"
	"time"

	"conduit.io/conduit/proxy/flow"
)

const (
	// leaseStep bounds how long a lease sleeps: the loop's clock stands still while the machine is suspended.
	leaseStep = time.Hour
	// leaseSpread is how much sooner than need be a lease may end, so that the connections which were made with one
	// certificate are not all replaced at once. It is at most a tenth of the lease.
	leaseSpread = 5 * time.Minute
)

// lease calls f when the certificates of a connection are about to expire.
type lease struct {
	clock flow.Clock
	now   func() time.Time
	end   time.Time
	f     func()
	timer flow.Timer
}

// Lease calls f on the loop of clock once no new stream should begin on a connection that was made with cfg and has the
// state cs: shortly before the first of the certificates, our own or the peer's, expires. A handshake at that time would
// fail, or find a certificate that was renewed.
func (s *Store) Lease(clock flow.Clock, cfg *tls.Config, cs *tls.ConnectionState, f func()) flow.Timer {
	l := &lease{clock: clock, now: s.now, end: expiry(cfg, cs), f: f}
	if early := min(leaseSpread, l.end.Sub(l.now())/10); early > 0 {
		l.end = l.end.Add(-rand.N(early))
	}
	l.arm()
	return l
}

// expiry is when the first of both sides' certificates does.
func expiry(cfg *tls.Config, cs *tls.ConnectionState) time.Time {
	end := cfg.Certificates[0].Leaf.NotAfter
	for _, c := range cs.PeerCertificates {
		if c.NotAfter.Before(end) {
			end = c.NotAfter
		}
	}
	return end
}

func (l *lease) arm() {
	l.timer = l.clock.After(min(l.end.Sub(l.now()), leaseStep), l.ring)
}

func (l *lease) ring() {
	if l.now().Before(l.end) {
		l.arm()
		return
	}
	l.f()
}

// Stop implements flow.Timer.
func (l *lease) Stop() { l.timer.Stop() }
