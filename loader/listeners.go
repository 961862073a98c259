package loader

import (
	"errors"
	"fmt"

	"conduit.io/conduit/api/kernel"

	"github.com/cilium/ebpf"
)

// SetListener makes the listening socket fd (of the pod's namespace, IP_TRANSPARENT) the one that gets the connections
// of a slot, in place of another that may be there. The map keeps no socket alive: when its last descriptor is closed
// the kernel empties the slot. fd stays the caller's.
func (d *Datapath) SetListener(cookie uint64, slot kernel.Slot, fd int) error {
	if slot >= kernel.SlotCount || fd < 0 {
		return fmt.Errorf("set listener %d of pod %d: no such slot, or bad descriptor %d", slot, cookie, fd)
	}
	key := kernel.ListenerKey{Cookie: cookie, Slot: slot}
	if err := d.maps["cdt_listeners"].Put(&key, uint64(fd)); err != nil {
		return fmt.Errorf("set listener %d of pod %d: %w", slot, cookie, err)
	}
	return nil
}

// Listeners reports which slots have a listener that is alive.
func (d *Datapath) Listeners(cookie uint64) ([kernel.SlotCount]bool, error) {
	var alive [kernel.SlotCount]bool
	for slot := range alive {
		var socket uint64 // its cookie
		key := kernel.ListenerKey{Cookie: cookie, Slot: kernel.Slot(slot)}
		err := d.maps["cdt_listeners"].Lookup(&key, &socket)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return alive, fmt.Errorf("read listeners of pod %d: %w", cookie, err)
		}
		alive[slot] = err == nil
	}
	return alive, nil
}

// ClearListeners empties the pod's slots. Slots that are empty are no error.
func (d *Datapath) ClearListeners(cookie uint64) error {
	var all error
	for slot := range kernel.Slot(kernel.SlotCount) {
		key := kernel.ListenerKey{Cookie: cookie, Slot: slot}
		err := d.maps["cdt_listeners"].Delete(&key)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			all = errors.Join(all, fmt.Errorf("clear listener %d of pod %d: %w", slot, cookie, err))
		}
	}
	return all
}

// Counters are what became of one pod's connections since it was enrolled first. They survive agents.
type Counters struct {
	Created  uint64            // TCP sockets created in the pod's namespace, the proxy's own included
	Steered  uint64            // connects handed to the proxy
	Bypassed map[string]uint64 // connections that were not, by kernel.Bypass; every reason is present
}

// Counters are the counters of every pod that has some, by cookie.
func (d *Datapath) Counters() (map[uint64]Counters, error) {
	var (
		cookie uint64
		perCPU []kernel.Counters
		all    = map[uint64]Counters{}
	)
	it := d.maps["cdt_counters"].Iterate()
	for it.Next(&cookie, &perCPU) {
		all[cookie] = sum(perCPU)
	}
	if err := it.Err(); err != nil {
		return nil, fmt.Errorf("read counters: %w", err)
	}
	return all, nil
}

// DropCounters forgets the pod's counters. Absent ones are no error.
func (d *Datapath) DropCounters(cookie uint64) error {
	err := d.maps["cdt_counters"].Delete(cookie)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("drop counters of pod %d: %w", cookie, err)
	}
	return nil
}

func sum(perCPU []kernel.Counters) Counters {
	c := Counters{Bypassed: make(map[string]uint64, kernel.BypassCount)}
	for i := range perCPU {
		c.Created += perCPU[i].Created
		c.Steered += perCPU[i].Steered
		for reason, n := range perCPU[i].Bypassed {
			c.Bypassed[kernel.Bypass(reason).String()] += n
		}
	}
	return c
}
