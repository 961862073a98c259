package sock

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"testing"

	"conduit.io/conduit/proxy/loop"
)

// handmade is a TLS 1.3 client that makes its records by hand, after crypto/tls has shaken hands for it.
type handmade struct {
	t       *testing.T
	peer    *net.TCPConn
	out, in direction
}

// direction has the keys of one (RFC 8446, 7.3).
type direction struct {
	secret []byte
	aead   cipher.AEAD
	iv     []byte
	seq    uint64
}

func (d *direction) label(label string, n int) []byte {
	info := binary.BigEndian.AppendUint16(nil, uint16(n))
	info = append(info, byte(len("tls13 ")+len(label)))
	info = append(append(info, "tls13 "+label...), 0)
	b, err := hkdf.Expand(sha256.New, d.secret, string(info), n)
	if err != nil {
		panic(err)
	}
	return b
}

func (d *direction) use(secret []byte) {
	d.secret, d.seq = secret, 0
	block, err := aes.NewCipher(d.label("key", 16))
	if err != nil {
		panic(err)
	}
	if d.aead, err = cipher.NewGCM(block); err != nil {
		panic(err)
	}
	d.iv = d.label("iv", 12)
}

// update is what follows a KeyUpdate.
func (d *direction) update() { d.use(d.label("traffic upd", sha256.Size)) }

func (d *direction) nonce() []byte {
	n := bytes.Clone(d.iv)
	for i := range 8 {
		n[4+i] ^= byte(d.seq >> (56 - 8*i))
	}
	d.seq++
	return n
}

// handmadeClient shakes hands with a Conn.
func handmadeClient(t *testing.T, l *loop.Loop) (*Conn, *handmade) {
	t.Helper()
	server, client := configs()
	c, peer := accepted(t, l)
	done := make(chan error, 1)
	do(t, l, func() { c.StartTLS(server, func(err error) { done <- err }) })
	var keys strings.Builder
	client = client.Clone()
	client.KeyLogWriter = &keys
	tc := tls.Client(peer, client)
	if err := errors.Join(tc.Handshake(), recv(t, done)); err != nil {
		t.Fatal(err)
	}
	if s := tc.ConnectionState().CipherSuite; s != tls.TLS_AES_128_GCM_SHA256 {
		t.Skipf("this machine prefers %s", tls.CipherSuiteName(s))
	}
	h := &handmade{t: t, peer: peer}
	for line := range strings.Lines(keys.String()) {
		f := strings.Fields(line)
		secret, err := hex.DecodeString(f[2])
		if err != nil {
			t.Fatal(err)
		}
		switch f[0] {
		case "CLIENT_TRAFFIC_SECRET_0":
			h.out.use(secret)
		case "SERVER_TRAFFIC_SECRET_0":
			h.in.use(secret)
		}
	}
	return c, h
}

// record seals content of a type, with padding.
func (h *handmade) record(typ byte, content []byte, padding int) []byte {
	inner := append(bytes.Clone(content), typ)
	inner = append(inner, make([]byte, padding)...)
	head := []byte{appData, 3, 3, 0, 0}
	binary.BigEndian.PutUint16(head[3:], uint16(len(inner)+16))
	return h.out.aead.Seal(head, h.out.nonce(), inner, head[:5:5])
}

func (h *handmade) write(b ...[]byte) {
	if _, err := h.peer.Write(bytes.Join(b, nil)); err != nil {
		h.t.Fatal(err)
	}
}

// read reads one record and gives its type and content. It follows key updates.
func (h *handmade) read() (byte, []byte) {
	h.t.Helper()
	head := make([]byte, recordHead)
	if _, err := io.ReadFull(h.peer, head); err != nil {
		h.t.Fatal(err)
	}
	body := make([]byte, binary.BigEndian.Uint16(head[3:]))
	if _, err := io.ReadFull(h.peer, body); err != nil {
		h.t.Fatal(err)
	}
	inner, err := h.in.aead.Open(nil, h.in.nonce(), body, head)
	if err != nil {
		h.t.Fatal(err)
	}
	typ, content := inner[len(inner)-1], inner[:len(inner)-1]
	if typ == handshakeType && content[0] == keyUpdate {
		h.in.update()
	}
	return typ, content
}

const (
	alertType     = 21
	handshakeType = 22
	keyUpdate     = 24
)

// TestRecordsAreOurs: crypto/tls is as record.go knows it.
func TestRecordsAreOurs(t *testing.T) {
	l := start(t)
	server, client := configs()
	sides := make(chan *Conn, 2)
	addr := serve(t, l, func(c *Conn) { c.StartTLS(server, func(error) { sides <- c }) })
	c, err := dialed(t, l, DialOptions{Addr: addrPortOf(t, addr), TLS: client})
	if err != nil {
		t.Fatal(err)
	}
	sides <- c
	for range 2 {
		c := recv(t, sides)
		do(t, l, func() {
			if !c.tls.ours {
				t.Error("crypto/tls deals with all records")
			}
			c.Abort()
		})
	}
}

