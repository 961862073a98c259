package exchange

import (
	"encoding/base64"
	"encoding/binary"
	"strings"

	"golang.org/x/net/http2/hpack"
)

// maxWebTrailer bounds how much of the trailer frame is looked at.
const maxWebTrailer = 8 << 10

// webBody follows the frames of a gRPC-Web response (PROTOCOL-WEB.md): the call's status is in the last one.
type webBody struct {
	text    bool   // in base64, padded where the server likes
	group   uint32 // the characters of a group of four
	chars   int
	pads    int
	head    [5]byte // flags and length
	nhead   int
	left    uint32
	trailer []byte
	status  string // once it has come
}

// newWebBody is nil for a response that has no such body.
func newWebBody(req, res *Head) *webBody {
	if !req.GRPCWeb() || res.Status != 200 {
		return nil
	}
	kind, ok := strings.CutPrefix(res.Get("content-type"), grpcPrefix+"-web")
	if !ok {
		return nil
	}
	return &webBody{text: strings.HasPrefix(kind, "-text")}
}

// between reports whether what has come ends with a frame, and is not the end.
func (w *webBody) between() bool { return w.nhead == 0 && w.chars == 0 && w.status == "" }

// feed takes the next bytes of the body.
func (w *webBody) feed(p []byte) {
	if !w.text {
		w.frames(p)
		return
	}
	var buf [768]byte
	n := 0
	for _, c := range p {
		v := base64Values[c]
		if v == 0xff || v != pad && w.pads > 0 || v == pad && w.chars < 2 {
			if w.frames(buf[:n]); w.status == "" {
				w.status = unreadable
			}
			return
		}
		if w.group = w.group<<6 | uint32(v&0x3f); v == pad {
			w.pads++
		}
		if w.chars++; w.chars < 4 {
			continue
		}
		buf[n], buf[n+1], buf[n+2] = byte(w.group>>16), byte(w.group>>8), byte(w.group)
		n += 3 - w.pads
		w.group, w.chars, w.pads = 0, 0, 0
		if n > len(buf)-3 {
			w.frames(buf[:n])
			n = 0
		}
	}
	w.frames(buf[:n])
}

// base64Values are the values of the characters; pad for the padding, 0xff for what is none.
var base64Values = func() (t [256]byte) {
	for i := range t {
		t[i] = 0xff
	}
	for i, c := range []byte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/") {
		t[c] = byte(i)
	}
	t['='] = pad
	return t
}()

const pad = 0x40

func (w *webBody) frames(p []byte) {
	for len(p) > 0 && w.status == "" {
		if w.nhead < len(w.head) {
			n := copy(w.head[w.nhead:], p)
			w.nhead += n
			p = p[n:]
			if w.nhead < len(w.head) {
				return
			}
			w.left = binary.BigEndian.Uint32(w.head[1:])
		}
		n := int(min(uint64(w.left), uint64(len(p))))
		if w.head[0] == 0x80 {
			w.trailer = append(w.trailer, p[:min(n, maxWebTrailer-len(w.trailer))]...)
		}
		w.left -= uint32(n)
		p = p[n:]
		if w.left == 0 {
			w.nhead = 0
			switch {
			case w.head[0]&0x80 == 0:
			case w.head[0]&1 != 0:
				w.status = compressed
			default:
				w.status = trailerStatus(w.trailer)
			}
		}
	}
}

const (
	unreadable = "2" // the status of a body that does not say: UNKNOWN
	compressed = "compressed"
)

// trailerStatus is the grpc-status in a trailer frame.
func trailerStatus(t []byte) string {
	for line := range strings.SplitSeq(string(t), "\n") {
		name, value, _ := strings.Cut(line, ":")
		if value = strings.TrimSpace(value); strings.EqualFold(name, "grpc-status") && value != "" {
			return strings.Clone(value)
		}
	}
	return unreadable
}

// end is a trailer frame of fields.
func (w *webBody) end(f []hpack.HeaderField) []byte {
	b := []byte{0x80, 0, 0, 0, 0}
	for i := range f {
		b = append(append(append(append(b, f[i].Name...), ": "...), f[i].Value...), "\r\n"...)
	}
	binary.BigEndian.PutUint32(b[1:], uint32(len(b)-5))
	w.status = f[0].Value
	if w.text {
		return []byte(base64.StdEncoding.EncodeToString(b))
	}
	return b
}
