package h2

import (
	"encoding/binary"
	"errors"
	"fmt"

	"conduit.io/conduit/tests/load/engine"

	"golang.org/x/net/http2"
)

const (
	streamWindow = 1 << 20
	connWindow   = 16 << 20
	maxBacklog   = 256 << 10 // output that waits in a connection: more is made when it has left
	maxBlock     = 64 << 10
)

// Peer is told what the other side sends. Fields and data are valid during the call.
type Peer interface {
	// Settings: the peer's, each time they come. maxStreams is how many streams it allows.
	Settings(maxStreams uint32)
	Headers(id uint32, f *Fields, end bool)
	Message(id uint32, p []byte, end bool) // DATA
	Reset(id uint32, code http2.ErrCode)
	GoAway(last uint32, code http2.ErrCode)
}

// Session is one end of an HTTP/2 connection. It lives on its connection's loop.
type Session struct {
	conn    *engine.Conn
	peer    Peer
	server  bool
	started bool // the peer's preface has come
	enc     *encoder
	dec     *decoder
	block   []byte // a header block that goes on in CONTINUATION frames
	blockID uint32
	blockNd bool
	window  int64 // what may be sent on the connection
	initial int64 // what may be sent on a new stream
	streams map[uint32]*Body
	ready   []*Body // from next on: those with something to send and a window to send it in
	next    int
	free    *Body
	unread  int // received on the connection, not yet credited
}

// NewSession starts a session on c and sends the preface. maxStreams is how many streams a server allows.
func NewSession(c *engine.Conn, p Peer, server bool, maxStreams uint32) *Session {
	s := &Session{conn: c, peer: p, server: server, enc: newEncoder(), dec: newDecoder(),
		window: 65535, initial: 65535, streams: map[uint32]*Body{}}
	out := c.Output()
	if server {
		out = appendSettings(out, http2.Setting{ID: http2.SettingInitialWindowSize, Val: streamWindow},
			http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: maxStreams})
	} else {
		out = append(out, Preface...)
		out = appendSettings(out, http2.Setting{ID: http2.SettingInitialWindowSize, Val: streamWindow},
			http2.Setting{ID: http2.SettingEnablePush, Val: 0})
	}
	c.Commit(appendUint(out, http2.FrameWindowUpdate, 0, connWindow-65535))
	return s
}

// Take handles the frames at the front of b and returns how long they were. After an error the connection is of no use.
func (s *Session) Take(b []byte) (int, error) {
	took := 0
	if s.server && !s.started {
		if len(b) < len(Preface) {
			return 0, nil
		}
		if string(b[:len(Preface)]) != Preface {
			return 0, errors.New("not a client preface")
		}
		took = len(Preface)
	}
	s.started = true
	for s.conn.Open() {
		f, n, err := next(b[took:])
		if err != nil {
			return took, err
		}
		if n == 0 {
			break
		}
		took += n
		if err := s.frame(f); err != nil {
			return took, fmt.Errorf("%v: %w", f.kind, err)
		}
	}
	s.Pump()
	return took, nil
}

func (s *Session) frame(f frame) error {
	if (s.blockID != 0) != (f.kind == http2.FrameContinuation) || s.blockID != 0 && f.id != s.blockID {
		return errors.New("out of place")
	}
	switch f.kind {
	case http2.FrameHeaders:
		p, err := f.body()
		if err != nil {
			return err
		}
		end := f.flags.Has(http2.FlagHeadersEndStream)
		if f.flags.Has(http2.FlagHeadersEndHeaders) {
			return s.headers(f.id, p, end)
		}
		s.block, s.blockID, s.blockNd = append(s.block[:0], p...), f.id, end
	case http2.FrameContinuation:
		s.block = append(s.block, f.payload...)
		if len(s.block) > maxBlock {
			return errors.New("header block too large")
		}
		if f.flags.Has(http2.FlagContinuationEndHeaders) {
			s.blockID = 0
			return s.headers(f.id, s.block, s.blockNd)
		}
	case http2.FrameData:
		return s.data(f)
	default:
		return s.control(f)
	}
	return nil
}

func (s *Session) headers(id uint32, block []byte, end bool) error {
	f, err := s.dec.block(block)
	if err != nil {
		return err
	}
	s.peer.Headers(id, f, end)
	return nil
}