// TestKeyUpdate: keys change any number of times, in both directions, in the midst of data (RFC 8446, 4.6.3).
func TestKeyUpdate(t *testing.T) {
	l := start(t)
	c, h := handmadeClient(t, l)
	var p *probe
	do(t, l, func() { p = watch(t, c) })
	want := ""
	for i := range 40 {
		var b []byte
		b = append(b, h.record(appData, []byte("before "), 0)...)
		b = append(b, h.record(handshakeType, []byte{keyUpdate, 0, 0, 1, 1}, 0)...)
		h.out.update()
		b = append(b, h.record(appData, []byte("after "), i)...)
		h.write(b)
		want += "before after "
		until(t, l, func() bool { return p.data.String() == want })
		do(t, l, func() { c.Write([]byte("answer")) })
		updated := false
		for {
			typ, content := h.read()
			if typ == appData {
				if string(content) != "answer" || !updated {
					t.Fatalf("%d: got %q, keys updated %v", i, content, updated)
				}
				break
			}
			updated = updated || content[0] == keyUpdate
		}
	}
	h.write(h.record(alertType, []byte{1, 0}, 3)) // close_notify
	recv(t, p.eof)
	do(t, l, c.Close)
	h.peer.Close()
	recv(t, p.closed)
}

// TestRecordForms: padding is taken off, and records that carry nothing are endured a few times.
func TestRecordForms(t *testing.T) {
	l := start(t)
	c, h := handmadeClient(t, l)
	var p *probe
	do(t, l, func() { p = watch(t, c) })
	full := bytes.Repeat([]byte{'f'}, maxPlain)
	h.write(h.record(appData, []byte("one"), 100), h.record(appData, nil, 5), h.record(appData, full, 0), h.record(appData, nil, 0), h.record(appData, []byte{0}, 200))
	want := "one" + string(full) + "\x00"
	until(t, l, func() bool { return p.data.Len() >= len(want) })
	do(t, l, func() {
		if p.data.String() != want {
			t.Errorf("got %d bytes", p.data.Len())
		}
		c.Abort()
	})
	recv(t, p.closed)
}

// TestBadRecords: each ends the connection with its alert, behind the bytes that came before it.
func TestBadRecords(t *testing.T) {
	l := start(t)
	empty := func(h *handmade) (b []byte) {
		for range 20 {
			b = append(b, h.record(appData, nil, 0)...)
		}
		return b
	}
	for _, tc := range []struct {
		name  string
		alert byte
		make  func(h *handmade) []byte
	}{
		{"tampered", 20, func(h *handmade) []byte {
			b := h.record(appData, []byte("tampered"), 0)
			b[7] ^= 1
			return b
		}},
		{"replayed", 20, func(h *handmade) []byte { h.out.seq--; return h.record(appData, []byte("again"), 0) }},
		{"too long", 22, func(h *handmade) []byte { return h.record(appData, make([]byte, maxPlain+1), 0) }},
		{"longer than any", 22, func(*handmade) []byte { return []byte{appData, 3, 3, 0xff, 0xff, 0} }},
		{"only padding", 10, func(h *handmade) []byte { return h.record(0, nil, 30) }},
		{"unknown type", 10, func(h *handmade) []byte { return h.record(99, []byte("?"), 0) }},
		{"in the clear", 20, func(*handmade) []byte { return []byte{handshakeType, 3, 3, 0, 1, 0} }},
		{"half a message", 10, func(h *handmade) []byte {
			return append(h.record(handshakeType, []byte{keyUpdate, 0}, 0), h.record(appData, []byte("between"), 0)...)
		}},
		{"empty ones without end", 10, empty},
	} {
		c, h := handmadeClient(t, l)
		var p *probe
		do(t, l, func() { p = watch(t, c) })
		h.write(h.record(appData, []byte("good"), 0), tc.make(h))
		err := recv(t, p.closed)
		do(t, l, func() {
			if err == nil || p.gotEOF || p.data.String() != "good" {
				t.Errorf("%s: Closed(%v), EOF %v, %q", tc.name, err, p.gotEOF, p.data.String())
			}
		})
		typ, content := h.read()
		for typ == handshakeType {
			typ, content = h.read()
		}
		if typ != alertType || content[1] != tc.alert {
			t.Errorf("%s: answered with type %d, %v; want alert %d", tc.name, typ, content, tc.alert)
		}
	}
}

// TestRecordsInPieces: records of all sizes, cut anywhere, paused at any time.
func TestRecordsInPieces(t *testing.T) {
	l := start(t)
	c, h := handmadeClient(t, l)
	r := rand.New(rand.NewPCG(1, 2))
	var sent, wire bytes.Buffer
	for sent.Len() < 4<<20 {
		n := 1 + r.IntN(1<<r.IntN(15))
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		sent.Write(b)
		wire.Write(h.record(appData, b, r.IntN(2)*r.IntN(min(200, maxPlain-n+1))))
		if r.IntN(50) == 0 {
			wire.Write(h.record(handshakeType, []byte{keyUpdate, 0, 0, 1, 0}, 0))
			h.out.update()
		}
	}
	wire.Write(h.record(alertType, []byte{1, 0}, 0))
	var p *probe
	do(t, l, func() {
		p = watch(t, c)
		p.onData = func(b []byte) {
			p.data.Write(b)
			if r.IntN(4) == 0 {
				c.Pause()
				l.After(0, c.Resume)
			}
		}
	})
	cut := rand.New(rand.NewPCG(3, 4))
	go func() {
		for b := wire.Bytes(); len(b) > 0; {
			n := min(len(b), 1+cut.IntN(1<<cut.IntN(18)))
			_, _ = h.peer.Write(b[:n])
			b = b[n:]
		}
	}()
	recv(t, p.eof)
	do(t, l, func() {
		if !bytes.Equal(p.data.Bytes(), sent.Bytes()) {
			t.Errorf("got %d bytes, or other ones; want %d", p.data.Len(), sent.Len())
		}
		c.Abort()
	})
	recv(t, p.closed)
	if n := keptOut.Load(); n != 0 {
		t.Errorf("%d buffers are nobody's", n)
	}
}
