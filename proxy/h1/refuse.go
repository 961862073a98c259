package h1

import (
	"errors"
	"time"

	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/exchange"
)

// idle closes a connection that has had no request for long.
func (sv *Server) idle() {
	sv.idleTimer = nil
	if sv.state == stOver {
		return
	}
	limit := IdleTimeout
	if sv.drain {
		limit = DrainRest
	}
	rest := limit - time.Duration(sv.o.Clock.Now()-sv.lastUse)
	if sv.s == nil && sv.state == stHead && rest <= 0 {
		sv.shut()
		return
	}
	sv.idleTimer = sv.o.Clock.After(max(rest, limit/4), sv.idle)
}

const (
	slowHead = "the request head took too long"
	slowBody = "the request body comes too slowly"
)

// timeHead runs the timer of a head that has begun and not ended.
func (sv *Server) timeHead() {
	partial := sv.state == stHead && len(sv.in) > 0 && !sv.stalled
	switch {
	case partial && sv.headTimer == nil:
		sv.headTimer = sv.o.Clock.After(HeadTimeout, func() {
			sv.headTimer = nil
			if sv.state == stHead {
				sv.violation(mesh.ReasonTimeout, mesh.AbuseSlowHead, slowHead)
				sv.refuse(408, mesh.ReasonTimeout, slowHead)
				sv.update()
			}
		})
	case !partial && sv.headTimer != nil:
		sv.headTimer.Stop()
		sv.headTimer = nil
	}
}

// pace looks at a body that is under way. Inside a chunk its client owes the rest of it; between two of them it may be that
// there is nothing to send yet.
func (sv *Server) pace() {
	sv.paceTimer = nil
	if sv.state != stBody && sv.state != stChunk {
		return
	}
	if sv.s.Slow(sv.state == stBody || sv.chunk.open()) {
		sv.violation(mesh.ReasonTimeout, mesh.AbuseSlowBody, slowBody)
		sv.refuse(408, mesh.ReasonTimeout, slowBody)
		sv.update()
		return
	}
	sv.look()
}

// look makes pace be called within a tick.
func (sv *Server) look() {
	if sv.paceTimer == nil {
		sv.paceTimer = sv.o.Clock.After(exchange.PaceTick, sv.pace)
	}
}

// bad answers a request that cannot be understood.
func (sv *Server) bad(err error) {
	status, reason, abuse := 400, mesh.ReasonBadRequest, mesh.AbuseNone
	switch {
	case errors.Is(err, errTooLarge):
		status, reason, abuse = 431, mesh.ReasonTooLarge, mesh.AbuseLargeHead
	case errors.Is(err, errLongLine):
		status, reason = 414, mesh.ReasonTooLarge
	case errors.Is(err, errCodings):
		status = 501
	case errors.Is(err, errVersion):
		status = 505
	}
	sv.violation(reason, abuse, err.Error())
	sv.refuse(status, reason, err.Error())
}

func (sv *Server) violation(reason mesh.Reason, abuse mesh.Abuse, text string) {
	if sv.o.OnViolation != nil {
		sv.o.OnViolation(exchange.Violation{Reason: reason, Abuse: abuse, Detail: text})
	}
}

// account tells the pool what is kept of the input.
func (sv *Server) account() {
	if n := len(sv.in); n != sv.kept {
		sv.o.Pool.Keep(n - sv.kept)
		sv.kept = n
	}
}

// Held implements exchange.Burden.
func (sv *Server) Held() int {
	n := sv.kept + sv.c.Backlog()
	if sv.s != nil {
		n += sv.s.Queued()
	}
	return n
}

// Taken implements exchange.Burden.
func (sv *Server) Taken() uint64 { return sv.out.taken - min(sv.out.taken, uint64(sv.c.Backlog())) }

// Shed implements exchange.Burden. There is no way to say why in the middle of a response.
func (sv *Server) Shed() {
	if sv.state != stOver {
		sv.violation(mesh.ReasonOverload, mesh.AbuseUnread, "too much waits to be taken")
		sv.state = stOver
	}
	if s := sv.s; s != nil {
		sv.s = nil
		s.Abort(exchange.Down, mesh.ReasonOverload, 0, false)
	}
	sv.c.Abort()
}

// refuse answers with a line of text, without a stream, and ends the connection. A stream whose request turned out bad is
// aborted.
func (sv *Server) refuse(status int, reason mesh.Reason, text string) {
	started := sv.out.mode != modeNone
	if s := sv.s; s != nil {
		sv.s = nil
		s.Abort(exchange.Down, reason, 0, false)
		if started {
			sv.state = stOver
			sv.c.Abort()
			return
		}
	}
	b := appendStatus(sv.o.Pool.Bytes[:0], status)
	b = append(b, "content-type: text/plain; charset=utf-8\r\nconnection: close\r\n"...)
	b = appendField(b, mesh.ReasonHeader, string(reason))
	b = appendField(b, "content-length", itoa(len(text)+1))
	b = append(append(append(b, "\r\n"...), text...), '\n')
	sv.o.Pool.Bytes = b
	sv.c.Write(b)
	sv.linger()
}

// linger ends the connection without losing what was just written: a close with unread input would be a reset.
func (sv *Server) linger() {
	if sv.eof {
		sv.shut()
		return
	}
	sv.state = stLinger
	sv.c.CloseWrite()
	sv.lingerTimer = sv.o.Clock.After(lingerTimeout, func() {
		if sv.state == stLinger {
			sv.shut()
		}
	})
}
