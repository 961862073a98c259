// Package loader puts Conduit's BPF programs into the kernel: it loads, attaches, pins, upgrades and removes them, and
// reads and writes their maps as typed values. Everything is pinned, so that pods stay steered when the agent ends; the
// next agent takes the pins over without a gap.
//
// Below Config.BPFFS:
//
//	maps-v1/cdt_*     the maps, by name; the number is kernel.Schema
//	hooks/cdt_*       links of the cgroup programs, by program name
//	lookups/COOKIE    link of a pod's sk_lookup program, by network namespace cookie (decimal)
package loader

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Errors that callers may test for.
var (
	// ErrLocked: another process has the pin directory open.
	ErrLocked = errors.New("pin directory is in use")
	// ErrIncompatible: what is pinned cannot be taken over by this version.
	ErrIncompatible = errors.New("pinned objects are incompatible")
	// ErrMismatch: the kernel is not in the state that was asked for.
	ErrMismatch = errors.New("kernel state differs")
)

// Config says where the programs live.
type Config struct {
	// BPFFS is the pin directory. It is made if missing, and must be on a bpffs; /sys/fs/bpf is mounted if need be.
	BPFFS string
	// Cgroup is the cgroup2 directory whose processes are steered: usually the root of the hierarchy.
	Cgroup string
	// Log receives what Open repairs. Nil discards.
	Log *slog.Logger
	// LockTimeout is how long to wait for another process to let go of BPFFS; 0 means 5 s.
	LockTimeout time.Duration
}

// Datapath is Conduit in the kernel. Its methods may be called concurrently.
type Datapath struct {
	cfg   Config
	pins  pins
	lock  *os.File
	progs map[string]*ebpf.Program // of the cgroup, by name
	maps  map[string]*ebpf.Map     // by name

	spares *spares // of the lookup program

	mu sync.Mutex // serialises changes of pods and links
}

// Open loads the programs, attaches and pins them; what an earlier process left pinned is taken over: maps are reused,
// links are switched to this version's programs one by one, each atomically, so that no connection goes unjudged. Links
// and pods of namespaces that are gone are swept. The caller must Close. Errors: ErrLocked, ErrIncompatible, or what
// Require returns.
func Open(cfg Config) (*Datapath, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if err := Require(); err != nil {
		return nil, err
	}
	if err := checkCgroup(cfg.Cgroup); err != nil {
		return nil, err
	}
	p := pins(cfg.BPFFS)
	lock, fresh, err := p.open(cfg.LockTimeout)
	if err != nil {
		return nil, err
	}
	d := &Datapath{cfg: cfg, pins: p, lock: lock}
	err = d.load()
	if err == nil {
		err = d.attachHooks()
	}
	if err == nil {
		err = d.adoptLookups()
	}
	if err == nil {
		return d, nil
	}
	if fresh { // nobody was steered before: leave nothing behind
		err = errors.Join(err, p.remove())
	}
	d.Close()
	return nil, err
}

// Close closes the descriptors and lets go of the pin directory. Everything stays pinned and attached.
func (d *Datapath) Close() error {
	if d.spares != nil {
		d.spares.close()
	}
	for _, p := range d.progs {
		p.Close()
	}
	for _, m := range d.maps {
		m.Close()
	}
	return d.lock.Close()
}

// SockTags is a new descriptor of the map in which the proxy tags its own sockets (kernel.SockTag by socket
// descriptor). The caller must close it. It is nil only when the process is out of descriptors.
func (d *Datapath) SockTags() *os.File {
	fd, err := unix.FcntlInt(uintptr(d.maps["cdt_tags"].FD()), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		d.cfg.Log.Error("duplicate descriptor", "map", "cdt_tags", "error", err)
		return nil
	}
	return os.NewFile(uintptr(fd), "cdt_tags")
}

// load brings maps and programs into the kernel; maps that are pinned are reused.
func (d *Datapath) load() error {
	spec, err := loadCgroup()
	if err != nil {
		return fmt.Errorf("read the cgroup programs: %w", err)
	}
	lookup, err := loadLookup()
	if err != nil {
		return fmt.Errorf("read the lookup program: %w", err)
	}
	for key, m := range spec.Maps {
		if key == ".rodata" {
			m.Name = "cdt_cgroup_ro"
			continue
		}
		m.Pinning = ebpf.PinByName
	}
	if err := spec.Variables["cdt_have_retval"].Set(haveRetval()); err != nil {
		return fmt.Errorf("set cdt_have_retval: %w", err)
	}
	if err := d.widenCounters(spec.Maps["cdt_counters"]); err != nil {
		return err
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{
		Maps: ebpf.MapOptions{PinPath: d.pins.maps()},
	})
	if errors.Is(err, ebpf.ErrMapIncompatible) {
		return fmt.Errorf("%w: %s was made by another version of Conduit: %w; %s", ErrIncompatible, d.pins.maps(), err, d.pins.remedy())
	}
	if err != nil {
		return fmt.Errorf("load the cgroup programs: %w", err)
	}
	d.progs, d.maps = coll.Programs, coll.Maps
	if ro := d.maps[".rodata"]; ro != nil { // the programs hold it
		delete(d.maps, ".rodata")
		ro.Close()
	}
	d.spares = newSpares(lookup, d.maps)
	return nil
}

// remedy is what a user does about pins that cannot be taken over.
func (p pins) remedy() string {
	return fmt.Sprintf("remove them with 'conduit-agent --uninstall --bpffs %s' (pods are enrolled again by the next agent)", string(p))
}
