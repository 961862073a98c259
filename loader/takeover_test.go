package loader

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"conduit.io/conduit/api/kernel"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// A new agent takes over while connections are made: each is steered, none fails.
func TestTakeOverWithoutGap(t *testing.T) {
	d := open(t)
	a, b := newPods(t, d)
	b.serve(":8080", "app", nil)
	a.enrol(true, true) // open: a gap would show as a direct connection
	before := objectsOf(t, d)
	made, bad, stop := a.keepDialling(b)
	for range 5 {
		d.Close()
		d = openAt(t, d.cfg.BPFFS)
	}
	stop()
	if *made == 0 || len(*bad) > 0 {
		t.Errorf("%d connections, %d went wrong: %v", *made, len(*bad), *bad)
	}
	after := objectsOf(t, d)
	if !reflect.DeepEqual(before.links, after.links) {
		t.Errorf("links were replaced: %v, now %v", before.links, after.links)
	}
	for i := range after.programs {
		if after.programs[i] == before.programs[i] {
			t.Errorf("program %d is still the old one", after.programs[i])
		}
	}
	pods, err := d.Enrolled()
	want := map[uint64]Pod{a.cookie: {Addrs: []netip.Addr{a.v4, a.v6}, OutOpen: true, InOpen: true}}
	if err != nil || !reflect.DeepEqual(pods, want) {
		t.Errorf("enrolled: %v, %v; want %v", pods, err, want)
	}
	a.d = d
	if c := a.counters(); c.Steered != uint64(*made) || c.Bypassed["unseen"] != 0 {
		t.Errorf("%d connections, counters %+v", *made, c)
	}
}

// keepDialling makes connections to b, each of which must be steered, until stop returns.
func (p *testPod) keepDialling(b *testPod) (made *int, bad *[]string, stop func()) {
	made, bad = new(int), new([]string)
	var (
		end = make(chan struct{})
		wg  sync.WaitGroup
		mu  sync.Mutex
	)
	for i := range 4 {
		dst, who := netip.AddrPortFrom(b.v4, 8080), "out-v4"
		if i%2 == 1 {
			dst, who = netip.AddrPortFrom(b.v6, 8080), "out-v6"
		}
		wg.Go(func() {
			for {
				select {
				case <-end:
					return
				default:
				}
				got, err := p.dial(dst)
				mu.Lock()
				*made++
				if err != nil || got.who != who {
					*bad = append(*bad, fmt.Sprintf("%q %v", got.who, err))
				}
				mu.Unlock()
			}
		})
	}
	return made, bad, func() { close(end); wg.Wait() }
}

