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
	// trimSlack is the heap that is not in use at which it is collected and given back entirely. That takes about a
	// millisecond as long as the heap is not larger than trimHeap.
	trimSlack = 384 << 10
	trimHeap  = 32 << 20
	// trimCycles within trimEvery: the collector has so much to do that what is given back would be taken again at once.
	trimCycles = 10
)

// trimmer gives memory back that is not in use, again and again.
type trimmer struct {
	loop    *loop.Loop
	program []span
	cycles  uint64
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
	go t.run()
	t.loop.After(trimEvery, t.again)
}

func (t *trimmer) run() {
	if t.slack() >= trimSlack {
		debug.FreeOSMemory()
	}
	if resident() >= trimFile {
		drop(t.program)
	}
}

// slack is how much of the heap would be free after a collection, 0 when it is not to be asked for.
func (t *trimmer) slack() uint64 {
	m := []metrics.Sample{
		{Name: "/gc/cycles/total:gc-cycles"},
		{Name: "/gc/heap/live:bytes"},
		{Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/memory/classes/heap/free:bytes"},
	}
	metrics.Read(m)
	cycles, live, objects, free := m[0].Value.Uint64(), m[1].Value.Uint64(), m[2].Value.Uint64(), m[3].Value.Uint64()
	since := cycles - t.cycles
	t.cycles = cycles
	if since > trimCycles || objects > trimHeap {
		return 0
	}
	return free + max(objects, live) - live
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
