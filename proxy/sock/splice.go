package sock

import (
	"math"
	"syscall"

	"conduit.io/conduit/proxy/flow"
	"conduit.io/conduit/proxy/loop"

	"golang.org/x/sys/unix"
)

// Between two plain connections bytes that nobody needs to see stay in the kernel: splice(2) moves pages from the one
// socket into a pipe, and from there to the other socket, where reading and writing copies them twice. It takes two
// calls and a pipe, and pays for much data only.
const (
	// bulkReads in succession, each of bulkLeast bytes or more, make a connection worth a pipe.
	bulkReads = 4
	bulkLeast = 32 << 10
	// spliceMost is a pipe's size, the largest that everybody may have (pipe(7)), and so what is moved at once. Less is moved at
	// a higher price: it is 256 pages, most of which are not full.
	spliceMost = 1 << 20
	// spliceCost is how many bytes go for one that is copied, in a turn's share.
	spliceCost = 8
	// maxPipes bounds what one loop spends on pipes, in descriptors, two each, and in memory: a user may have 64 MiB of them
	// (pipe(7), pipe-user-pages-soft). idlePipes of them wait for the next.
	maxPipes  = 64
	idlePipes = 4
)

// pipe is on its way between two sockets: it belongs to the destination, before whose queue its bytes are.
type pipe struct {
	r, w int
	n    int
	from *Conn // waits until it is empty
}

// pipes are those of a loop.
type pipes struct {
	idle []*pipe
	made int
}

func pipesOf(l *loop.Loop) *pipes {
	ps, _ := l.Local.(*pipes)
	if ps == nil {
		ps = &pipes{}
		l.Local = ps
	}
	return ps
}

// Close implements io.Closer, for the end of the loop.
func (ps *pipes) Close() error {
	for _, p := range ps.idle {
		ps.end(p)
	}
	ps.idle = nil
	return nil
}

// take is nil when there are too many, or no descriptors are left.
func (ps *pipes) take() *pipe {
	if n := len(ps.idle); n > 0 {
		p := ps.idle[n-1]
		ps.idle = ps.idle[:n-1]
		return p
	}
	if ps.made >= maxPipes {
		return nil
	}
	var fd [2]int
	if unix.Pipe2(fd[:], unix.O_NONBLOCK|unix.O_CLOEXEC) != nil {
		return nil
	}
	// Where the user's pipes have too much already it keeps its 64 KiB.
	_, _ = unix.FcntlInt(uintptr(fd[0]), unix.F_SETPIPE_SZ, spliceMost)
	ps.made++
	return &pipe{r: fd[0], w: fd[1]}
}

// give takes a pipe back; one with bytes in it is of no more use.
func (ps *pipes) give(p *pipe) {
	if p.from = nil; p.n > 0 || len(ps.idle) >= idlePipes {
		ps.end(p)
		return
	}
	ps.idle = append(ps.idle, p)
}

func (ps *pipes) end(p *pipe) {
	unix.Close(p.r)
	unix.Close(p.w)
	ps.made--
}

// note remembers how much reads bring.
func (c *Conn) note(n int) {
	switch {
	case n < bulkLeast:
		c.bulk = 0
	case c.bulk < bulkReads:
		c.bulk++
	}
}

// splice moves what has arrived to where it goes, if it may; it reports how much that was, and that c has to wait
// because the other side takes no more. 0 means that reading has to tell what there is.
func (c *Conn) splice() (n int, wait bool) {
	if c.bulk < bulkReads || c.hup {
		return 0, false
	}
	r, ok := c.rcv.(flow.Shortcut)
	if !ok {
		return 0, false
	}
	d, ok := r.Beyond().(*Conn)
	if !ok || d.tls != nil || d.stage != nil || d.dead || d.fin || d.err != nil || d.l != c.l {
		return 0, false
	}
	if d.out.n > 0 && !d.blocked {
		d.push()
	}
	if d.out.n > 0 || d.pipe != nil {
		return 0, false
	}
	ps := pipesOf(c.l)
	p := ps.take()
	if p == nil {
		c.bulk = 0
		return 0, false
	}
	n, e := sysSplice(c.fd, p.w, spliceMost)
	if e != 0 || n == 0 {
		ps.give(p)
		if e != unix.EAGAIN {
			c.bulk = math.MinInt8 // a kind of socket that has no splice; also the end, or an error
		}
		return 0, false
	}
	c.note(n)
	p.n, p.from, d.pipe = n, c, p
	r.Passed(n)
	d.drainPipe()
	c.stuck = d.pipe != nil
	return n, c.stuck
}

// drainPipe writes what is in the pipe.
func (c *Conn) drainPipe() {
	p := c.pipe
	for p.n > 0 && !c.blocked {
		n, e := sysSplice(p.r, c.fd, p.n)
		switch {
		case e == unix.EAGAIN:
			c.blocked = true
		case e != 0:
			c.writeFailed(e)
			return
		default:
			p.n -= n
			if c.closing {
				c.wait(flushTimeout)
			}
		}
	}
	if p.n == 0 {
		c.dropPipe()
	}
}

// dropPipe ends the way through a pipe, with whatever is in it.
func (c *Conn) dropPipe() {
	p := c.pipe
	if p == nil {
		return
	}
	c.pipe = nil
	from := p.from
	pipesOf(c.l).give(p)
	if from.stuck && !from.dead {
		from.stuck = false
		from.goOn()
	}
}

func sysSplice(from, to, n int) (int, syscall.Errno) {
	for {
		n, _, e := unix.RawSyscall6(unix.SYS_SPLICE, uintptr(from), 0, uintptr(to), 0, uintptr(n), unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
		if e != unix.EINTR {
			return int(n), e
		}
	}
}
