package trip

import (
	"strconv"
	"time"
)

// Limits bound how long a stream may take; 0: for ever.
type Limits struct {
	// Request bounds the time from a request's head to its response's end. Tunnels have no end.
	Request time.Duration
	// Idle bounds the time without a byte of a body in either direction; the wait for a response is such a time, too. It is
	// noticed after one to two times as long.
	Idle time.Duration
}

// lastWord is how long a client has to take the end of a response that was cut off.
const lastWord = 5 * time.Second

// limited is a Trip's part in the wheel.
type limited struct {
	entry
	deadline int64         // 0: none
	idle     time.Duration // 0: for ever
	moved    uint64        // bytes at the last look
	cutOff   bool
}

// Limit starts the clocks of l, and of the call's own deadline (gRPC over HTTP/2, "Requests": Timeout). It is called once,
// after Begin.
func (t *Trip) Limit(l Limits) {
	s, m := t.S, &t.limited
	m.deadline, m.idle = 0, l.Idle
	if l.Request > 0 && !t.Tunnel {
		m.deadline = s.Start + int64(l.Request)
	}
	if t.GRPC {
		if d, ok := grpcTimeout(s.Req.Get("grpc-timeout")); ok && (m.deadline == 0 || s.Start+int64(d) < m.deadline) {
			m.deadline = s.Start + int64(d)
		}
	}
	if m.deadline != 0 || m.idle != 0 {
		m.moved, m.cutOff, m.owner = 0, false, t
		t.watch(s.Start)
	}
}

// watch waits for the next of the limits.
func (t *Trip) watch(now int64) {
	m := &t.limited
	m.due = m.deadline
	if m.idle > 0 && (m.due == 0 || now+int64(m.idle) < m.due) {
		m.due = now + int64(m.idle)
	}
	if m.due != 0 {
		t.desk.limits().add(&m.entry)
	}
}

// expired is called when the time of one limit has passed.
func (t *Trip) expired(now int64) {
	s, m := t.S, &t.limited
	if s.Tunnel {
		m.deadline = 0
	}
	moved := s.ReqBytes + s.ResBytes
	switch {
	case m.cutOff:
		s.Reset(s.Reason)
	case m.deadline != 0 && m.deadline <= now:
		t.cut(now, "it took longer than it was given")
	case m.idle > 0 && moved == m.moved && now >= s.Start+int64(m.idle):
		t.cut(now, "nothing was sent for "+m.idle.String())
	default:
		m.moved = moved
		t.watch(now)
	}
}

// cut ends a stream that has used up its time. The stream may be gone on return.
func (t *Trip) cut(now int64, why string) {
	t.limited.cutOff, t.limited.due = true, now+int64(lastWord)
	t.desk.limits().add(&t.limited.entry)
	t.S.Expire(why)
}

// grpcTimeout reads a timeout: at most eight digits, and a unit.
func grpcTimeout(v string) (time.Duration, bool) {
	if len(v) < 2 || len(v) > 9 {
		return 0, false
	}
	n, err := strconv.ParseUint(v[:len(v)-1], 10, 32)
	unit := time.Duration(0)
	switch v[len(v)-1] {
	case 'H':
		unit = time.Hour
	case 'M':
		unit = time.Minute
	case 'S':
		unit = time.Second
	case 'm':
		unit = time.Millisecond
	case 'u':
		unit = time.Microsecond
	case 'n':
		unit = time.Nanosecond
	}
	if err != nil || unit == 0 {
		return 0, false
	}
	const ever = 1 << 61 // ns
	return time.Duration(min(n, ever/uint64(unit))) * unit, true
}
