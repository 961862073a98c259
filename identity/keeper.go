package identity

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
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
	// retryFirst is the pause after a first failure; it doubles up to retryMost, or up to retryMissing when there is no
	// valid leaf: somebody waits for that one.
	retryFirst   = time.Second
	retryMost    = 5 * time.Minute
	retryMissing = 5 * time.Second
	// grace is how long a leaf is kept that nobody wants: a pod is being wired, or will soon have a successor.
	grace = 10 * time.Minute
	// replaceWithin is the time in which leaves are replaced whose root is not trusted any more.
	replaceWithin = 10 * time.Second
)

// Issuer makes leaves; a *CA is one. It must be safe for concurrent use.
type Issuer interface {
	// Certify makes a leaf for each of ids.
	Certify(ctx context.Context, ids []mesh.Identity) Batch
	// Watch hands the trust bundle (PEM) to roots, as soon as it is known and whenever it has changed, until ctx ends.
	// Trouble is handed to failed; the last good bundle stays in force.
	Watch(ctx context.Context, roots func([]byte), failed func(error))
}

// Batch is what an Issuer made.
type Batch struct {
	Roots  []byte   // PEM: all roots that are trusted, those of the leaves among them; nil when nothing was issued
	Issued []Issued // in the order of the identities that were asked for
}

// Issued is a leaf, or the reason why there is none.
type Issued struct {
	Leaf *Leaf
	Err  error
}

// Keeper holds one valid leaf for every wanted identity, and the trust bundle. Run does all the work. It is safe for
// concurrent use.
type Keeper struct {
	issuer Issuer
	now    func() time.Time
	wake   chan struct{}

	mu       sync.Mutex
	roots    []byte
	kept     map[mesh.Identity]*kept
	changed  chan struct{} // closed, and made anew, when any of kept has changed
	failures uint64
}

type kept struct {
	leaf  *Leaf     // nil before the first; stays until it is replaced
	told  bool      // changed has returned for leaf, or for one before it that is still valid
	due   time.Time // when to ask for a leaf
	pause time.Duration
	fault error     // of the last attempt
	until time.Time // when to forget it; zero while it is wanted
}

func (v *kept) valid(now time.Time) bool { return v.leaf != nil && now.Before(v.leaf.NotAfter) }

// NewKeeper makes a Keeper that wants nothing. now is the clock; nil means time.Now.
func NewKeeper(issuer Issuer, now func() time.Time) *Keeper {
	if now == nil {
		now = time.Now
	}
	return &Keeper{issuer: issuer, now: now, wake: make(chan struct{}, 1), kept: map[mesh.Identity]*kept{},
		changed: make(chan struct{})}
}

// Want says which identities are needed from now on. It does not wait: Run asks for the leaves that are missing, and
// forgets those of others after a while.
func (k *Keeper) Want(ids []mesh.Identity) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.now()
	for _, id := range ids {
		k.entry(id).until = time.Time{}
	}
	for id, v := range k.kept {
		if v.until.IsZero() && !slices.Contains(ids, id) {
			v.until = now.Add(grace)
		}
	}
	k.kick()
}

// entry is id's; a new one is due now, and is forgotten unless it is wanted soon.
func (k *Keeper) entry(id mesh.Identity) *kept {
	v := k.kept[id]
	if v == nil {
		now := k.now()
		v = &kept{due: now, until: now.Add(grace)}
		k.kept[id] = v
	}
	return v
}

func (k *Keeper) kick() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// Await returns when Run has handed out a valid leaf of id, which it asks for if need be. It fails when ctx ends before.
func (k *Keeper) Await(ctx context.Context, id mesh.Identity) error {
	for {
		k.mu.Lock()
		v := k.entry(id)
		ready, changed := v.told && v.valid(k.now()), k.changed
		if !v.until.IsZero() {
			v.until = k.now().Add(grace)
		}
		k.mu.Unlock()
		if ready {
			return nil
		}
		k.kick()
		select {
		case <-changed:
		case <-ctx.Done():
			k.mu.Lock()
			defer k.mu.Unlock()
			return fmt.Errorf("wait for a certificate of %s: %w", id, errors.Join(k.entry(id).fault, ctx.Err()))
		}
	}
}

// Holds reports whether a valid leaf of id has been handed out.
func (k *Keeper) Holds(id mesh.Identity) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	v := k.kept[id]
	return v != nil && v.told && v.valid(k.now())
}

// Leaves is what the Keeper holds, sorted by identity, whether it is wanted or not.
func (k *Keeper) Leaves() []*Leaf {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := make([]*Leaf, 0, len(k.kept))
	for _, v := range k.kept {
		if v.leaf != nil {
			out = append(out, v.leaf)
		}
	}
	slices.SortFunc(out, func(a, b *Leaf) int { return strings.Compare(a.Identity.String(), b.Identity.String()) })
	return out
}

// Summary is a Keeper in numbers.
type Summary struct {
	Held, Missing int       // wanted identities with a valid leaf, and without
	Expiry        time.Time // of the wanted leaf that ends first, valid or not; zero when there is none
	Fault         error     // why that one was not replaced when it was time; nil: nothing is wrong with it
	Failures      uint64    // attempts that brought no leaf
}

