package node_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"conduit.io/conduit/api/node"
	"conduit.io/conduit/mesh"
)

// named is a snapshot with a workload and a Service for each letter, at an address of its own, and an address of nobody.
func named(version uint64, letters string) *node.Snapshot {
	s := &node.Snapshot{Version: version, TrustDomain: "test", Node: "one", OnDemand: len(letters)%2 == 0}
	for _, c := range []byte(letters) {
		a := netip.AddrFrom4([4]byte{10, 0, 0, c})
		s.Workloads = append(s.Workloads, mesh.Workload{UID: string(c), Addrs: []netip.Addr{a}})
		s.Services = append(s.Services, mesh.Service{Name: string(c)})
		s.Nobody = append(s.Nobody, netip.AddrPortFrom(a, 80))
		s.ByPort = append(s.ByPort, a)
	}
	return s
}

// sent is u as the proxy reads it.
func sent(t *testing.T, u *node.Update) *node.Update {
	t.Helper()
	data, err := json.Marshal(u)
	out := &node.Update{}
	if err == nil {
		err = json.Unmarshal(data, out)
	}
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestUpdateSaysWhatChanged(t *testing.T) {
	const many = "abcdefghijklmnopqrstuvwxyz"
	for _, tt := range []struct {
		name, old, new string
		says           int // workloads
	}{
		{"nothing", many, many, 0},
		{"one more", "abcefghijklmnopqrstuvwxyz", many, 1},
		{"one more at the end", many, many + "~", 1},
		{"one less", many, "bcdefghijklmnopqrstuvwxyz", 0},
		{"another one", many, "abcdefghijklmnopqrsTuvwxyz", 1},
		{"two in a row", "abcd", "abXYcd", 2},
		{"a repeated one", "aaa", "aaaa", 1},
		{"a repeated one less", "aaaa", "aa", 0},
		{"all", "abc", "def", 3},
		{"the first", "", "abc", 3},
		{"no more", "abc", "", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			old, now := named(1, tt.old), named(2, tt.new)
			u := sent(t, node.Changes(old, now))
			if len(u.Snapshot.Workloads) != tt.says || len(u.Snapshot.Services) != tt.says || len(u.Snapshot.Nobody) != tt.says || len(u.Snapshot.ByPort) != tt.says {
				t.Errorf("the update has %d workloads, %d Services, %d and %d addresses, want %d", len(u.Snapshot.Workloads), len(u.Snapshot.Services),
					len(u.Snapshot.Nobody), len(u.Snapshot.ByPort), tt.says)
			}
			got, err := u.Apply(old)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, now) {
				t.Errorf("got %+v\nwant %+v", got, now)
			}
			if !reflect.DeepEqual(old, named(1, tt.old)) {
				t.Error("the earlier snapshot has changed")
			}
		})
	}
}

func TestUpdateOfAnotherSnapshotIsRefused(t *testing.T) {
	u := node.Changes(named(1, "abc"), named(2, "abcd"))
	for _, tt := range []struct {
		name string
		old  *node.Snapshot
		u    func(u *node.Update)
	}{
		{"no snapshot", nil, nil},
		{"a later one", named(2, "abc"), nil},
		{"more than there is", named(1, "ab"), nil},
		{"less than none", named(1, "abc"), func(u *node.Update) { u.Services.Last = -1 }},
		{"more than an int", named(1, "abc"), func(u *node.Update) { u.Nobody.First, u.Nobody.Last = 2, 1<<63-1 }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			u := *u
			if tt.u != nil {
				tt.u(&u)
			}
			if s, err := u.Apply(tt.old); err == nil || !strings.HasPrefix(err.Error(), "update snapshot: ") {
				t.Errorf("got %+v, %v", s, err)
			}
		})
	}
}

// FuzzUpdate: whatever two snapshots say, the update between them makes the later one of the earlier; and whatever an update says,
// it is applied or refused.
func FuzzUpdate(f *testing.F) {
	f.Add("abc", "abxc", 1, 2)
	f.Add("", "a", -1, 1<<62)
	f.Fuzz(func(t *testing.T, a, b string, first, last int) {
		old, now := named(1, a), named(2, b)
		u := node.Changes(old, now)
		if got, err := u.Apply(old); err != nil || fmt.Sprint(got) != fmt.Sprint(now) {
			t.Fatalf("%q to %q: %v, %v", a, b, got, err)
		}
		u.Workloads = node.Kept{First: first, Last: last}
		if got, err := u.Apply(old); err == nil && len(got.Workloads) != first+last+len(u.Snapshot.Workloads) {
			t.Fatalf("the first %d and the last %d of %q: %v", first, last, a, got)
		}
	})
}
