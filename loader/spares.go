package loader

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// spareCount is how many copies of the lookup program are held ready: as many as pods that are likely to start at once. Each is some
// 30 KB of the kernel's.
const spareCount = 8

const (
	// spareAfter is when copies are replaced after one was taken: when the ADD that took it is over, and not beside it, but before pods that
	// come one after the other have taken them all.
	spareAfter = 10 * time.Millisecond
	// spareRetry is how long nothing more is loaded after the kernel has refused.
	spareRetry = 10 * time.Second
)

// lookupCopy is a copy of the lookup program, and the map with the one variable in it: whose it is.
type lookupCopy struct {
	prog *ebpf.Program
	of   *ebpf.Map
}

func (c lookupCopy) close() {
	c.prog.Close()
	c.of.Close()
}

// spares are copies of the lookup program that are nobody's yet. The kernel's verifier takes more than a millisecond for each, and no pod
// should wait for that. A copy cannot be shared: the program cannot ask which namespace it runs in.
type spares struct {
	mu    sync.Mutex // for spec, which must not be used concurrently
	spec  *ebpf.CollectionSpec
	maps  map[string]*ebpf.Map // that every copy uses
	ready chan lookupCopy
	taken chan struct{} // something may be missing
	end   sync.Once
	stop  chan struct{}
	done  chan struct{}
}

// newSpares begins to load copies of spec, which it changes. The caller must close it; the maps stay the caller's.
func newSpares(spec *ebpf.CollectionSpec, maps map[string]*ebpf.Map) *spares {
	of := spec.Maps[".bss"]
	of.Name = "cdt_lookup_of"
	of.Flags &^= unix.BPF_F_MMAPABLE // it is written once
	s := &spares{spec: spec, maps: maps, ready: make(chan lookupCopy, spareCount), taken: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{})}
	go s.fill()
	return s
}

// take is a copy that is the caller's from now on.
func (s *spares) take() (lookupCopy, error) {
	defer func() {
		select {
		case s.taken <- struct{}{}:
		default:
		}
	}()
	select {
	case c := <-s.ready:
		return c, nil
	default:
		return s.load()
	}
}

// fill loads what is missing, at first and after every take.
func (s *spares) fill() {
	defer close(s.done)
	for {
		wait := spareAfter
		for len(s.ready) < spareCount && !s.stopped() { // nobody else adds one
			c, err := s.load()
			if err != nil {
				wait = spareRetry // whoever takes one is told
				break
			}
			s.ready <- c
		}
		if wait == spareAfter {
			select {
			case <-s.taken:
			case <-s.stop:
				return
			}
		}
		select {
		case <-time.After(wait):
		case <-s.stop:
			return
		}
	}
}

func (s *spares) stopped() bool {
	select {
	case <-s.stop:
		return true
	default:
		return false
	}
}

func (s *spares) load() (lookupCopy, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	coll, err := ebpf.NewCollectionWithOptions(s.spec, ebpf.CollectionOptions{MapReplacements: s.maps})
	if err != nil {
		return lookupCopy{}, fmt.Errorf("load lookup program: %w", err)
	}
	defer coll.Close()
	c := lookupCopy{coll.DetachProgram("cdt_lookup"), coll.DetachMap(".bss")}
	if c.prog == nil || c.of == nil {
		return c, errors.New("load lookup program: the object lacks it")
	}
	return c, nil
}

// close ends loading, and closes what is nobody's. It may be called again.
func (s *spares) close() {
	s.end.Do(func() { close(s.stop) })
	<-s.done
	for {
		select {
		case c := <-s.ready:
			c.close()
		default:
			return
		}
	}
}
