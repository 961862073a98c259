package h2

import (
	"time"

	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/exchange"
)

const (
	// greetTime is what a client has for its preface and SETTINGS, and for the acknowledgement of ours (RFC 9113, 3.4 and
	// 6.5.3). A server has greetTimeUp: it may accept connections before it serves them.
	greetTime   = 10 * time.Second
	greetTimeUp = 30 * time.Second
	// idleTime: a client's connection that has carried no stream for so long, or at most twice as long, goes away.
	idleTime = 30 * time.Minute
	// dozeTime: a client's connection without streams for so long, or at most twice as long, gives up the memory that it
	// has to be quick. A server's does the same when nobody has had to look whether it is silent.
	dozeTime = 5 * time.Second
	// A server that is silent for linkSilence, or appSilence, and at most twice as long, while streams wait for it, is
	// asked with a PING, and is given up when it says nothing for as long again. Applications are not asked often: gRPC servers close connections
	// that are asked more than every five minutes, and a dead host is found by its kernel's silence (TCP keepalive).
	linkSilence = 10 * time.Second
	appSilence  = 5*time.Minute + 10*time.Second
)

// expectGreeting ends a connection whose peer does not begin as it must.
func (c *conn) expectGreeting() {
	d := greetTime
	if c.side == exchange.Up {
		d = greetTimeUp
	}
	c.greeting = true
	c.watch = c.clock.After(d, c.notGreeted)
}

// agreed is called when the peer's SETTINGS or its acknowledgement of ours has come.
func (c *conn) agreed() {
	if c.first && c.acks && c.greeting {
		c.greeting, c.sure = false, false
		c.watch.Stop()
		c.watch = nil
		c.role.begun()
	}
}

func (c *conn) notGreeted() {
	c.greeting, c.watch = false, nil
	switch {
	case c.over:
	case c.choked: // it is we who do not read
		c.expectGreeting()
	case c.again(c.notGreeted):
	case !c.first:
		c.die(&connError{code: codeProtocol, text: "no SETTINGS came in time", abuse: mesh.AbuseSlowHead, reason: mesh.ReasonTimeout})
	default:
		c.die(&connError{code: codeSettings, text: "SETTINGS were not acknowledged in time", reason: mesh.ReasonTimeout})
	}
}

// again lets f be called once more in the next turn, before it calls the peer late: bytes that came while this process was
// kept from running are read first.
func (c *conn) again(f func()) bool {
	c.sure = !c.sure
	if c.sure {
		c.greeting, c.watch = !c.first || !c.acks, c.clock.After(0, f)
	}
	return c.sure
}

// begun implements role: from now on an idle connection is a waste.
func (sv *Server) begun() {
	sv.mark, sv.dozing = sv.hp.lastID, false
	sv.watch = sv.clock.After(dozeTime, sv.check)
}

func (sv *Server) check() {
	sv.watch = nil
	switch {
	case sv.over || sv.draining:
	case sv.streams.len() > 0 || sv.mark != sv.hp.lastID:
		sv.begun()
	case !sv.dozing:
		sv.doze()
		sv.watch = sv.clock.After(idleTime-dozeTime, sv.check)
	default:
		sv.Drain()
	}
}

// doze gives up the memory that a connection without streams can do without.
func (c *conn) doze() {
	c.dozing = true
	c.streams, c.blocked, c.front = table{}, nil, 0
	if c.hdrID == 0 {
		c.hp.rest()
	}
}

// awake is called when a stream begins.
func (sv *Server) awake() {
	if sv.dozing && sv.watch != nil {
		sv.watch.Stop()
		sv.begun()
	}
}

// begun implements role: from now on silence is counted while streams wait.
func (cl *Client) begun() {
	if cl.streams.len() > 0 {
		cl.listen()
	}
}

func (cl *Client) listen() {
	cl.asked, cl.sure, cl.mark = false, false, cl.heard
	cl.watch = cl.clock.After(cl.patience(), cl.listened)
}

func (cl *Client) patience() time.Duration {
	if cl.internal {
		return linkSilence
	}
	return appSilence
}

func (cl *Client) listened() {
	cl.watch = nil
	switch {
	case cl.over:
	case cl.streams.len() == 0: // Send begins anew
		cl.doze()
	case cl.mark != cl.heard:
		cl.listen()
	case !cl.asked:
		cl.asked = true
		cl.c.Write(append(appendFrame(cl.buf[:0], 8, frPing, 0, 0), "conduit?"...))
		cl.watch = cl.clock.After(cl.patience(), cl.listened)
	case cl.again(cl.listened):
	default: // a dead peer takes no farewell
		cl.over, cl.why = true, mesh.ReasonTimeout
		cl.abortAll()
		cl.c.Abort()
	}
}