func TestOneAgentAtATime(t *testing.T) {
	d := open(t)
	cfg := Config{BPFFS: d.cfg.BPFFS, Cgroup: testCgroup, LockTimeout: 60 * time.Millisecond}
	if other, err := Open(cfg); !errors.Is(err, ErrLocked) {
		if other != nil {
			other.Close()
		}
		t.Fatalf("a second Open: %v", err)
	}
	if err := removeWithin(d.cfg.BPFFS, 60*time.Millisecond); !errors.Is(err, ErrLocked) {
		t.Fatalf("Remove under a living agent: %v", err)
	}
	done := make(chan error, 1)
	cfg.LockTimeout = testTimeout
	go func() {
		other, err := Open(cfg)
		if err == nil {
			err = other.Close()
		}
		done <- err
	}()
	d.Close() // the second, which waits, goes on
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestIncompatiblePins(t *testing.T) {
	dir := pinDir(t)
	d := openAt(t, dir)
	d.Close()
	cfg := Config{BPFFS: dir, Cgroup: testCgroup}
	pin := filepath.Join(pins(dir).maps(), "cdt_pods")
	if err := os.Remove(pin); err != nil {
		t.Fatal(err)
	}
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: "cdt_pods", Type: ebpf.Hash, KeySize: 8, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := m.Pin(pin); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(cfg); !errors.Is(err, ErrIncompatible) || !strings.Contains(err.Error(), "--uninstall") {
		t.Errorf("another map: %v", err)
	}
	if err := os.Mkdir(filepath.Join(dir, "maps-v999"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(cfg); !errors.Is(err, ErrIncompatible) || !strings.Contains(err.Error(), "maps-v999") {
		t.Errorf("another layout: %v", err)
	}
}

func TestOpenRefusesBadPaths(t *testing.T) {
	needRoot(t)
	for _, c := range []struct {
		name string
		cfg  Config
		want string
	}{
		{"not a bpffs", Config{BPFFS: filepath.Join(t.TempDir(), "pins"), Cgroup: testCgroup}, "not on a bpffs"},
		{"relative", Config{BPFFS: "pins", Cgroup: testCgroup}, "absolute path"},
		{"not cgroup2", Config{BPFFS: bpffsRoot + "/cdt-never", Cgroup: t.TempDir()}, "not cgroup2"},
		{"no cgroup", Config{BPFFS: bpffsRoot + "/cdt-never", Cgroup: testCgroup + "/absent"}, "findmnt"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, err := Open(c.cfg)
			if err == nil {
				d.Close()
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if exists(c.cfg.BPFFS) {
				t.Errorf("left %s behind", c.cfg.BPFFS)
			}
		})
	}
}

// A pod whose namespace is gone leaves its pins and entries; the next agent sweeps them.
func TestDeadNamespacesAreSwept(t *testing.T) {
	d := open(t)
	p := newPod(t, d, 2)
	if err := d.AttachLookup(p.ns, p.cookie); err != nil {
		t.Fatal(err)
	}
	if err := d.Enrol(p.cookie, Pod{Addrs: []netip.Addr{p.v4}}); err != nil {
		t.Fatal(err)
	}
	p.ns.Close()
	wait(t, "the namespace to go", func() bool { return d.checkLookup(p.cookie) != nil })
	d.Close()
	d = openAt(t, d.cfg.BPFFS)
	lookups, err := d.Lookups()
	if err != nil || len(lookups) != 0 {
		t.Errorf("lookups: %v, %v", lookups, err)
	}
	pods, err := d.Enrolled()
	counters, err2 := d.Counters()
	if err != nil || err2 != nil || len(pods) != 0 || len(counters) != 0 {
		t.Errorf("pods %v, counters %v, %v, %v", pods, counters, err, err2)
	}
}

// Remove leaves no program, map, link or pin, whatever state the pods are in; and again is fine.
func TestRemoveLeavesNothing(t *testing.T) {
	d := open(t)
	a, b := newPods(t, d)
	a.serve(":8080", "app", nil)
	a.enrol(false, false)
	o := objectsOf(t, d)
	if len(o.programs) != len(hooks)+1 || len(o.maps) < 5 {
		t.Fatalf("objects: %+v", o)
	}
	d.Close()
	for range 2 {
		if err := Remove(d.cfg.BPFFS); err != nil {
			t.Fatal(err)
		}
	}
	if exists(d.cfg.BPFFS) {
		t.Error("the directory is still there")
	}
	wait(t, "programs, maps and links to go", func() bool { return len(alive(o)) == 0 })
	if left := leftovers(); len(left) > 0 {
		t.Errorf("attached to the cgroup: %v", left)
	}
	if got, err := b.dial(netip.AddrPortFrom(a.v4, 8080)); err != nil || got.who != "app" {
		t.Errorf("the pod on its own: answered by %q, %v", got.who, err)
	}
}

// alive are those of the objects that the kernel still has.
func alive(o objects) []string {
	var left []string
	for _, id := range o.programs {
		if p, err := ebpf.NewProgramFromID(id); err == nil {
			left = append(left, fmt.Sprint("program ", id))
			p.Close()
		}
	}
	for _, id := range o.maps {
		if m, err := ebpf.NewMapFromID(id); err == nil {
			left = append(left, fmt.Sprint("map ", id))
			m.Close()
		}
	}
	for _, id := range o.links {
		if l, err := link.NewFromID(id); err == nil {
			left = append(left, fmt.Sprint("link ", id))
			l.Close()
		}
	}
	return left
}

// wait polls: the kernel frees namespaces and programs in the background.
func wait(t *testing.T, what string, done func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(2 * testTimeout); !done(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func TestPodLifecycle(t *testing.T) {
	d := open(t)
	p := newPod(t, d, 2)
	other := newNetns(t)
	if err := d.AttachLookup(other, p.cookie); !errors.Is(err, ErrMismatch) {
		t.Errorf("another namespace's cookie: %v", err)
	}
	for _, addrs := range [][]netip.Addr{nil, {{}}, {netip.IPv4Unspecified()}, make([]netip.Addr, kernel.MaxAddrs+1)} {
		if err := d.Enrol(p.cookie, Pod{Addrs: addrs}); err == nil {
			t.Errorf("enrolled with addresses %v", addrs)
		}
	}
	for range 2 { // every step may be repeated
		for name, step := range map[string]func() error{
			"AttachLookup": func() error { return d.AttachLookup(p.ns, p.cookie) },
			"Enrol":        func() error { return d.Enrol(p.cookie, Pod{Addrs: []netip.Addr{p.v4}}) },
		} {
			if err := step(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	if lookups, err := d.Lookups(); err != nil || !reflect.DeepEqual(lookups, []uint64{p.cookie}) {
		t.Errorf("lookups: %v, %v", lookups, err)
	}
	for range 2 {
		for _, step := range []func(uint64) error{d.Unenrol, d.ClearListeners, d.DetachLookup, d.DropCounters} {
			if err := step(p.cookie); err != nil {
				t.Error(err)
			}
		}
	}
	for name, m := range d.maps {
		var key, value []byte
		if name != "cdt_tags" && name != "cdt_witness" && m.Iterate().Next(&key, &value) {
			t.Errorf("%s is not empty", name)
		}
	}
}

// A new proxy's listeners take the place of the old one's, which go on accepting what they have; nothing is divided
// between the two although all have SO_REUSEPORT.
func TestListenersAreReplaced(t *testing.T) {
	d := open(t)
	a, b := newPods(t, d)
	a.enrol(false, false)
	fresh := a.serve("127.0.0.1:15001", "new", transparent)
	control(t, fresh, func(fd int) error { return d.SetListener(a.cookie, kernel.SlotOutV4, fd) })
	for range 50 {
		if got, err := a.dial(netip.AddrPortFrom(b.v4, 80)); err != nil || got.who != "new" {
			t.Fatalf("answered by %q, %v", got.who, err)
		}
	}
	a.proxy[kernel.SlotOutV4].Close() // the old one's death does not empty the slot
	if got, err := a.dial(netip.AddrPortFrom(b.v4, 80)); err != nil || got.who != "new" {
		t.Errorf("answered by %q, %v", got.who, err)
	}
	if err := d.SetListener(a.cookie, kernel.SlotCount, 0); err == nil {
		t.Error("a slot that is none was taken")
	}
}
