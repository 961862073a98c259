package drive

import (
	"errors"

	"conduit.io/conduit/tests/load/engine"
)

// link is a connection to the target.
type link struct {
	r        *runner
	slot     int
	conn     *engine.Conn
	proto    codec
	live     map[uint32]*request
	streams  int  // that the peer and the load allow
	offered  bool // in runner.ready
	usable   bool // the peer is ready for requests
	draining bool // no more requests are begun
	replaced bool
}

// codec is the protocol of a link.
type codec interface {
	start(q *request)
	data(b []byte) int
	drained()
	// eof tells of the connection's orderly end; an answer may end with it.
	eof()
	// cancel tells the target that nobody waits for q any longer.
	cancel(q *request)
}

var errProtocol = errors.New("the target broke the protocol")

func (l *link) Connected() {
	l.live = map[uint32]*request{}
	if l.r.cfg.Protocol == HTTP1 {
		l.proto = &h1Link{link: l}
		l.ready(1)
		return
	}
	l.proto = newH2(l)
}

// ready takes requests from now on, at most streams at a time.
func (l *link) ready(streams int) {
	l.streams = min(streams, l.r.cfg.Streams)
	if !l.usable {
		l.usable = true
		l.r.usable(l)
	}
}

// room is how many requests can be begun.
func (l *link) room() int {
	if !l.usable || l.draining || !l.conn.Open() {
		return 0
	}
	return l.streams - len(l.live)
}

func (l *link) start(q *request) { l.proto.start(q) }

func (l *link) remove(q *request) { delete(l.live, q.id) }

func (l *link) Data(b []byte) int { return l.proto.data(b) }

func (l *link) Drained() { l.proto.drained() }

func (l *link) EOF() {
	if l.proto != nil {
		l.proto.eof()
	}
	l.end(engine.ErrEOF)
}

func (l *link) Closed(err error) { l.end(err) }

// end is called when the connection is of no use any longer.
func (l *link) end(err error) {
	l.close()
	if l.draining && l.replaced && len(l.live) == 0 {
		return
	}
	l.draining = true
	if l.usable {
		l.r.replace(l)
	} else if !l.replaced {
		l.replaced = true
		l.r.unreachable(l, err)
	}
	for _, q := range l.live {
		l.r.fail(q, lost(err))
	}
}

// drain begins no more requests, and closes after the last.
func (l *link) drain() {
	l.draining = true
	if len(l.live) == 0 {
		l.close()
	}
}

func (l *link) close() {
	if l == nil || l.conn == nil {
		return
	}
	l.conn.Close()
	l.r.res.BytesIn += l.conn.Read
	l.r.res.BytesOut += l.conn.Wrote
	l.conn.Read, l.conn.Wrote = 0, 0
}

func (l *link) sweep(now int64) {
	for _, q := range l.live {
		if now-q.sent > int64(l.r.cfg.Timeout) {
			l.proto.cancel(q)
			l.r.fail(q, "timeout")
		}
	}
}
