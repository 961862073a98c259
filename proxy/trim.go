package proxy

import (
	"os"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"strings"
	"time"

	"conduit.io/conduit/proxy/loop"
)

const (
	// trimFirst is when start-up is over, and what only it needed can go.
	trimFirst = 3 * time.Second
	// trimEvery is how often it is looked whether memory can be given back.
	trimEvery = 5 * time.Second
	// trimFile is the resident part of the program's file above which it is dropped: what start-up, handshakes or some
	// other rare work needed goes, and what is in constant use comes back at once, in a few hundred page faults.
	trimFile = 2 << 20
	// trimSlack is the heap that is not in use at which it is collected and given back entirely, which takes a millisecond;
	// a larger heap, for which it takes longer, has an eighth of its size.
	trimSlack = 384 << 10
	trimPart  = 8
	// trimCycles within trimEvery: the collector has so much to do that what is given back would be taken again at once.
	trimCycles = 10
	// trimAge is how long there may be no collection when there is more than trimYoung: connections that have become idle
	// have let go of what the collector still takes to be in use. As long as it does not run by itself, each time is twice
	// as long as the one before, up to the two minutes after which it does.
	trimAge    = 10 * time.Second
	trimAgeEnd = 2 * time.Minute
	trimYoung  = 2 << 20
)

// trimmer gives memory back that is not in use, again and again.
type trimmer struct {
	loop    *loop.Loop
	program []span
	cycles  uint64
	since   time.Time     // of the last collection that was noticed
	age     time.Duration // after which there is to be another
}

// trim begins with it. The clock is the loop's, the work is not.
func trim(l *loop.Loop) {
	t := &trimmer{loop: l}
	var err error
	if t.program, err = program(); err == nil {
		_, _ = mapSingly(t.program) // for the life of the process
		drop(t.program)
	}
	l.Post(func() { l.After(trimFirst, t.again) })
}

func (t *trimmer) again() {
	go func() {
		t.run()
		t.loop.Post(func() { t.loop.After(trimEvery, t.again) })
	}()
}

func (t *trimmer) run() {
	if t.due(readHeap(), time.Now()) {
		debug.FreeOSMemory()
	}
	if resident() >= trimFile {
		drop(t.program)
	}
}

// heap is the state of the heap: collections since the start, and sizes in bytes.
type heap struct {
	cycles  uint64
	live    uint64 // what the last collection found in use
	objects uint64 // that, and what was allocated since
	free    uint64 // pages without objects that the kernel could have back
}

func readHeap() heap {
	m := []metrics.Sample{
		{Name: "/gc/cycles/total:gc-cycles"},
		{Name: "/gc/heap/live:bytes"},
		{Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/memory/classes/heap/free:bytes"},
	}
	metrics.Read(m)
	return heap{m[0].Value.Uint64(), m[1].Value.Uint64(), m[2].Value.Uint64(), m[3].Value.Uint64()}
}

// due reports whether a collection would give enough back; there is to be one then.
func (t *trimmer) due(h heap, now time.Time) bool {
	ran := h.cycles - t.cycles
	t.cycles = h.cycles
	if ran > 0 || t.since.IsZero() {
		t.since, t.age = now, trimAge
	}
	slack := h.free + max(h.objects, h.live) - h.live
	switch {
	case ran <= trimCycles && slack >= max(trimSlack, h.live/trimPart):
	case h.objects > trimYoung && now.Sub(t.since) >= t.age:
		t.age = min(2*t.age, trimAgeEnd)
	default:
		return false
	}
	t.since = now
	t.cycles++ // of this one is known
	return true
}

// resident is how much of this process's memory is pages of files.
func resident() uint64 {
	b, err := os.ReadFile("/proc/self/statm") // sizes in pages: program, resident, shared (proc(5))
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b))
	if len(f) < 3 {
		return 0
	}
	n, err := strconv.ParseUint(f[2], 10, 64)
	if err != nil {
		return 0
	}
	return n * uint64(os.Getpagesize())
}
