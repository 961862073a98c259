package identity

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"conduit.io/conduit/mesh"
)

var api = mesh.Identity{TrustDomain: domain, Namespace: "shop", ServiceAccount: "api"}

// issuer counts, and makes leaves without keys.
type issuer struct {
	roots chan []byte // what Watch tells

	mu     sync.Mutex
	issued []mesh.Identity
	fail   bool
	failed []time.Time
}

var errOutOfOrder = errors.New("out of order")

func (f *issuer) Certify(_ context.Context, ids []mesh.Identity) Batch {
	f.mu.Lock()
	defer f.mu.Unlock()
	b := Batch{Issued: make([]Issued, len(ids))}
	for i, id := range ids {
		if f.fail {
			f.failed = append(f.failed, time.Now())
			b.Issued[i].Err = errOutOfOrder
			continue
		}
		f.issued = append(f.issued, id)
		b.Issued[i].Leaf = &Leaf{Identity: id, NotAfter: time.Now().Add(LeafLife)}
	}
	return b
}

func (f *issuer) Watch(ctx context.Context, roots func([]byte), _ func(error)) {
	for {
		select {
		case r := <-f.roots:
			roots(r)
		case <-ctx.Done():
			return
		}
	}
}

func (f *issuer) setFail(fail bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail = fail
}

func (f *issuer) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.issued)
}

// keeping runs a Keeper in a bubble; what it hands out goes to batches, its failures to faults.
func keeping(t *testing.T, test func(t *testing.T, k *Keeper, f *issuer, batches chan []*Leaf, faults chan time.Time)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		f := &issuer{roots: make(chan []byte)}
		k := NewKeeper(f, nil)
		batches, faults := make(chan []*Leaf, 1000), make(chan time.Time, 10000)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			k.Run(ctx, func(l []*Leaf) { batches <- l }, func(error) { faults <- time.Now() })
		})
		test(t, k, f, batches, faults)
		cancel()
		wg.Wait()
	})
}

func TestKeeperIssuesWhatIsMissingAndForgetsTheRest(t *testing.T) {
	keeping(t, func(t *testing.T, k *Keeper, f *issuer, batches chan []*Leaf, _ chan time.Time) {
		k.Want([]mesh.Identity{web, api})
		synctest.Wait()
		if got := <-batches; len(got) != 2 || !k.Holds(web) || !k.Holds(api) {
			t.Fatalf("first Want: %d leaves", len(got))
		}
		k.Want([]mesh.Identity{api})
		<-time.After(grace / 2)
		k.Want([]mesh.Identity{api, web}) // back again, in time
		<-time.After(2 * grace)
		if !k.Holds(web) || f.count() != 2 {
			t.Fatalf("holds web: %v, %d issued; a leaf that was wanted again should have been kept", k.Holds(web), f.count())
		}
		k.Want([]mesh.Identity{api})
		<-time.After(2 * grace)
		if l := k.Leaves(); len(l) != 1 || l[0].Identity != api || len(batches) != 0 {
			t.Fatalf("holds %d leaves, %d batches; want the one of api, and none new", len(l), len(batches))
		}
	})
}

func TestKeeperAwait(t *testing.T) {
	keeping(t, func(t *testing.T, k *Keeper, f *issuer, batches chan []*Leaf, _ chan time.Time) {
		if err := k.Await(t.Context(), web); err != nil || len(batches) != 1 {
			t.Fatalf("Await: %v; %d batches were handed out before it returned, want 1", err, len(batches))
		}
		f.setFail(true)
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		err := k.Await(ctx, api)
		if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, errOutOfOrder) || !strings.Contains(err.Error(), api.String()) {
			t.Errorf("Await without an issuer: %v; want the identity, the deadline, and the cause", err)
		}
		done := make(chan error)
		go func() { done <- k.Await(t.Context(), api) }()
		<-time.After(time.Minute)
		f.setFail(false)
		began := time.Now()
		if err := <-done; err != nil || time.Since(began) > retryMissing {
			t.Errorf("Await: %v, %v after the issuer has come back", err, time.Since(began))
		}
	})
}

