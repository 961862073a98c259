package h2

import (
	"encoding/binary"

	"golang.org/x/net/http2"
)

// Content is a body made while it is sent: Chunks times Size bytes, each chunk in frames of its own and, for gRPC,
// preceded by the five bytes that make it a message.
type Content struct {
	Chunks, Size int
	GRPC         bool
}

const grpcPrefix = 5

func (c Content) period() int {
	if c.GRPC {
		return c.Size + grpcPrefix
	}
	return c.Size
}

// Len is the length of the whole body.
func (c Content) Len() int { return c.Chunks * c.period() }

// filler is what bodies are made of.
var filler = func() (f [maxFrame]byte) {
	for i := range f {
		f[i] = 'a' + byte(i%26)
	}
	return f
}()

// Append appends n bytes of the body from off on; they must lie within one chunk.
func (c Content) Append(b []byte, off, n int) []byte {
	at := off % max(c.period(), 1)
	if c.GRPC && at < grpcPrefix {
		prefix := binary.BigEndian.AppendUint32([]byte{0}, uint32(c.Size))[at:min(grpcPrefix, at+n)]
		b = append(b, prefix...)
		n -= len(prefix)
	}
	for n > 0 {
		k := min(n, maxFrame)
		b = append(b, filler[:k]...)
		n -= k
	}
	return b
}

// Body is what is being sent on a stream: made content, or bytes that are appended as they come.
type Body struct {
	id       uint32
	window   int64
	content  Content
	off      int
	queue    []byte
	closed   bool // nothing will be appended
	trailers func()
	queued   bool // in Session.ready
	lent     bool // to the caller of SendQueue
	next     *Body
	// Sent, when set, is told how much of the queue has left.
	Sent func(n int)
}

// Expect announces that a body will be sent on a stream later: what the peer allows meanwhile is remembered.
func (s *Session) Expect(id uint32) {
	if s.streams[id] != nil {
		return
	}
	b := s.free
	if b == nil {
		b = &Body{}
	} else {
		s.free = b.next
	}
	*b = Body{id: id, window: s.initial, queue: b.queue[:0]}
	s.streams[id] = b
}

// SendContent sends a whole body and, if trailers is nil, ends the stream with it; otherwise trailers is called when
// it has been sent, and has to end the stream.
func (s *Session) SendContent(id uint32, c Content, trailers func()) {
	n := c.Len()
	b := s.streams[id]
	if b == nil && c.Chunks <= 1 && n <= maxFrame && int64(n) <= min(s.window, s.initial) && s.conn.Open() && s.conn.Backlog() < maxBacklog {
		s.sendWhole(id, c, n, trailers)
		return
	}
	if n == 0 {
		c.Chunks = 0
	}
	s.Expect(id)
	b = s.streams[id]
	b.content, b.closed, b.trailers = c, true, trailers
	s.wake(b)
	s.Pump()
}

// sendWhole sends a small body as one frame, without any bookkeeping.
func (s *Session) sendWhole(id uint32, c Content, n int, trailers func()) {
	if trailers == nil {
		s.conn.Commit(c.Append(appendHead(s.conn.Output(), n, http2.FrameData, http2.FlagDataEndStream, id), 0, n))
	} else if n > 0 {
		s.conn.Commit(c.Append(appendHead(s.conn.Output(), n, http2.FrameData, 0, id), 0, n))
	}
	s.window -= int64(n)
	if trailers != nil {
		trailers()
	}
}

// SendBytes sends p as the whole body, in one frame that does not end the stream, if the windows have room for it right away.
func (s *Session) SendBytes(id uint32, p []byte) bool {
	window := s.initial
	b := s.streams[id]
	if b != nil {
		window = b.window
	}
	if len(p) > maxFrame || int64(len(p)) > min(s.window, window) || !s.conn.Open() || s.conn.Backlog() >= maxBacklog {
		return false
	}
	if b != nil {
		s.forget(id)
	}
	s.conn.Commit(appendFrame(s.conn.Output(), http2.FrameData, 0, id, p))
	s.window -= int64(len(p))
	return true
}

