package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// AttachLookup attaches the pod's sk_lookup program to its network namespace and pins the link. A link that is already
// there is switched to this version's program, atomically. cookie must be the namespace's own. Before Enrol the program
// lets everything through. netns stays the caller's.
func (d *Datapath) AttachLookup(netns *os.File, cookie uint64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	actual, err := NetnsCookie(netns)
	if err != nil {
		return fmt.Errorf("attach lookup of pod %d: %w", cookie, err)
	}
	if actual != cookie {
		return fmt.Errorf("attach lookup of pod %d: %w: the namespace given has cookie %d", cookie, ErrMismatch, actual)
	}
	taken, err := d.takeLookup(cookie)
	if err == nil && !taken {
		err = d.newLookup(netns, cookie)
	}
	if err != nil {
		return fmt.Errorf("attach lookup of pod %d: %w", cookie, err)
	}
	return nil
}

// DetachLookup detaches and unpins the pod's sk_lookup program, and forgets the pod. It must no longer be enrolled, and
// none of its steered connections be left that would dial again. A pod without the program is no error.
func (d *Datapath) DetachLookup(cookie uint64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	// The pod first: without its entry nothing is marked, so that no marked SYN meets the namespace without the program.
	if err := d.forget(cookie); err != nil {
		return err
	}
	if err := removeLink(d.pins.lookup(cookie)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("detach lookup of pod %d: %w", cookie, err)
	}
	return nil
}

// Lookups are the cookies of the pods whose sk_lookup program is pinned, in no order.
func (d *Datapath) Lookups() ([]uint64, error) {
	entries, err := os.ReadDir(d.pins.lookups())
	if err != nil {
		return nil, fmt.Errorf("read pinned lookups: %w", err)
	}
	cookies := make([]uint64, 0, len(entries))
	for _, e := range entries {
		if cookie, err := strconv.ParseUint(e.Name(), 10, 64); err == nil {
			cookies = append(cookies, cookie)
		}
	}
	return cookies, nil
}

// adoptLookups switches every pinned lookup to this version's program, and sweeps those of namespaces that are gone.
func (d *Datapath) adoptLookups() error {
	cookies, err := d.Lookups()
	if err != nil {
		return err
	}
	pinned := make(map[uint64]bool, len(cookies))
	for _, cookie := range cookies {
		taken, err := d.takeLookup(cookie)
		if err != nil {
			return fmt.Errorf("take over lookup of pod %d: %w", cookie, err)
		}
		pinned[cookie] = taken
		if !taken {
			if err := d.sweep(cookie); err != nil {
				return err
			}
		}
	}
	return d.sweepLeft(pinned)
}

// takeLookup switches a pinned link. It reports false when there is none, or its namespace is gone (the pin is removed).
func (d *Datapath) takeLookup(cookie uint64) (bool, error) {
	pin := d.pins.lookup(cookie)
	l, err := link.LoadPinnedLink(pin, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer l.Close()
	ino, err := linkNetns(l)
	if err != nil {
		return false, err
	}
	if ino == 0 {
		return false, os.Remove(pin)
	}
	prog, err := d.lookupProgram(cookie)
	if err != nil {
		return false, err
	}
	defer prog.Close()
	if err := l.Update(prog); errors.Is(err, unix.ENOLINK) { // the namespace went away just now
		return false, os.Remove(pin)
	} else if err != nil {
		return false, err
	}
	return true, nil
}

func (d *Datapath) newLookup(netns *os.File, cookie uint64) error {
	prog, err := d.lookupProgram(cookie)
	if err != nil {
		return err
	}
	defer prog.Close() // the link keeps it
	l, err := link.AttachNetNs(int(netns.Fd()), prog)
	if err != nil {
		return err
	}
	defer l.Close() // the pin keeps it
	return l.Pin(d.pins.lookup(cookie))
}

// lookupProgram is a copy of the program for the pod alone. The caller must close it.
func (d *Datapath) lookupProgram(cookie uint64) (*ebpf.Program, error) {
	c, err := d.spares.take()
	if err != nil {
		return nil, err
	}
	defer c.of.Close() // the program keeps it
	if err := c.of.Put(uint32(0), cookie); err != nil {
		c.prog.Close()
		return nil, fmt.Errorf("tell lookup program its pod: %w", err)
	}
	return c.prog, nil
}

// linkNetns is the inode of the namespace that l is attached to, 0 when it is gone.
func linkNetns(l link.Link) (uint32, error) {
	info, err := l.Info()
	if err != nil {
		return 0, err
	}
	ns := info.NetNs()
	if ns == nil {
		return 0, fmt.Errorf("%w: the pinned link is of type %v, not netns", ErrIncompatible, info.Type)
	}
	return ns.NetnsInode, nil
}
