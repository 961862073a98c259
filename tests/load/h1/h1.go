// Package h1 is HTTP/1.1 (RFC 9112) as far as a load generator and its backend need it.
package h1

import (
	"bytes"
	"errors"
	"strconv"
)

// Head is the head of a request or a response, and what it says of the body.
type Head struct {
	Method, Path string
	Status       int
	Length       int // -1: not said
	Chunked      bool
	Close        bool // the connection ends after this exchange
	Kind         string
	Reason       string // conduit-reason: why a mesh has answered in the server's place
}

const maxHead = 64 << 10

var (
	errHead   = errors.New("malformed head")
	errLarge  = errors.New("head too large")
	errLength = errors.New("malformed length")
	errChunk  = errors.New("malformed chunk")
	headEnd   = []byte("\r\n\r\n")
)

// Request parses the head of a request at the front of b; n is its length, 0 while it is incomplete.
func (h *Head) Request(b []byte) (n int, err error) {
	line, n, err := h.fields(b)
	if n == 0 || err != nil {
		return 0, err
	}
	method, rest, ok := bytes.Cut(line, []byte(" "))
	path, version, ok2 := bytes.Cut(rest, []byte(" "))
	if !ok || !ok2 || !bytes.HasPrefix(version, []byte("HTTP/1.")) {
		return 0, errHead
	}
	h.Method = intern(method)
	h.Path = string(path)
	if string(version) == "HTTP/1.0" {
		h.Close = true
	}
	return n, nil
}

func intern(method []byte) string {
	switch string(method) {
	case "GET":
		return "GET"
	case "POST":
		return "POST"
	}
	return string(method)
}

// Response parses the head of a response at the front of b; n is its length, 0 while it is incomplete.
func (h *Head) Response(b []byte) (n int, err error) {
	line, n, err := h.fields(b)
	if n == 0 || err != nil {
		return 0, err
	}
	if len(line) < 12 || !bytes.HasPrefix(line, []byte("HTTP/1.")) {
		return 0, errHead
	}
	if h.Status, err = strconv.Atoi(string(line[9:12])); err != nil {
		return 0, errHead
	}
	if line[7] == '0' {
		h.Close = true
	}
	return n, nil
}

// fields parses a head but for its first line.
func (h *Head) fields(b []byte) (first []byte, n int, err error) {
	end := bytes.Index(b, headEnd)
	if end < 0 {
		if len(b) > maxHead {
			return nil, 0, errLarge
		}
		return nil, 0, nil
	}
	n = end + len(headEnd)
	*h = Head{Length: -1}
	first, rest, _ := bytes.Cut(b[:end], []byte("\r\n"))
	for len(rest) > 0 {
		var line []byte
		line, rest, _ = bytes.Cut(rest, []byte("\r\n"))
		name, value, ok := bytes.Cut(line, []byte(":"))
		if !ok {
			return nil, 0, errHead
		}
		if err := h.field(name, bytes.TrimSpace(value)); err != nil {
			return nil, 0, err
		}
	}
	return first, n, nil
}

func (h *Head) field(name, value []byte) (err error) {
	switch {
	case is(name, "content-length"):
		if h.Length, err = strconv.Atoi(string(value)); err != nil || h.Length < 0 {
			return errLength
		}
	case is(name, "transfer-encoding"):
		h.Chunked = is(value, "chunked")
	case is(name, "connection"):
		h.Close = h.Close || is(value, "close")
	case is(name, "content-type"):
		h.Kind = string(value)
	case is(name, "conduit-reason"):
		h.Reason = string(value)
	}
	return nil
}

// is compares without regard to case; word is lower case.
func is(b []byte, word string) bool {
	if len(b) != len(word) {
		return false
	}
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			c |= 0x20
		}
		if c != word[i] {
			return false
		}
	}
	return true
}

// Body finds the end of a body in the bytes that follow a head.
type Body struct {
	left    int // of the body, or of the chunk; -1: until the connection ends
	chunked bool
	state   chunkState
}

type chunkState uint8

const (
	chunkSize chunkState = iota
	chunkData
	chunkEnd
	chunkTrailer
	chunkDone
)

// NewBody is the body that h announces. Requests without a length have none; responses without one last until the
// connection ends, unless bodiless is set (HEAD, 204, 304).
func NewBody(h *Head, response, bodiless bool) Body {
	switch {
	case bodiless:
		return Body{}
	case h.Chunked:
		return Body{chunked: true}
	case h.Length < 0 && response:
		return Body{left: -1}
	}
	return Body{left: max(h.Length, 0)}
}

// UntilEOF reports whether the end of the connection is the end of the body.
func (b *Body) UntilEOF() bool { return !b.chunked && b.left < 0 }

// Take consumes the front of p: n bytes of it, of which data is body; done at the end of the body. It has to be called
// again while n is not 0.
func (b *Body) Take(p []byte) (data []byte, n int, done bool, err error) {
	switch {
	case b.chunked:
		return b.chunk(p)
	case b.left < 0:
		return p, len(p), false, nil
	}
	n = min(len(p), b.left)
	b.left -= n
	return p[:n], n, b.left == 0, nil
}

func (b *Body) chunk(p []byte) (data []byte, n int, done bool, err error) {
	if b.state == chunkData {
		n = min(len(p), b.left)
		if b.left -= n; b.left == 0 {
			b.state = chunkEnd
		}
		return p[:n], n, false, nil
	}
	line, _, ok := bytes.Cut(p, []byte("\r\n"))
	if !ok {
		if len(p) > maxHead {
			err = errChunk
		}
		return nil, 0, false, err
	}
	n = len(line) + 2
	switch b.state {
	case chunkSize:
		size, _, _ := bytes.Cut(line, []byte(";"))
		v, err := strconv.ParseUint(string(bytes.TrimSpace(size)), 16, 31)
		if err != nil {
			return nil, 0, false, errChunk
		}
		if b.left, b.state = int(v), chunkData; v == 0 {
			b.state = chunkTrailer
		}
	case chunkEnd:
		if len(line) > 0 {
			return nil, 0, false, errChunk
		}
		b.state = chunkSize
	case chunkTrailer:
		if len(line) == 0 {
			b.state = chunkDone
			return nil, n, true, nil
		}
	}
	return nil, n, false, nil
}