// SendQueue starts a body whose bytes are appended with Append and ended with Finish. trailers is as for SendContent.
func (s *Session) SendQueue(id uint32, trailers func()) *Body {
	s.Expect(id)
	b := s.streams[id]
	b.trailers, b.lent = trailers, true
	return b
}

// Append appends to a body of SendQueue. p is copied.
func (s *Session) Append(b *Body, p []byte) {
	b.queue = append(b.queue, p...)
	s.wake(b)
}

// Finish ends a body of SendQueue.
func (s *Session) Finish(b *Body) {
	b.closed = true
	s.wake(b)
}

func (b *Body) left() int {
	if b.content.Chunks > 0 {
		return b.content.Len() - b.off
	}
	return len(b.queue)
}

// wake puts b among those that can send.
func (s *Session) wake(b *Body) {
	if n := b.left(); !b.queued && (n > 0 && b.window > 0 || n == 0 && b.closed) {
		b.queued = true
		s.ready = append(s.ready, b)
	}
}

func (s *Session) enlarge(id uint32, n int64) {
	if id == 0 {
		s.window += n
	} else if b := s.streams[id]; b != nil {
		b.window += n
		s.wake(b)
	}
}

func (s *Session) forget(id uint32) {
	if b := s.streams[id]; b != nil {
		delete(s.streams, id)
		b.closed, b.queue, b.content, b.window, b.trailers = false, b.queue[:0], Content{}, 0, nil
		if !b.lent && !b.queued && cap(b.queue) == 0 {
			b.next, s.free = s.free, b
		}
	}
}

// Abandon gives up what has not been sent on a stream, because nobody waits for it.
func (s *Session) Abandon(id uint32) {
	if s.streams[id] != nil {
		s.SendReset(id, http2.ErrCodeCancel)
	}
}

// Pump sends what the windows allow, a frame of each stream in turn. Callers of Append and Finish outside of Take, and
// connections that have drained, call it.
func (s *Session) Pump() {
	for s.next < len(s.ready) && s.conn.Open() && s.conn.Backlog() < maxBacklog {
		b := s.ready[s.next]
		if b.left() > 0 && s.window <= 0 {
			break
		}
		s.next++
		b.queued = false
		if b.window > 0 || b.closed && b.left() == 0 {
			s.send(b)
		}
	}
	if s.next < len(s.ready) && s.conn.Backlog() >= maxBacklog {
		s.conn.NotifyDrained()
	}
	if s.next > len(s.ready)/2 {
		s.ready = s.ready[:copy(s.ready, s.ready[s.next:])]
		s.next = 0
	}
}

// send sends one frame of b.
func (s *Session) send(b *Body) {
	left := b.left()
	n := int(min(int64(left), maxFrame, b.window, s.window))
	if p := b.content.period(); b.content.Chunks > 0 {
		n = min(n, p-b.off%p)
	}
	last := b.closed && n == left
	flags := http2.Flags(0)
	if last && b.trailers == nil {
		flags = http2.FlagDataEndStream
	}
	if n > 0 || flags != 0 {
		out := appendHead(s.conn.Output(), n, http2.FrameData, flags, b.id)
		if b.content.Chunks > 0 {
			out = b.content.Append(out, b.off, n)
			b.off += n
		} else {
			out = append(out, b.queue[:n]...)
			b.queue = b.queue[:copy(b.queue, b.queue[n:])]
		}
		s.conn.Commit(out)
		b.window -= int64(n)
		s.window -= int64(n)
		if b.Sent != nil {
			b.Sent(n) // writes, too
		}
	}
	if !last {
		s.wake(b)
		return
	}
	end := b.trailers
	s.forget(b.id)
	if end != nil {
		end()
	}
}