// What Run has not handed out yet nobody may rely on.
func TestKeeperHandsOutBeforeItHolds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := NewKeeper(&issuer{}, nil)
		ctx, cancel := context.WithCancel(t.Context())
		handing, hand := make(chan bool), make(chan bool)
		go k.Run(ctx, func([]*Leaf) { handing <- true; <-hand }, func(error) {})
		awaited := make(chan error, 1)
		go func() { awaited <- k.Await(ctx, web) }()
		<-handing
		synctest.Wait()
		if k.Holds(web) || len(awaited) != 0 {
			t.Error("the leaf is relied upon while it is still being handed out")
		}
		hand <- true
		synctest.Wait()
		if !k.Holds(web) || len(awaited) != 1 {
			t.Error("the leaf has been handed out, and nobody is told")
		}
		cancel()
		synctest.Wait()
	})
}

func TestKeeperRenewsBetweenJitterAndTwoThirds(t *testing.T) {
	keeping(t, func(t *testing.T, k *Keeper, f *issuer, batches chan []*Leaf, faults chan time.Time) {
		k.Want([]mesh.Identity{web})
		<-batches
		last := time.Now()
		for range 5 {
			<-batches
			age := time.Since(last)
			if lo, hi := LeafLife*2/3-LeafLife/10, LeafLife*2/3+time.Second; age < lo || age > hi {
				t.Errorf("renewed at age %v, want %v to %v", age, lo, hi)
			}
			if !k.Holds(web) {
				t.Error("nothing was held during the renewal")
			}
			last = time.Now()
		}
		if f.count() != 6 || len(faults) != 0 {
			t.Errorf("%d leaves issued, %d faults; want 6 and none", f.count(), len(faults))
		}
	})
}

func TestKeeperRetriesAndKeepsTheOldLeaf(t *testing.T) {
	keeping(t, func(t *testing.T, k *Keeper, f *issuer, batches chan []*Leaf, faults chan time.Time) {
		k.Want([]mesh.Identity{web})
		<-batches
		old := k.Leaves()[0]
		f.setFail(true)
		<-faults
		<-time.After(time.Hour)
		f.mu.Lock()
		tries := f.failed
		f.mu.Unlock()
		if pause := tries[1].Sub(tries[0]); pause != retryFirst || len(faults) != 0 {
			t.Errorf("second try after %v, want %v; the same failure was told %d times more", pause, retryFirst, len(faults))
		}
		if s := k.Summary(); s.Held != 1 || s.Fault == nil {
			t.Errorf("while it cannot be renewed: %+v", s)
		}
		if n := len(tries); n > 20 || k.Leaves()[0] != old || !k.Holds(web) {
			t.Errorf("%d tries in an hour (want growing pauses); holds the old leaf: %v", n, k.Leaves()[0] == old)
		}
		<-time.After(LeafLife) // it has expired: somebody waits now
		if k.Holds(web) || k.Leaves()[0] != old {
			t.Error("an expired leaf is not valid, but stays until it is replaced")
		}
		if s := k.Summary(); s.Held != 0 || s.Missing != 1 || !s.Expiry.Equal(old.NotAfter) || s.Failures < 20 || s.Fault == nil {
			t.Errorf("%+v", s)
		}
		f.setFail(false)
		began := time.Now()
		<-batches
		if k.Leaves()[0] == old || time.Since(began) > retryMissing {
			t.Errorf("an expired leaf was replaced after %v; want %v at most", time.Since(began), retryMissing)
		}
		if s := k.Summary(); s.Fault != nil {
			t.Errorf("when it is renewed: %+v", s)
		}
	})
}

func TestKeeperFollowsTheRoots(t *testing.T) {
	keeping(t, func(t *testing.T, k *Keeper, f *issuer, batches chan []*Leaf, faults chan time.Time) {
		f.setFail(true)
		k.Want([]mesh.Identity{web})
		<-faults
		f.setFail(false)
		began := time.Now()
		f.roots <- []byte("one")
		if got := <-batches; len(got) != 0 || string(k.Roots()) != "one" {
			t.Fatalf("first roots: %d leaves, roots %q; want none and the roots", len(got), k.Roots())
		}
		if got := <-batches; len(got) != 1 || time.Since(began) != 0 {
			t.Fatalf("%d leaves after %v; an issuer that speaks again should be asked at once", len(got), time.Since(began))
		}
		f.roots <- []byte("one")
		synctest.Wait()
		if len(batches) != 0 {
			t.Error("roots that are as before were handed out")
		}
		f.roots <- []byte("two")
		if got := <-batches; len(got) != 0 || !slices.Equal(k.Roots(), []byte("two")) || !k.Holds(web) {
			t.Errorf("new roots: %d leaves, roots %q, holds web: %v", len(got), k.Roots(), k.Holds(web))
		}
	})
}
