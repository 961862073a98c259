package exchange

import "golang.org/x/net/http2/hpack"

const (
	bufSize     = 16 << 10
	maxFreeBufs = 16
	keepReplay  = 1 << 10 // a free stream keeps no larger replay buffer
	maxParked   = 64 << 20
)

// MaxFree is how many free streams a Pool keeps for reuse. Whoever keeps something of its own for each stream keeps as
// many, so that what a burst has needed is given back.
const MaxFree = 256

// Pool keeps streams and buffers for reuse. One Pool serves every connection of one shard loop; it does not lock.
type Pool struct {
	// Fields and Bytes are scratch space, valid until the next use by anybody.
	Fields []hpack.HeaderField
	Bytes  []byte

	free  *Stream
	nfree int
	bufs  [][]byte

	parked int
	held   int // memory of the queues of streams, and of what server codecs keep
	mark   int
	full   func()

	heads []interned
	ids   uint32
}

// NewPool makes an empty Pool.
func NewPool() *Pool { return &Pool{} }

func (p *Pool) get() *Stream {
	s := p.free
	if s == nil {
		return &Stream{pool: p}
	}
	p.free, s.next = s.next, nil
	p.nfree--
	s.dead = false
	return s
}

func (p *Pool) put(s *Stream) {
	s.q[0].reset(p)
	s.q[1].reset(p)
	tb, rp := s.trailBuf, s.replay
	if s.Trailers != nil && cap(s.Trailers) <= 16 {
		tb = s.Trailers
	}
	clear(tb[:cap(tb)])
	if cap(rp) > keepReplay {
		rp = nil
	}
	*s = Stream{pool: p, gen: s.gen + 1, trailBuf: tb[:0], replay: rp[:0], dead: true}
	if p.nfree >= MaxFree {
		return
	}
	s.next, p.free = p.free, s
	p.nfree++
}

// Buffer is an empty buffer of 16 KiB capacity; give it back with Release.
func (p *Pool) Buffer() []byte {
	if n := len(p.bufs); n > 0 {
		b := p.bufs[n-1]
		p.bufs = p.bufs[:n-1]
		return b
	}
	return make([]byte, 0, bufSize)
}

// Hold copies p into a buffer to which more will be appended: a pooled one, unless p is so small that a connection in
// no hurry to send the rest should not have it.
func (p *Pool) Hold(b []byte) []byte {
	if len(b) <= 512 {
		return append([]byte(nil), b...)
	}
	return append(p.Buffer(), b...)
}

// Release takes a buffer back; one that grew far is left to the garbage collector.
func (p *Pool) Release(b []byte) {
	if cap(b) < bufSize || cap(b) > 2*bufSize || len(p.bufs) >= maxFreeBufs {
		return
	}
	p.bufs = append(p.bufs, b[:0])
}

// Park takes note of n more bytes that wait for a peer that does not take them, beyond what the window of their connection
// is for, and returns how many of them the shard has room for: 64 MiB for all connections. Unpark gives the room back.
func (p *Pool) Park(n int) int {
	n = min(n, maxParked-p.parked)
	p.parked += n
	return n
}

// Unpark ends the waiting of n bytes.
func (p *Pool) Unpark(n int) { p.parked -= n }

// Parked is how many bytes wait so.
func (p *Pool) Parked() int { return p.parked }

// Held is how much memory waits for peers, in bytes: in streams, and as input of clients that has to wait.
func (p *Pool) Held() int { return p.held }

// Watch has f called when more than mark bytes are held, once, within a call by whoever holds more. It replaces an earlier
// Watch.
func (p *Pool) Watch(mark int, f func()) { p.mark, p.full = mark, f }

// Keep accounts for n more bytes, or fewer, that a server codec keeps.
func (p *Pool) Keep(n int) {
	p.held += n
	if p.held > p.mark && p.full != nil {
		f := p.full
		p.full = nil
		f()
	}
}
