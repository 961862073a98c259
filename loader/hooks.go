package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// hook is one cgroup program and where it is attached.
type hook struct {
	program string
	attach  ebpf.AttachType
}

// The connect hooks come last when attaching for the first time, as nothing is steered before the others are there.
var hooks = []hook{
	{"cdt_create", ebpf.AttachCGroupInetSockCreate},
	{"cdt_peername4", ebpf.AttachCgroupInet4GetPeername},
	{"cdt_peername6", ebpf.AttachCgroupInet6GetPeername},
	{"cdt_sockops", ebpf.AttachCGroupSockOps},
	{"cdt_setsockopt", ebpf.AttachCGroupSetsockopt},
	{"cdt_connect4", ebpf.AttachCGroupInet4Connect},
	{"cdt_connect6", ebpf.AttachCGroupInet6Connect},
}

// RepairHooks attaches again what CheckHooks misses. What is in place goes on without a gap.
func (d *Datapath) RepairHooks() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.attachHooks()
}

func (d *Datapath) attachHooks() error {
	id, err := cgroupID(d.cfg.Cgroup)
	if err != nil {
		return err
	}
	for _, h := range hooks {
		taken, err := d.takeHook(h, id)
		if err == nil && !taken {
			err = d.attachHook(h)
		}
		if err != nil {
			return fmt.Errorf("attach %s: %w", h.program, err)
		}
	}
	return nil
}

// takeHook switches a pinned link to this version's program, atomically. It reports false when there is none to take.
func (d *Datapath) takeHook(h hook, cgroup uint64) (bool, error) {
	pin := d.pins.hook(h.program)
	l, err := link.LoadPinnedLink(pin, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer l.Close()
	at, err := linkCgroup(l)
	if err != nil {
		return false, err
	}
	switch at {
	case cgroup:
		return true, l.Update(d.progs[h.program])
	case 0: // the cgroup it was attached to is gone, or it was detached by force
		d.cfg.Log.Warn("pinned link was detached, attaching anew", "program", h.program)
		return false, os.Remove(pin)
	default:
		return false, fmt.Errorf("%w: it is attached to the cgroup with id %d, not to %s; %s", ErrIncompatible, at, d.cfg.Cgroup, d.pins.remedy())
	}
}

func (d *Datapath) attachHook(h hook) error {
	l, err := link.AttachCgroup(link.CgroupOptions{Path: d.cfg.Cgroup, Attach: h.attach, Program: d.progs[h.program]})
	if err != nil {
		return err
	}
	defer l.Close() // the pin keeps it
	return l.Pin(d.pins.hook(h.program))
}

// linkCgroup is the id of the cgroup that l is attached to, 0 when it is detached.
func linkCgroup(l link.Link) (uint64, error) {
	info, err := l.Info()
	if err != nil {
		return 0, err
	}
	cg := info.Cgroup()
	if cg == nil {
		return 0, fmt.Errorf("%w: the pinned link is of type %v, not cgroup", ErrIncompatible, info.Type)
	}
	return cg.CgroupId, nil
}
