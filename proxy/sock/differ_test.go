package sock

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"testing"

	"conduit.io/conduit/proxy/loop"
)

// outcome is what came of what a peer sent.
type outcome struct {
	data   string
	eof    bool
	closed string
	reason string
	answer string // the records that we sent, each in its turn and with its own sequence number
}

// play has a peer send what script says and then FIN, to a Conn whose records are ours, or crypto/tls's.
func play(t *testing.T, l *loop.Loop, ours bool, script []byte) outcome {
	t.Helper()
	was := known
	do(t, l, func() { known = was && ours })
	c, h := handmadeClient(t, l)
	defer h.peer.Close()
	var p *probe
	do(t, l, func() {
		known = was
		if c.tls.ours != (was && ours) {
			t.Errorf("records are ours: %v", c.tls.ours)
		}
		p = watch(t, c)
		p.onEOF = c.Close
	})
	_, _ = h.peer.Write(h.follow(script)) // fails when the connection has ended before
	_ = h.peer.CloseWrite()
	err := recv(t, p.closed)
	o := outcome{answer: h.answers()}
	do(t, l, func() { o.data, o.eof = p.data.String(), p.gotEOF })
	if err != nil {
		o.closed, o.reason = err.Error(), string(Reason(err))
	}
	return o
}

// answers are the records that the peer has got, until the end of the connection.
func (h *handmade) answers() string {
	all, _ := io.ReadAll(h.peer) // a reset comes behind what was sent
	var out bytes.Buffer
	for len(all) > 0 {
		if len(all) < recordHead || len(all) < recordHead+int(binary.BigEndian.Uint16(all[3:])) {
			h.t.Fatalf("half a record was sent: %x", all)
		}
		n := recordHead + int(binary.BigEndian.Uint16(all[3:]))
		inner, err := h.in.aead.Open(nil, h.in.nonce(), all[recordHead:n], all[:recordHead])
		if err != nil {
			h.t.Fatalf("a record of %d bytes behind %q: %v", n, out.String(), err)
		}
		all = all[n:]
		typ, content := inner[len(inner)-1], inner[:len(inner)-1]
		fmt.Fprintf(&out, "%d:%x ", typ, content)
		if typ == handshakeType && content[0] == keyUpdate {
			h.in.update()
		}
	}
	return out.String()
}

// maxScript bounds what follow sends, so that it is soon read.
const maxScript = 200 << 10

// follow makes records of a script, two bytes of which are a step: what to do, and how much of it.
func (h *handmade) follow(script []byte) (out []byte) {
	var last []byte
	for ; len(script) >= 2 && len(out) < maxScript; script = script[2:] {
		b := h.step(script[0]%steps, int(script[1]), last)
		last = b
		out = append(out, b...)
	}
	return out
}

const steps = 25

var (
	half1 = []byte{keyUpdate, 0}
	half2 = []byte{0, 1, 0}
)

func (h *handmade) step(what byte, n int, last []byte) []byte {
	words := bytes.Repeat([]byte{byte(n), 'w'}, n*30+4)
	switch what {
	case 0:
		return h.record(appData, words[:n+1], 0)
	case 1:
		return h.record(appData, words, n)
	case 2:
		return h.record(appData, make([]byte, maxPlain-n), n)
	case 3:
		return h.record(appData, make([]byte, maxPlain-n+1), n)
	case 4:
		return h.record(appData, nil, n%8) // empty
	case 5:
		return h.record(0, nil, n) // only padding, or nothing
	case 6, 7:
		b := h.record(handshakeType, []byte{keyUpdate, 0, 0, 1, what - 6}, n%3)
		h.out.update()
		return b
	case 8: // in two records, whatever is next
		return h.record(handshakeType, half1, 0)
	case 9:
		b := h.record(handshakeType, half2, 0)
		h.out.update()
		return b
	default:
		return h.badStep(what, n, words, last)
	}
}

