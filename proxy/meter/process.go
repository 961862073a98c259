package meter

import (
	"sync/atomic"
	"time"

	"conduit.io/conduit/mesh"
)

// Process counts what belongs to no pair of workloads. All fields may be used from any goroutine.
type Process struct {
	Accepted         atomic.Uint64 // connections accepted
	Open             atomic.Int64  // accepted connections that are open
	AcceptStops      atomic.Uint64 // times that a listener stopped for want of descriptors
	RefusedPlaintext atomic.Uint64 // connections refused by STRICT
	Unresolved       atomic.Uint64 // outbound connections to an address that nobody said in time who has it
	MeshOpen         atomic.Int64  // mTLS connections open, both roles
	MeshDialled      atomic.Uint64 // mTLS connections dialled
	Retries          atomic.Uint64 // streams sent again
	Snapshot         atomic.Uint64 // version in force
	Pods             atomic.Int64  // pods whose listeners are held
	Draining         atomic.Int64  // pods that are leaving

	// Certificates are those in use; set before the rest is used.
	Certificates []Certificate

	handshakes byReason
	refused    byReason
	abuse      [len(abuses)]atomic.Uint64
}

// Certificate is one that the process presents to others.
type Certificate struct {
	Name string    // where the configuration names it
	End  time.Time // when it, or one that it rests on, expires
}

// abuses index the counters of abuse.
var abuses = [...]mesh.Abuse{
	mesh.AbuseResets, mesh.AbuseContinuation, mesh.AbusePing, mesh.AbuseSettings, mesh.AbusePriority, mesh.AbuseFrames,
	mesh.AbuseEmpty, mesh.AbuseWindow, mesh.AbuseTinyWindow, mesh.AbuseLargeHead, mesh.AbuseSlowHead, mesh.AbuseSlowBody,
	mesh.AbuseUnread,
}

// HandshakeFailed counts a TLS handshake that failed, in either role.
func (p *Process) HandshakeFailed(r mesh.Reason) { p.handshakes[reasonIndex(r)].Add(1) }

// Abused counts an abuse by a peer; AbuseNone is none.
func (p *Process) Abused(kind mesh.Abuse) {
	for i := range abuses {
		if abuses[i] == kind {
			p.abuse[i].Add(1)
			return
		}
	}
}

// ConnectionFailed counts an accepted connection that the mesh itself ended.
func (p *Process) ConnectionFailed(r mesh.Reason) { p.ConnectionsFailed(r, 1) }

// ConnectionsFailed is ConnectionFailed for n of them.
func (p *Process) ConnectionsFailed(r mesh.Reason, n int) { p.refused[reasonIndex(r)].Add(uint64(n)) }
