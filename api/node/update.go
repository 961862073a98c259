package node

import (
	"fmt"
	"reflect"
	"slices"
)

// Update is a Snapshot as what it changes of an earlier one, which the proxy has: to say it costs what has changed, and not what there is.
// The lists of Snapshot have what is new in them, and each list begins and ends with elements of the earlier one.
type Update struct {
	Base      uint64   `json:"base"` // version of the earlier snapshot
	Snapshot  Snapshot `json:"snapshot"`
	Workloads Kept     `json:"workloads"`
	Services  Kept     `json:"services"`
	Nobody    Kept     `json:"nobody"`
	ByPort    Kept     `json:"byPort"`
}

// Kept is how many elements of a list stay, at its beginning and at its end.
type Kept struct {
	First int `json:"first,omitempty"`
	Last  int `json:"last,omitempty"`
}

// Changes is the Update that turns old into new. It shares what they have; neither may be changed afterwards.
func Changes(old, new *Snapshot) *Update {
	u := &Update{Base: old.Version, Snapshot: *new}
	u.Workloads, u.Snapshot.Workloads = changed(old.Workloads, new.Workloads)
	u.Services, u.Snapshot.Services = changed(old.Services, new.Services)
	u.Nobody, u.Snapshot.Nobody = changed(old.Nobody, new.Nobody)
	u.ByPort, u.Snapshot.ByPort = changed(old.ByPort, new.ByPort)
	return u
}

func changed[T any](old, new []T) (Kept, []T) {
	var k Kept
	most := min(len(old), len(new))
	for k.First < most && reflect.DeepEqual(&old[k.First], &new[k.First]) {
		k.First++
	}
	for k.First+k.Last < most && reflect.DeepEqual(&old[len(old)-1-k.Last], &new[len(new)-1-k.Last]) {
		k.Last++
	}
	return k, new[k.First : len(new)-k.Last]
}

// Apply is the snapshot that u makes of old, which stays as it is and shares elements with the new one. It is an error if u is not about
// old.
func (u *Update) Apply(old *Snapshot) (*Snapshot, error) {
	if old == nil || u.Base != old.Version {
		return nil, fmt.Errorf("update snapshot: it is about version %d, which is not the one in force", u.Base)
	}
	s := u.Snapshot
	var err error
	if s.Workloads, err = updated(u.Workloads, old.Workloads, s.Workloads); err != nil {
		return nil, fmt.Errorf("update snapshot: workloads: %w", err)
	}
	if s.Services, err = updated(u.Services, old.Services, s.Services); err != nil {
		return nil, fmt.Errorf("update snapshot: services: %w", err)
	}
	if s.Nobody, err = updated(u.Nobody, old.Nobody, s.Nobody); err != nil {
		return nil, fmt.Errorf("update snapshot: addresses of nobody: %w", err)
	}
	if s.ByPort, err = updated(u.ByPort, old.ByPort, s.ByPort); err != nil {
		return nil, fmt.Errorf("update snapshot: addresses by port: %w", err)
	}
	return &s, nil
}

func updated[T any](k Kept, old, between []T) ([]T, error) {
	if k.First < 0 || k.Last < 0 || k.First > len(old) || k.Last > len(old)-k.First {
		return nil, fmt.Errorf("the first %d and the last %d are to stay of %d", k.First, k.Last, len(old))
	}
	return slices.Concat(old[:k.First], between, old[len(old)-k.Last:]), nil
}