// Summary counts.
func (k *Keeper) Summary() Summary {
	k.mu.Lock()
	defer k.mu.Unlock()
	now, s := k.now(), Summary{Failures: k.failures}
	for _, v := range k.kept {
		if !v.until.IsZero() {
			continue
		}
		if v.valid(now) {
			s.Held++
		} else {
			s.Missing++
		}
		if v.leaf != nil && (s.Expiry.IsZero() || v.leaf.NotAfter.Before(s.Expiry)) {
			s.Expiry, s.Fault = v.leaf.NotAfter, v.fault
		}
	}
	return s
}

// Roots is the trust bundle, PEM; nil before it is known. The caller must not change it.
func (k *Keeper) Roots() []byte {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.roots
}

// Run keeps leaves and roots until ctx ends. changed is called, always from one goroutine, with every batch of new
// leaves, and with none when only the roots are others; Roots are those to trust with them already. A failure is handed to
// failed, once while it stays the same, and tried again with growing pauses: the old leaf stays in use meanwhile.
func (k *Keeper) Run(ctx context.Context, changed func([]*Leaf), failed func(error)) {
	news := make(chan []byte)
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	wg.Go(func() {
		k.issuer.Watch(ctx, func(roots []byte) {
			select {
			case news <- roots:
			case <-ctx.Done():
			}
		}, failed)
	})
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case roots := <-news:
			if k.setRoots(roots) {
				changed(nil)
			}
			k.hurry() // the issuer can be reached
		case <-k.wake:
		case <-timer.C:
		}
		k.issue(ctx, changed, failed)
		timer.Reset(k.untilNext())
	}
}

func (k *Keeper) setRoots(roots []byte) (changed bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	changed = !bytes.Equal(roots, k.roots)
	k.roots = roots
	if !changed {
		return false
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(roots)
	for _, v := range k.kept {
		if v.leaf != nil && !v.leaf.under(pool, k.now()) {
			// Its root was taken away: peers refuse it by now, on all nodes at once.
			if soon := k.now().Add(rand.N(replaceWithin)); soon.Before(v.due) {
				v.due = soon
			}
		}
	}
	return true
}

// under reports whether the leaf leads to one of the roots.
func (l *Leaf) under(roots *x509.CertPool, now time.Time) bool {
	certs, err := decodeCerts(l.Chain)
	if err != nil {
		return false
	}
	between := x509.NewCertPool()
	for _, c := range certs[1:] {
		between.AddCert(c)
	}
	_, err = certs[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	return err == nil
}

// hurry makes failed attempts due.
func (k *Keeper) hurry() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, v := range k.kept {
		if v.fault != nil {
			v.due = k.now()
		}
	}
}

// issue asks for the leaves that are due, and hands them out.
func (k *Keeper) issue(ctx context.Context, changed func([]*Leaf), failed func(error)) {
	ids := k.dueNow()
	if len(ids) == 0 {
		return
	}
	batch := k.issuer.Certify(ctx, ids)
	if ctx.Err() != nil {
		return
	}
	leaves, err := k.take(ids, batch)
	if len(leaves) > 0 {
		changed(leaves)
		k.mu.Lock()
		for _, l := range leaves {
			if v := k.kept[l.Identity]; v != nil && v.leaf == l {
				v.told = true
			}
		}
		close(k.changed)
		k.changed = make(chan struct{})
		k.mu.Unlock()
	}
	if err != nil {
		failed(err)
	}
}

// dueNow lists the identities to ask a leaf for, and forgets what nobody wants.
func (k *Keeper) dueNow() (ids []mesh.Identity) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.now()
	for id, v := range k.kept {
		switch {
		case !v.until.IsZero() && now.After(v.until):
			delete(k.kept, id)
		case !now.Before(v.due):
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, func(a, b mesh.Identity) int { return strings.Compare(a.String(), b.String()) })
	return ids
}

// take stores what was issued, and plans the next attempts.
func (k *Keeper) take(ids []mesh.Identity, b Batch) (leaves []*Leaf, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.now()
	if len(b.Roots) > 0 {
		k.roots = b.Roots
	}
	var errs []error
	for i, id := range ids {
		v := k.kept[id]
		if v == nil {
			continue
		}
		leaf, err := b.Issued[i].Leaf, b.Issued[i].Err
		if err != nil {
			most := retryMissing
			if v.valid(now) {
				most = retryMost
			}
			v.pause = min(max(2*v.pause, retryFirst), most)
			if v.fault == nil || v.fault.Error() != err.Error() {
				errs = append(errs, err)
			}
			v.due, v.fault = now.Add(v.pause), err
			k.failures++
			continue
		}
		*v = kept{leaf: leaf, told: v.told && v.valid(now), due: renewalTime(now, leaf), until: v.until}
		leaves = append(leaves, leaf)
	}
	return leaves, errors.Join(errs...)
}

func (k *Keeper) untilNext() time.Duration {
	k.mu.Lock()
	defer k.mu.Unlock()
	d := time.Hour // a bound, so that a clock that was set is noticed
	now := k.now()
	for _, v := range k.kept {
		d = min(d, v.due.Sub(now))
		if !v.until.IsZero() {
			d = min(d, v.until.Sub(now)+1)
		}
	}
	return max(d, 0)
}

// renewalTime counts from now, when l was issued, and not from l's own begin, which forgives clocks.
func renewalTime(now time.Time, l *Leaf) time.Time {
	life := l.NotAfter.Sub(now)
	early := time.Duration(rand.Float64() * renewJitter * float64(life))
	return now.Add(life*2/3 - early)
}
