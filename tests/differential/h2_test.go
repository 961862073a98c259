package differential

import (
	"bytes"
	"errors"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// h2conn is one end of an HTTP/2 connection, at frame level: it sends what it is told, valid or not.
type h2conn struct {
	c      net.Conn
	fr     *http2.Framer
	client bool

	wmu sync.Mutex // writing: the framer and the encoder
	hb  bytes.Buffer
	enc *hpack.Encoder

	mu      sync.Mutex
	change  *sync.Cond
	streams map[uint32]*h2stream
	next    uint32
	sendWin int64
	initWin int64
	err     error           // why the connection ended
	accept  func(*h2stream) // server: a new stream
}

// h2stream is what has arrived on a stream. It is guarded by its connection.
type h2stream struct {
	c       *h2conn
	id      uint32
	heads   [][]field
	body    []byte
	ended   bool
	reset   bool
	code    http2.ErrCode
	sendWin int64
}

const recvWindow = 1 << 20

func newH2(c net.Conn, client bool, accept func(*h2stream)) *h2conn {
	h := &h2conn{c: c, client: client, streams: map[uint32]*h2stream{}, next: 1, sendWin: 65535, initWin: 65535, accept: accept}
	h.change = sync.NewCond(&h.mu)
	h.enc = hpack.NewEncoder(&h.hb)
	h.fr = http2.NewFramer(c, c)
	h.fr.AllowIllegalWrites = true
	h.fr.MaxHeaderListSize = 1 << 20
	h.fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	return h
}

// start exchanges prefaces and begins to read.
func (h *h2conn) start() error {
	if h.client {
		if _, err := io.WriteString(h.c, http2.ClientPreface); err != nil {
			return err
		}
	} else {
		got := make([]byte, len(http2.ClientPreface))
		if _, err := io.ReadFull(h.c, got); err != nil {
			return err
		}
		if string(got) != http2.ClientPreface {
			return errors.New("bad preface")
		}
	}
	h.write(func() {
		h.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: recvWindow}, http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 1000})
		h.fr.WriteWindowUpdate(0, 1<<28)
	})
	go h.read()
	return nil
}

func (h *h2conn) write(f func()) {
	h.wmu.Lock()
	defer h.wmu.Unlock()
	f()
}

// read handles frames until the connection ends.
func (h *h2conn) read() {
	for {
		f, err := h.fr.ReadFrame()
		h.mu.Lock()
		if err != nil {
			var se http2.StreamError
			if errors.As(err, &se) {
				if s := h.streams[se.StreamID]; s != nil {
					s.reset, s.code = true, se.Code
				}
				err = nil
			} else {
				h.err = err
			}
		} else {
			h.frame(f)
		}
		h.change.Broadcast()
		h.mu.Unlock()
		if err != nil {
			h.c.Close()
			return
		}
	}
}

// ended waits for the end of the connection.
func (h *h2conn) ended() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for h.err == nil {
		h.change.Wait()
	}
}

// frame notes what a frame says; h.mu is held.
func (h *h2conn) frame(f http2.Frame) {
	s := h.streams[f.Header().StreamID]
	switch f := f.(type) {
	case *http2.MetaHeadersFrame:
		if s == nil && !h.client && f.StreamID >= h.next {
			s, h.next = h.add(f.StreamID), f.StreamID+1
			defer func() { go h.accept(s) }()
		}
		if s != nil {
			var fs []field
			for _, x := range f.Fields {
				fs = append(fs, field{x.Name, x.Value})
			}
			s.heads = append(s.heads, fs)
			s.ended = s.ended || f.StreamEnded()
		}
	case *http2.DataFrame:
		if s != nil {
			s.body = append(s.body, f.Data()...)
			s.ended = s.ended || f.StreamEnded()
			if n := f.Length; n > 0 && !s.ended {
				go h.write(func() { h.fr.WriteWindowUpdate(s.id, n) })
			}
		}
	case *http2.RSTStreamFrame:
		if s != nil {
			s.reset, s.code = true, f.ErrCode
		}
	case *http2.SettingsFrame:
		if !f.IsAck() {
			if v, ok := f.Value(http2.SettingInitialWindowSize); ok {
				for _, s := range h.streams {
					s.sendWin += int64(v) - h.initWin
				}
				h.initWin = int64(v)
			}
			go h.write(func() { h.fr.WriteSettingsAck() })
		}
	case *http2.PingFrame:
		if !f.IsAck() {
			data := f.Data
			go h.write(func() { h.fr.WritePing(true, data) })
		}
	case *http2.WindowUpdateFrame:
		if f.StreamID == 0 {
			h.sendWin += int64(f.Increment)
		} else if s != nil {
			s.sendWin += int64(f.Increment)
		}
	}
}

func (h *h2conn) add(id uint32) *h2stream {
	s := &h2stream{c: h, id: id, sendWin: h.initWin}
	h.streams[id] = s
	return s
}

// open begins a stream with a header block.
func (h *h2conn) open(fs []field, end bool) *h2stream {
	h.mu.Lock()
	s := h.add(h.next)
	h.next += 2
	h.mu.Unlock()
	s.headers(fs, end)
	return s
}

// until waits for ok, which is called with the lock held, or for the end of the stream or its connection.
func (s *h2stream) until(ok func() bool) bool {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	for !ok() && !s.reset && s.c.err == nil {
		s.c.change.Wait()
	}
	return ok()
}