func (h *handmade) badStep(what byte, n int, words, last []byte) []byte {
	good := func() []byte { return h.record(appData, append(words, 'x'), 0) }
	switch what {
	case 10:
		return h.record(alertType, []byte{1, 0}, n)
	case 11:
		return h.record(alertType, []byte{1, 90}, n%3) // user_canceled
	case 12:
		return h.record(alertType, []byte{2, byte(n)}, 0)
	case 13:
		return h.record(alertType, words[:min(n, len(words))], 0)
	case 14:
		return []byte{20, 3, 3, 0, 1, byte(1 + n/250)} // change_cipher_spec, nearly always a right one
	case 15:
		return append([]byte{20 + byte(n%5), 3, 3, 0, byte(n)}, make([]byte, n)...) // in the clear
	case 16: // forged, anywhere
		b := good()
		b[n*7%len(b)] ^= 1 << (n % 8)
		return b
	case 17:
		return last // replayed
	case 18: // reordered
		h.out.seq++
		b := good()
		h.out.seq -= 2
		return append(b, good()...)
	case 19: // one is lost
		h.out.seq++
		return good()
	case 20: // cut short, its length as it was or put right
		b := good()
		b = b[:len(b)-1-n%(len(b)-recordHead)]
		if n%2 == 0 {
			binary.BigEndian.PutUint16(b[3:], uint16(len(b)-recordHead))
		}
		return b
	case 21: // longer than any, or nearly so
		b := []byte{appData, 3, 3, 0, 0}
		binary.BigEndian.PutUint16(b[3:], uint16(maxRecord-recordHead-3+n))
		return append(b, make([]byte, n*70)...)
	case 22:
		return []byte{appData, byte(n), byte(n >> 4), 0, 64} // of no version
	case 23:
		return h.record(byte(n), words, 0)
	default: // messages that are not for a server, empty ones, too long ones
		return h.record(handshakeType, append([]byte{byte(n), byte(n / 128), 0, byte(n % 4)}, words...)[:n%9], n%2)
	}
}

// scripts are what TestLikeCryptoTLS plays, and where the fuzzer begins.
func scripts() (all [][]byte) {
	for what := range byte(steps) {
		for _, n := range []byte{0, 1, 2, 3, 4, 90, 254, 255} {
			all = append(all, []byte{0, 5, what, n, 0, 6}, []byte{8, 0, what, n, 9, 0, 0, 7}, []byte{7, 0, what, n, what, n, 1, 9})
		}
	}
	empty := bytes.Repeat([]byte{4, 1}, 16)
	all = append(all,
		nil, empty, append(empty, 0, 1), append(empty, 4, 0), append(append(empty, 1, 1), empty...),
		bytes.Repeat([]byte{7, 0}, 16), bytes.Repeat([]byte{7, 0}, 17), bytes.Repeat([]byte{7, 0, 0, 1}, 40), bytes.Repeat([]byte{14, 0}, 17),
		bytes.Repeat([]byte{2, 9, 4, 0, 2, 8, 6, 0, 1, 200}, 2), bytes.Repeat([]byte{11, 0, 0, 1}, 20), []byte{10, 0, 0, 9, 7, 0},
	)
	return all
}

// TestLikeCryptoTLS: whatever comes, our receiver and the peer see the same as when crypto/tls deals with all records.
func TestLikeCryptoTLS(t *testing.T) {
	l := start(t)
	for _, script := range scripts() {
		alike(t, l, script)
	}
}

func FuzzLikeCryptoTLS(f *testing.F) {
	l := start(f)
	for i, script := range scripts() {
		if i%5 == 0 {
			f.Add(script)
		}
	}
	f.Fuzz(func(t *testing.T, script []byte) { alike(t, l, script[:min(len(script), 200)]) })
}

func alike(t *testing.T, l *loop.Loop, script []byte) {
	t.Helper()
	if got, want := play(t, l, true, script), play(t, l, false, script); got != want {
		t.Errorf("%v:\n%.300v\nbut crypto/tls:\n%.300v", script, got, want)
	}
}
