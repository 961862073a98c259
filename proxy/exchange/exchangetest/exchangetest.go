// Package exchangetest has the two ends that tests of codecs need around them: a raw peer on a connection, and a
// Handler that forwards.
package exchangetest

import (
	"bytes"
	"errors"
	"io"

	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/exchange"
	"conduit.io/conduit/proxy/flow/flowtest"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// Peer is the far end of a connection: it keeps what it gets.
type Peer struct {
	C      *flowtest.Conn
	Got    bytes.Buffer
	HadEOF bool
	Ended  bool
	Err    error
	OnData func(p []byte) // if set, instead of Got
	OnEOF  func()
}

// NewPeer makes itself the receiver of c.
func NewPeer(c *flowtest.Conn) *Peer {
	p := &Peer{C: c}
	c.SetReceiver(p)
	return p
}

// Data implements flow.Receiver.
func (p *Peer) Data(b []byte) {
	if p.OnData != nil {
		p.OnData(b)
		return
	}
	p.Got.Write(b)
}

// EOF implements flow.Receiver.
func (p *Peer) EOF() {
	p.HadEOF = true
	if p.OnEOF != nil {
		p.OnEOF()
	}
}

// Drained implements flow.Receiver.
func (p *Peer) Drained() {}

// Closed implements flow.Receiver.
func (p *Peer) Closed(err error) { p.Ended, p.Err = true, err }

// Send writes s.
func (p *Peer) Send(s string) { p.C.Write([]byte(s)) }

// Take returns what has come since the last Take.
func (p *Peer) Take() string {
	s := p.Got.String()
	p.Got.Reset()
	return s
}

// Record is what a Handler saw of a stream.
type Record struct {
	Method, Path, Authority string
	Status                  int
	Reason                  mesh.Reason
	ReqBytes, ResBytes      uint64
	Trailers                []hpack.HeaderField
	Tunnel                  bool
}

// Handler forwards every stream to Up, or does what the hooks say.
type Handler struct {
	Up         func(s *exchange.Stream) exchange.Upstream
	Extra      []hpack.HeaderField
	OnRequest  func(s *exchange.Stream)
	OnResponse func(s *exchange.Stream)
	OnLost     func(s *exchange.Stream, reason mesh.Reason) bool
	Open       int
	Log        []Record
	Losses     int
}

// Request implements exchange.Handler.
func (h *Handler) Request(s *exchange.Stream) {
	h.Open++
	if h.OnRequest != nil {
		h.OnRequest(s)
		return
	}
	s.Forward(h.Up(s), h.Extra)
}

// Response implements exchange.Handler.
func (h *Handler) Response(s *exchange.Stream) {
	if h.OnResponse != nil {
		h.OnResponse(s)
	}
}

// Lost implements exchange.Handler.
func (h *Handler) Lost(s *exchange.Stream, reason mesh.Reason) bool {
	h.Losses++
	return h.OnLost != nil && h.OnLost(s, reason)
}

// Done implements exchange.Handler.
func (h *Handler) Done(s *exchange.Stream) {
	h.Open--
	r := Record{Method: s.Req.Method, Path: s.Req.Path, Authority: s.Req.Authority, Reason: s.Reason,
		ReqBytes: s.ReqBytes, ResBytes: s.ResBytes, Trailers: append([]hpack.HeaderField(nil), s.Trailers...), Tunnel: s.Tunnel}
	if s.Res != nil {
		r.Status = s.Res.Status
	}
	h.Log = append(h.Log, r)
}

// Frame is a frame as H2 read it.
type Frame struct {
	Type   http2.FrameType
	Flags  http2.Flags
	ID     uint32
	Data   []byte
	Fields []hpack.HeaderField
	Code   http2.ErrCode
	Inc    uint32
	Last   uint32
	// Settings are those of a SETTINGS frame, by their last value.
	Settings map[http2.SettingID]uint32
}

// H2 is an HTTP/2 peer made of x/net's Framer. It acknowledges SETTINGS.
type H2 struct {
	*Peer
	F      *http2.Framer
	w, r   bytes.Buffer
	enc    *hpack.Encoder
	hb     bytes.Buffer
	Frames []Frame
	Errs   []error
	Rude   bool // it acknowledges no SETTINGS
}

// NewH2 makes a peer that reads and writes frames; a client first sends the preface.
func NewH2(c *flowtest.Conn, client bool) *H2 {
	h := &H2{Peer: NewPeer(c)}
	h.F = http2.NewFramer(&h.w, &h.r)
	h.F.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	h.F.AllowIllegalWrites = true
	h.enc = hpack.NewEncoder(&h.hb)
	skip := 0
	if client {
		h.Send(http2.ClientPreface)
	} else {
		skip = len(http2.ClientPreface)
	}
	h.OnData = func(p []byte) {
		k := min(skip, len(p))
		skip -= k
		h.r.Write(p[k:])
		h.read()
	}
	return h
}

// complete reports whether r holds a whole frame, and a whole header block if one starts there.
func (h *H2) complete() bool {
	b := h.r.Bytes()
	for {
		if len(b) < 9 {
			return false
		}
		l := int(b[0])<<16 | int(b[1])<<8 | int(b[2])
		if len(b) < 9+l {
			return false
		}
		if t := b[3]; t != 1 && t != 9 || b[4]&4 != 0 {
			return true
		}
		b = b[9+l:]
	}
}

func (h *H2) read() {
	for h.complete() {
		f, err := h.F.ReadFrame()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			h.Errs = append(h.Errs, err)
			continue
		}
		hd := f.Header()
		out := Frame{Type: hd.Type, Flags: hd.Flags, ID: hd.StreamID}
		switch f := f.(type) {
		case *http2.DataFrame:
			out.Data = append([]byte(nil), f.Data()...)
		case *http2.MetaHeadersFrame:
			out.Fields = append([]hpack.HeaderField(nil), f.Fields...)
		case *http2.RSTStreamFrame:
			out.Code = f.ErrCode
		case *http2.GoAwayFrame:
			out.Code, out.Last = f.ErrCode, f.LastStreamID
		case *http2.WindowUpdateFrame:
			out.Inc = f.Increment
		case *http2.SettingsFrame:
			out.Settings = map[http2.SettingID]uint32{}
			_ = f.ForeachSetting(func(s http2.Setting) error { out.Settings[s.ID] = s.Val; return nil })
		case *http2.PingFrame:
			out.Data = append([]byte(nil), f.Data[:]...)
		}
		h.Frames = append(h.Frames, out)
		if hd.Type == http2.FrameSettings && !hd.Flags.Has(http2.FlagSettingsAck) && !h.Rude {
			_ = h.F.WriteSettingsAck()
			h.Flush()
		}
	}
}

