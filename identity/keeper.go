package identity

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"conduit.io/conduit/mesh"
)

const (
	// renewJitter spreads renewals: a leaf is renewed at 2/3 of its life, less up to this part of its life, so that
	// a node's certificates are not all renewed at one moment.
	renewJitter = 0.1
	retryFirst  = time.Second
	retryMost   = 5 * time.Minute
)

// Issuer makes leaves; a *CA is one.
type Issuer interface {
	Issue(id mesh.Identity) (*Leaf, error)
}

// Keeper holds one valid leaf for every wanted identity. It is safe for concurrent use.
type Keeper struct {
	issuer Issuer
	now    func() time.Time
	wake   chan struct{}

	mu     sync.Mutex
	leaves map[mesh.Identity]*kept
}

type kept struct {
	leaf    *Leaf
	renewAt time.Time
	retry   time.Duration
}

// NewKeeper makes a Keeper that wants nothing. now is the clock; nil means time.Now.
func NewKeeper(issuer Issuer, now func() time.Time) *Keeper {
	if now == nil {
		now = time.Now
	}
	return &Keeper{issuer: issuer, now: now, wake: make(chan struct{}, 1), leaves: map[mesh.Identity]*kept{}}
}

// Want says which identities are needed from now on: missing leaves are issued and returned, others are dropped. The
// error joins the failures; identities that failed are tried again at the next Want.
func (k *Keeper) Want(ids []mesh.Identity) (issued []*Leaf, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	want := make(map[mesh.Identity]bool, len(ids))
	var errs []error
	for _, id := range ids {
		want[id] = true
		if have := k.leaves[id]; have != nil && k.now().Before(have.leaf.NotAfter) {
			continue
		}
		leaf, err := k.issuer.Issue(id)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		k.leaves[id] = &kept{leaf: leaf, renewAt: renewalTime(leaf)}
		issued = append(issued, leaf)
	}
	for id := range k.leaves {
		if !want[id] {
			delete(k.leaves, id)
		}
	}
	select {
	case k.wake <- struct{}{}:
	default:
	}
	return issued, errors.Join(errs...)
}

// Leaves is what the Keeper holds, sorted by identity.
func (k *Keeper) Leaves() []*Leaf {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := make([]*Leaf, 0, len(k.leaves))
	for _, v := range k.leaves {
		out = append(out, v.leaf)
	}
	slices.SortFunc(out, func(a, b *Leaf) int { return strings.Compare(a.Identity.String(), b.Identity.String()) })
	return out
}

// Run renews leaves until ctx ends, and hands every batch of new ones to renewed. A failure is handed to failed and
// tried again with growing pauses: the old leaf stays in use meanwhile.
func (k *Keeper) Run(ctx context.Context, renewed func([]*Leaf), failed func(error)) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-k.wake:
		case <-timer.C:
		}
		leaves, err := k.renewDue()
		if len(leaves) > 0 {
			renewed(leaves)
		}
		if err != nil {
			failed(err)
		}
		timer.Reset(k.untilNext())
	}
}

func (k *Keeper) renewDue() (out []*Leaf, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.now()
	var errs []error
	for id, v := range k.leaves {
		if now.Before(v.renewAt) {
			continue
		}
		leaf, err := k.issuer.Issue(id)
		if err != nil {
			v.retry = min(max(2*v.retry, retryFirst), retryMost)
			v.renewAt = now.Add(v.retry)
			errs = append(errs, err)
			continue
		}
		k.leaves[id] = &kept{leaf: leaf, renewAt: renewalTime(leaf)}
		out = append(out, leaf)
	}
	return out, errors.Join(errs...)
}

func (k *Keeper) untilNext() time.Duration {
	k.mu.Lock()
	defer k.mu.Unlock()
	d := time.Hour // a bound, so that a clock that was set is noticed
	now := k.now()
	for _, v := range k.leaves {
		d = min(d, v.renewAt.Sub(now))
	}
	return max(d, 0)
}

func renewalTime(l *Leaf) time.Time {
	life := l.NotAfter.Sub(l.NotBefore)
	early := time.Duration(rand.Float64() * renewJitter * float64(life))
	return l.NotBefore.Add(life*2/3 - early)
}
