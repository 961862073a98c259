package h1

import (
	"errors"

	"conduit.io/conduit/proxy/exchange"

	"golang.org/x/net/http2/hpack"
)

// maxExt bounds the chunk extensions of one message beyond what its data pays for; they carry nothing, and cost
// (CVE-2023-39326). Clients that sign every chunk are within it, however long their uploads are.
const (
	maxExt    = 16 << 10
	extCredit = 16 // bytes of extension that a chunk may have, and as many again as it has data
)

// gathered is how much data is enough to be passed on.
const gathered = 4 << 10

var errChunk = errors.New("malformed chunked body")

const (
	chSize = iota
	chExt
	chSizeLF
	chData
	chDataCR
	chDataLF
	chTrailer
)

// chunked decodes the chunked transfer coding (RFC 9112, 7.1), however it is cut.
type chunked struct {
	state  uint8
	digits uint8
	left   int64
	ext    int
	trail  []byte // trailer section so far
}

func (d *chunked) reset() { *d = chunked{trail: d.trail[:0]} }

// next consumes n bytes of p, and returns the first body bytes that it found among them. done: the body and its
// trailer section are complete, and p[n:] is behind them.
func (d *chunked) next(p []byte) (n int, data []byte, done bool, err error) {
	for n < len(p) {
		if d.state == chData {
			k := int(min(int64(len(p)-n), d.left))
			d.left -= int64(k)
			if d.left == 0 {
				d.state = chDataCR
			}
			return n + k, p[n : n+k], false, nil
		}
		c := p[n]
		n++
		if d.state == chTrailer {
			done, err = d.trailer(c)
			if done || err != nil {
				return n, nil, done, err
			}
			continue
		}
		if err := d.step(c); err != nil {
			return n, nil, false, err
		}
	}
	return n, nil, false, nil
}

// gather is next, but that it moves the data of small chunks together, within p: thousands of chunks of a byte are one
// piece of data to everybody behind. Of a large chunk behind small ones it moves no more than gathered bytes. An error may
// come with data that was before it.
func (d *chunked) gather(p []byte) (n int, data []byte, done bool, err error) {
	n, data, done, err = d.next(p)
	for len(data) > 0 && len(data) < gathered && n < len(p) && !done && err == nil {
		var k int
		var more []byte
		k, more, done, err = d.next(p[n:min(len(p), n+gathered)])
		n += k
		data = append(data, more...) // what it overwrites has been read
	}
	return n, data, done, err
}

func (d *chunked) step(c byte) error {
	switch d.state {
	case chSize:
		switch v, ok := hex(c); {
		case ok && d.digits < 15:
			d.left = d.left<<4 | int64(v)
			d.digits++
		case c == ';' && d.digits > 0:
			d.state = chExt
		case c == '\r' && d.digits > 0:
			d.state = chSizeLF
		default:
			return errChunk
		}
	case chExt:
		if c == '\r' {
			d.state = chSizeLF
			break
		}
		if d.ext++; d.ext > maxExt || c < 0x20 && c != '\t' || c == 0x7f {
			return errChunk
		}
	case chSizeLF:
		if c != '\n' {
			return errChunk
		}
		d.digits = 0
		d.ext = int(max(0, int64(d.ext)-extCredit-d.left))
		d.state = chData
		if d.left == 0 {
			d.state = chTrailer
		}
	case chDataCR:
		if c != '\r' {
			return errChunk
		}
		d.state = chDataLF
	case chDataLF:
		if c != '\n' {
			return errChunk
		}
		d.state = chSize
	}
	return nil
}

func (d *chunked) trailer(c byte) (bool, error) {
	d.trail = append(d.trail, c)
	if c != '\n' {
		if len(d.trail) > maxHead {
			return false, errTooLarge
		}
		return false, nil
	}
	t := d.trail
	if len(t) < 2 || t[len(t)-2] != '\r' {
		return false, errBareLF
	}
	return len(t) == 2 || t[len(t)-3] == '\n', nil
}

// open reports whether a chunk, or the trailer section, has begun and has not come to its end.
func (d *chunked) open() bool { return d.state != chSize || d.digits > 0 }

// fields parses the trailer section of a complete body, without what is misplaced there.
func (d *chunked) fields(pool *exchange.Pool, internal bool) ([]hpack.HeaderField, error) {
	if len(d.trail) <= 2 {
		return nil, nil
	}
	b := append([]byte{'\n'}, d.trail...) // the first line has a name, too
	t := text(pool, b)[1:]
	if cap(d.trail) > 1<<10 {
		d.trail = nil
	}
	fr := framing{length: -1}
	f, err := parseFields(t, &fr, internal, nil)
	if err != nil {
		return nil, err
	}
	out := f[:0]
	for _, x := range f {
		if !misplaced(x.Name) {
			out = append(out, x)
		}
	}
	return out, nil
}

// misplaced reports whether a trailer field would frame, route or authenticate its message if a recipient merged it into
// the head (RFC 9110, 6.5.1).
func misplaced(name string) bool {
	switch name {
	case "content-length", "host", "trailer", "authorization", "content-encoding", "content-type", "content-range", "set-cookie":
		return true
	}
	return false
}

func hex(c byte) (byte, bool) {
	switch {
	case c >= '0' && c <= '9':
		return c - '0', true
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10, true
	case c >= 'A' && c <= 'F':
		return c - 'A' + 10, true
	}
	return 0, false
}