func (s *Session) data(f frame) error {
	p, err := f.body()
	if err != nil {
		return err
	}
	if s.unread += len(f.payload); s.unread > connWindow/4 {
		s.conn.Commit(appendUint(s.conn.Output(), http2.FrameWindowUpdate, 0, uint32(s.unread)))
		s.unread = 0
	}
	if pad := len(f.payload) - len(p); pad > 0 {
		s.Credit(f.id, pad)
	}
	s.peer.Message(f.id, p, f.flags.Has(http2.FlagDataEndStream))
	return nil
}

// Credit allows the peer to send n bytes more on a stream: what was received is kept no longer.
func (s *Session) Credit(id uint32, n int) {
	if s.conn.Open() && n > 0 {
		s.conn.Commit(appendUint(s.conn.Output(), http2.FrameWindowUpdate, id, uint32(n)))
	}
}

func (s *Session) control(f frame) error {
	p := f.payload
	switch f.kind {
	case http2.FrameSettings:
		return s.settings(f)
	case http2.FramePing:
		if len(p) == 8 && !f.flags.Has(http2.FlagPingAck) {
			s.conn.Commit(appendFrame(s.conn.Output(), http2.FramePing, http2.FlagPingAck, 0, p))
		}
	case http2.FrameWindowUpdate:
		if len(p) != 4 {
			return errors.New("bad length")
		}
		s.enlarge(f.id, int64(binary.BigEndian.Uint32(p)&0x7fffffff))
	case http2.FrameRSTStream:
		if len(p) != 4 {
			return errors.New("bad length")
		}
		s.forget(f.id)
		s.peer.Reset(f.id, http2.ErrCode(binary.BigEndian.Uint32(p)))
	case http2.FrameGoAway:
		if len(p) < 8 {
			return errors.New("bad length")
		}
		s.peer.GoAway(binary.BigEndian.Uint32(p)&0x7fffffff, http2.ErrCode(binary.BigEndian.Uint32(p[4:])))
	case http2.FramePushPromise:
		return errors.New("not enabled")
	}
	return nil
}

func (s *Session) settings(f frame) error {
	if f.flags.Has(http2.FlagSettingsAck) {
		return nil
	}
	if len(f.payload)%6 != 0 {
		return errors.New("bad length")
	}
	streams := uint32(1<<31 - 1)
	for p := f.payload; len(p) > 0; p = p[6:] {
		v := binary.BigEndian.Uint32(p[2:])
		switch http2.SettingID(binary.BigEndian.Uint16(p)) {
		case http2.SettingInitialWindowSize:
			for _, b := range s.streams {
				b.window += int64(v) - s.initial
				s.wake(b)
			}
			s.initial = int64(v)
		case http2.SettingHeaderTableSize:
			s.enc.tableSize(min(v, 4096))
		case http2.SettingMaxConcurrentStreams:
			streams = v
		}
	}
	s.conn.Commit(appendFrame(s.conn.Output(), http2.FrameSettings, http2.FlagSettingsAck, 0, nil))
	s.peer.Settings(streams)
	return nil
}

// SendHeaders sends a header block. key numbers fields that are sent again and again, with the same values; 0 others.
func (s *Session) SendHeaders(id uint32, key int, fields []Field, end bool) {
	if !s.conn.Open() {
		return
	}
	b := s.enc.block(key, fields)
	out, kind := s.conn.Output(), http2.FrameHeaders
	flags := http2.Flags(0)
	if end {
		flags = http2.FlagHeadersEndStream
	}
	for len(b) > maxFrame {
		out = appendFrame(out, kind, flags, id, b[:maxFrame])
		b, kind, flags = b[maxFrame:], http2.FrameContinuation, 0
	}
	s.conn.Commit(appendFrame(out, kind, flags|http2.FlagHeadersEndHeaders, id, b))
}

// SendReset ends a stream with RST_STREAM.
func (s *Session) SendReset(id uint32, code http2.ErrCode) {
	s.forget(id)
	if s.conn.Open() {
		s.conn.Commit(appendUint(s.conn.Output(), http2.FrameRSTStream, id, uint32(code)))
	}
}

// SendGoAway asks the peer to begin no more streams here; those that it has begun meanwhile are served (RFC 9113, 6.8).
func (s *Session) SendGoAway() {
	if s.conn.Open() {
		out := appendFrame(s.conn.Output(), http2.FrameGoAway, 0, 0, []byte{0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0})
		s.conn.Commit(out)
	}
}