// Flush sends what was written with F.
func (h *H2) Flush() {
	h.C.Write(h.w.Bytes())
	h.w.Reset()
}

// Settings sends SETTINGS.
func (h *H2) Settings(s ...http2.Setting) {
	_ = h.F.WriteSettings(s...)
	h.Flush()
}

// Headers sends a header block of name, value pairs.
func (h *H2) Headers(id uint32, end bool, kv ...string) {
	_ = h.F.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: h.Block(kv...), EndStream: end, EndHeaders: true})
	h.Flush()
}

// Block encodes name, value pairs.
func (h *H2) Block(kv ...string) []byte {
	h.hb.Reset()
	for i := 0; i < len(kv); i += 2 {
		_ = h.enc.WriteField(hpack.HeaderField{Name: kv[i], Value: kv[i+1]})
	}
	return h.hb.Bytes()
}

// Body sends DATA.
func (h *H2) Body(id uint32, end bool, p []byte) {
	_ = h.F.WriteData(id, end, p)
	h.Flush()
}

// Find returns the frames of a type on a stream.
func (h *H2) Find(t http2.FrameType, id uint32) []Frame {
	var out []Frame
	for _, f := range h.Frames {
		if f.Type == t && f.ID == id {
			out = append(out, f)
		}
	}
	return out
}

// Bytes is the data of a stream, and whether its end was seen.
func (h *H2) Bytes(id uint32) (b []byte, end bool) {
	for _, f := range h.Frames {
		if f.ID != id {
			continue
		}
		if f.Type == http2.FrameData {
			b = append(b, f.Data...)
		}
		if (f.Type == http2.FrameData || f.Type == http2.FrameHeaders) && f.Flags.Has(http2.FlagDataEndStream) {
			end = true
		}
	}
	return b, end
}

// Field is the value of a field in the n-th header block of a stream.
func (h *H2) Field(id uint32, n int, name string) string {
	hs := h.Find(http2.FrameHeaders, id)
	if n >= len(hs) {
		return ""
	}
	for _, f := range hs[n].Fields {
		if f.Name == name {
			return f.Value
		}
	}
	return ""
}

// IsReset reports whether the connection ended by a reset.
func (p *Peer) IsReset() bool { return p.Ended && p.Err != nil }

// Over reports whether the other side has finished sending, or the connection has ended.
func (p *Peer) Over() bool { return p.HadEOF || p.Ended }
