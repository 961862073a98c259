package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"conduit.io/conduit/api/kernel"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// Check compares the kernel with what an enrolled pod needs, and returns every difference, each wrapping ErrMismatch: what CheckPod
// and CheckHooks look at. It says nothing about listeners (see Listeners), which come and go with the proxy.
func (d *Datapath) Check(cookie uint64) error {
	return errors.Join(d.CheckPod(cookie), d.CheckHooks())
}

// CheckPod looks at what an enrolled pod has for itself: its entry, and its lookup program, attached to a living namespace.
func (d *Datapath) CheckPod(cookie uint64) error {
	return errors.Join(d.checkPod(cookie), d.checkLookup(cookie))
}

// Alive reports whether the namespace to which the pod's lookup program was attached still exists: false also when
// there is no such program.
func (d *Datapath) Alive(cookie uint64) (bool, error) {
	l, err := link.LoadPinnedLink(d.pins.lookup(cookie), nil)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer l.Close()
	ino, err := linkNetns(l)
	return ino != 0, err
}

// CheckHooks compares the programs at the cgroup with what was attached there.
func (d *Datapath) CheckHooks() error {
	id, err := cgroupID(d.cfg.Cgroup)
	if err != nil {
		return err
	}
	dir, err := os.Open(d.cfg.Cgroup)
	if err != nil {
		return fmt.Errorf("open cgroup: %w", err)
	}
	defer dir.Close()
	var all error
	for _, h := range hooks {
		if err := d.checkHook(h, id, int(dir.Fd())); err != nil {
			all = errors.Join(all, fmt.Errorf("%w: program %s: %w", ErrMismatch, h.program, err))
		}
	}
	return all
}

func (d *Datapath) checkHook(h hook, cgroup uint64, dir int) error {
	l, err := link.LoadPinnedLink(d.pins.hook(h.program), nil)
	if errors.Is(err, fs.ErrNotExist) {
		return errors.New("its link is no longer pinned")
	}
	if err != nil {
		return err
	}
	defer l.Close()
	at, err := linkCgroup(l)
	if err != nil {
		return err
	}
	if at != cgroup {
		return fmt.Errorf("it is attached to the cgroup with id %d (0: to none), not to %s", at, d.cfg.Cgroup)
	}
	info, err := d.progs[h.program].Info()
	if err != nil {
		return err
	}
	want, _ := info.ID()
	attached, err := link.QueryPrograms(link.QueryOptions{Target: dir, Attach: h.attach})
	if err != nil {
		return err
	}
	for _, p := range attached.Programs {
		if p.ID == want {
			return nil
		}
	}
	return fmt.Errorf("id %d is not among the programs of the cgroup", want)
}

func (d *Datapath) checkPod(cookie uint64) error {
	var v kernel.Pod
	err := d.maps["cdt_pods"].Lookup(cookie, &v)
	if errors.Is(err, ebpf.ErrKeyNotExist) || err == nil && v.Flags&kernel.PodFlagLeft != 0 {
		return fmt.Errorf("%w: pod %d is not enrolled: map cdt_pods has no entry for it", ErrMismatch, cookie)
	}
	if err != nil {
		return fmt.Errorf("read pod %d: %w", cookie, err)
	}
	return nil
}

func (d *Datapath) checkLookup(cookie uint64) error {
	pin := d.pins.lookup(cookie)
	l, err := link.LoadPinnedLink(pin, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: pod %d has no lookup program: %s is missing", ErrMismatch, cookie, pin)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", pin, err)
	}
	defer l.Close()
	ino, err := linkNetns(l)
	if err != nil {
		return fmt.Errorf("%s: %w", pin, err)
	}
	if ino == 0 {
		return fmt.Errorf("%w: pod %d: its lookup program is attached to no namespace: it was deleted, or the link was detached", ErrMismatch, cookie)
	}
	return nil
}
