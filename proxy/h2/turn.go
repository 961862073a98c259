package h2

import (
	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/exchange"
)

// What a connection may ask for in one turn of the loop, which it shares with many others; at most twice as much if the
// turn begins in the middle of it. A frame costs one, a header block more: a request is work for two codecs. What is left
// of the input waits for the next turn.
const (
	turnBudget = 1024
	headCost   = 16
)

// spend accounts for a frame, and ends the connection's turn when it has had its share.
func (c *conn) spend(typ byte) {
	c.spent++
	if typ == frHeaders || typ == frContinuation {
		c.spent += headCost - 1
	}
	if c.spent >= turnBudget {
		c.exhausted()
	}
}

func (c *conn) exhausted() {
	c.spent = 0
	if now := c.clock.Now(); now != c.turn { // part of it was spent earlier
		c.turn = now
		return
	}
	if c.tired || c.over {
		return
	}
	c.tired = true
	c.c.Pause()
	c.clock.After(0, c.rested)
}

// rested begins another turn.
func (c *conn) rested() {
	c.tired = false
	c.goOn()
}

// choke stops reading from a client that does not read. A client codec never stops: of two proxies, one goes on.
func (c *conn) choke() {
	if c.side == exchange.Down && !c.choked && !c.over && c.c.Backlog() > maxBacklog {
		c.choked = true
		c.c.Pause()
	}
}

// goOn handles the input that waited, and then reads on.
func (c *conn) goOn() {
	if c.over || c.choked || c.tired {
		return
	}
	if p := c.rest; p != nil {
		c.rest = p[:0]
		c.consume(p)
		c.keep()
		if c.over || c.choked || c.tired {
			return
		}
		c.pool.Release(c.rest)
		c.rest = nil
	}
	c.c.Resume()
}

// keep tells the pool what is kept of the input.
func (c *conn) keep() {
	if n := len(c.in) + len(c.rest) + len(c.hdrBlock); n != c.kept && (c.side == exchange.Down || c.kept > 0) {
		c.pool.Keep(n - c.kept)
		c.kept = n
	}
}

// Held implements exchange.Burden.
func (sv *Server) Held() int {
	n := sv.kept + sv.c.Backlog()
	for _, r := range sv.streams.refs() {
		n += r.S.Queued()
	}
	return n
}

// Taken implements exchange.Burden.
func (sv *Server) Taken() uint64 { return sv.taken - min(sv.taken, uint64(sv.c.Backlog())) }

// Shed implements exchange.Burden. Of a link, which carries the streams of many clients, only those end that wait.
func (sv *Server) Shed() {
	const text = "too much waits to be taken"
	switch {
	case sv.over:
		sv.c.Abort() // it has had its farewell
	case !sv.internal || sv.c.Backlog() > maxBacklog/2:
		sv.die(calm(mesh.AbuseUnread, text))
	default:
		sv.violation(mesh.ReasonOverload, mesh.AbuseUnread, text)
		for _, r := range sv.streams.refs() {
			if r.Live() && r.S.Queued() > 0 {
				id := r.S.Port(exchange.Down).ID
				sv.remove(r.S)
				sv.rst(id, codeCalm)
				r.S.Abort(exchange.Down, mesh.ReasonOverload, codeCalm, false)
			}
		}
	}
}

// wait keeps input for later; p may be part of c.rest.
func (c *conn) wait(p []byte) {
	if c.rest == nil {
		c.rest = c.pool.Hold(p)
		return
	}
	c.rest = append(c.rest, p...)
}
