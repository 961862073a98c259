package identity

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"conduit.io/conduit/mesh"
)

// issuer counts, and makes leaves without keys.
type issuer struct {
	issued int
	fail   atomic.Bool
}

func (f *issuer) Issue(id mesh.Identity) (*Leaf, error) {
	if f.fail.Load() {
		return nil, errors.New("out of order")
	}
	f.issued++
	return &Leaf{Identity: id, NotBefore: time.Now(), NotAfter: time.Now().Add(LeafLife)}, nil
}

func TestKeeperIssuesWhatIsMissingAndDropsTheRest(t *testing.T) {
	f := &issuer{}
	k := NewKeeper(f, nil)
	api := mesh.Identity{TrustDomain: domain, Namespace: "shop", ServiceAccount: "api"}
	if got, err := k.Want([]mesh.Identity{web, api}); err != nil || len(got) != 2 {
		t.Fatalf("first Want: %d leaves, %v", len(got), err)
	}
	if got, err := k.Want([]mesh.Identity{api}); err != nil || len(got) != 0 {
		t.Fatalf("second Want: %d leaves, %v; want none new", len(got), err)
	}
	if l := k.Leaves(); len(l) != 1 || l[0].Identity != api {
		t.Fatalf("holds %v, want the one of api", l)
	}
}

func TestKeeperRenewsBetweenJitterAndTwoThirds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &issuer{}
		k := NewKeeper(f, nil)
		if _, err := k.Want([]mesh.Identity{web}); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		batches := make(chan time.Time, 10)
		go k.Run(ctx, func([]*Leaf) { batches <- time.Now() }, func(err error) { t.Error(err) })
		last := time.Now()
		for range 5 {
			at := <-batches
			age := at.Sub(last)
			if lo, hi := LeafLife*2/3-LeafLife/10, LeafLife*2/3+time.Second; age < lo || age > hi {
				t.Errorf("renewed at age %v, want %v to %v", age, lo, hi)
			}
			last = at
		}
		cancel()
		synctest.Wait()
		if f.issued != 6 {
			t.Errorf("%d leaves issued, want 6", f.issued)
		}
	})
}

func TestKeeperRetriesAndKeepsTheOldLeaf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &issuer{}
		k := NewKeeper(f, nil)
		if _, err := k.Want([]mesh.Identity{web}); err != nil {
			t.Fatal(err)
		}
		old := k.Leaves()[0]
		f.fail.Store(true)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		renewed := make(chan time.Time, 1)
		failures := make(chan time.Time, 1000)
		go k.Run(ctx, func([]*Leaf) { renewed <- time.Now() }, func(error) { failures <- time.Now() })
		first := <-failures
		if second := <-failures; second.Sub(first) != retryFirst {
			t.Errorf("second try after %v, want %v", second.Sub(first), retryFirst)
		}
		if k.Leaves()[0] != old {
			t.Error("the old leaf was given up on failure")
		}
		<-time.After(time.Hour)
		f.fail.Store(false)
		n := len(failures)
		if n > 20 {
			t.Errorf("%d tries in an hour: no growing pauses", n)
		}
		<-renewed
		if k.Leaves()[0] == old {
			t.Error("the leaf was not renewed")
		}
		cancel()
		synctest.Wait()
	})
}