// headers sends a header block, in frames of at most 16 KiB.
func (s *h2stream) headers(fs []field, end bool) {
	h := s.c
	h.write(func() {
		h.hb.Reset()
		for _, f := range fs {
			h.enc.WriteField(hpack.HeaderField{Name: f.name, Value: f.value})
		}
		b := h.hb.Bytes()
		n := min(len(b), 16<<10)
		h.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: s.id, BlockFragment: b[:n], EndStream: end, EndHeaders: n == len(b)})
		for b = b[n:]; len(b) > 0; b = b[n:] {
			n = min(len(b), 16<<10)
			h.fr.WriteContinuation(s.id, n == len(b), b[:n])
		}
	})
}

// data sends body bytes as the windows allow; it reports whether all of them were sent.
func (s *h2stream) data(p []byte, end bool) bool {
	h := s.c
	for first := true; len(p) > 0 || first && end; first = false {
		n := int64(0)
		if !s.until(func() bool { n = min(s.sendWin, h.sendWin, int64(len(p)), 16<<10); return n > 0 || len(p) == 0 }) {
			return false
		}
		h.mu.Lock()
		s.sendWin -= n
		h.sendWin -= n
		h.mu.Unlock()
		last := end && n == int64(len(p))
		h.write(func() { h.fr.WriteData(s.id, last, p[:n]) })
		p = p[n:]
	}
	return true
}

func (s *h2stream) cancel(code http2.ErrCode) {
	s.c.write(func() { s.c.fr.WriteRSTStream(s.id, code) })
}

// body sends a body in pieces, and what ends it.
func (s *h2stream) finish(body []byte, cuts []int, trailers []field) bool {
	ps := pieces(body, cuts)
	for i, p := range ps {
		if !s.data(p, i == len(ps)-1 && len(trailers) == 0) {
			return false
		}
	}
	switch {
	case len(trailers) > 0:
		s.headers(lower(trailers), true)
	case len(ps) == 0:
		s.data(nil, true)
	}
	return true
}

// lower puts names in lower case, and leaves out what HTTP/2 does not allow (RFC 9113, 8.2.2).
func lower(fs []field) []field {
	named := named(fs)
	var out []field
	for _, f := range fs {
		f.name = strings.ToLower(f.name)
		switch {
		case slices.Contains(hopFields, f.name), f.name == "te" && f.value != "trailers":
			continue
		case f.name != "te" && slices.Contains(named, f.name):
			continue
		}
		out = append(out, f)
	}
	return out
}

// head2 is the request's header block.
func (r *request) head2() []field {
	out := []field{{":method", r.method}}
	if r.method == "CONNECT" {
		return append(append(out, field{":authority", r.authority}), lower(r.fields)...)
	}
	path := r.path
	if path == "" { // RFC 9113, 8.3.1
		path = "*"
	}
	out = append(out, field{":scheme", r.scheme}, field{":path", path})
	if !r.noHost {
		out = append(out, field{":authority", r.authority})
	}
	out = append(out, lower(r.fields)...)
	if r.framing == length {
		out = append(out, field{"content-length", strconv.Itoa(len(r.body))})
	}
	return out
}

// write2 answers on a stream.
func (r *response) write2(s *h2stream, method string) {
	for _, i := range r.interims {
		s.headers(append([]field{{":status", strconv.Itoa(i.status)}}, lower(i.fields)...), false)
	}
	head := append([]field{{":status", strconv.Itoa(r.status)}}, lower(r.fields)...)
	if r.framing == length {
		head = append(head, field{"content-length", strconv.Itoa(len(r.body))})
	}
	bodiless := method == "HEAD" || r.status == 204 || r.status == 304 || r.framing == none
	s.headers(head, bodiless)
	switch {
	case bodiless:
	case r.truncate > 0:
		s.data(r.body[:r.truncate-1], false)
		s.cancel(http2.ErrCodeInternal)
	default:
		trailers := r.trailers
		if r.framing != chunked {
			trailers = nil
		}
		s.finish(r.body, r.cuts, trailers)
	}
	if r.early {
		s.cancel(http2.ErrCodeNo)
	}
}

// split takes pseudo-header fields off a block.
func split(block []field) (pseudo map[string]string, rest []field) {
	pseudo = map[string]string{}
	for i, f := range block {
		if f.name[0] != ':' {
			return pseudo, block[i:]
		}
		pseudo[f.name] = f.value
	}
	return pseudo, nil
}

// response waits for the response on a client's stream.
func (s *h2stream) response() *message {
	final := func() int {
		for i, b := range s.heads {
			if p, _ := split(b); p[":status"] >= "200" {
				return i
			}
		}
		return -1
	}
	s.until(func() bool { return s.ended && final() >= 0 })
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	n := final()
	if n < 0 {
		return nil
	}
	m := &message{body: s.body, end: "cut"}
	for i, b := range s.heads {
		p, rest := split(b)
		switch {
		case i < n:
			m.interims = append(m.interims, message{line: p[":status"], fields: rest})
		case i == n:
			m.line, m.fields = p[":status"], rest
		default:
			m.trailers = b
		}
	}
	if s.ended {
		m.end = whole
	}
	return m
}
