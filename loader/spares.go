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
	// spareAfter is when a copy is replaced: when the ADD that took it is over, and not beside it.
	spareAfter = 100 * time.Millisecond
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
	end   sync.Once
	stop  chan struct{}
	done  chan struct{}
}

// newSpares begins to load copies of spec, which it changes. The caller must close it; the maps stay the caller's.
func newSpares(spec *ebpf.CollectionSpec, maps map[string]*ebpf.Map) *spares {
	of := spec.Maps[".bss"]
	of.Name = "cdt_lookup_of"
	of.Flags &^= unix.BPF_F_MMAPABLE // it is written once
	s := &spares{spec: spec, maps: maps, ready: make(chan lookupCopy, spareCount-1), stop: make(chan struct{}), done: make(chan struct{})}
	go s.fill()
	return s
}

// take is a copy that is the caller's from now on.
func (s *spares) take() (lookupCopy, error) {
	select {
	case c := <-s.ready:
		return c, nil
	default:
		return s.load()
	}
}

func (s *spares) fill() {
	defer close(s.done)
	for {
		wait := spareAfter
		if c, err := s.load(); err != nil {
			wait = spareRetry // whoever takes one is told
		} else {
			select {
			case s.ready <- c:
			case <-s.stop:
				c.close()
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
