package sock

import (
	"bytes"
	"io"
	"testing"
)

// TestRecordsCounted: of all records, whoever has sealed them, each has the next sequence number of its key (else read
// could not open it): application data of all sizes, queued and direct, while the kernel takes nothing, with answers
// to KeyUpdate between; and the last is close_notify, or the alert that says what is wrong.
func TestRecordsCounted(t *testing.T) {
	l := start(t)
	for _, last := range []struct {
		alert []byte
		act   func(c *Conn, h *handmade)
	}{
		{[]byte{1, 0}, func(c *Conn, _ *handmade) { do(t, l, c.CloseWrite) }},
		{[]byte{2, 20}, func(_ *Conn, h *handmade) { h.out.seq++; h.write(h.record(appData, nil, 0)) }},
	} {
		c, h := handmadeClient(t, l)
		do(t, l, func() { watch(t, c) })
		big := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
		sent, got, asked, updates := 0, 0, 0, 0
		for i, n := range []int{1, 100, maxPlain - 1, maxPlain, maxPlain + 1, direct, direct - 1, flushAt, 3 * flushAt, len(big), 1, len(big), 5} {
			do(t, l, func() {
				for _, n := range []int{n, n / 3, n % 7} {
					c.Write(big[:n])
					sent += n
				}
			})
			for range i % 3 {
				h.write(h.record(handshakeType, []byte{keyUpdate, 0, 0, 1, 1}, 0))
				h.out.update()
				h.write(h.record(appData, []byte("!"), 0)) // else they were too many
				asked++
			}
			for got < sent || updates < asked {
				switch typ, content := h.read(); {
				case typ == appData:
					got += len(content)
				case typ == handshakeType && content[0] == keyUpdate:
					updates++
				default:
					t.Fatalf("a record of type %d: %v", typ, content)
				}
			}
		}
		if got != sent || updates != asked {
			t.Errorf("got %d bytes, %d updates; want %d, %d", got, updates, sent, asked)
		}
		last.act(c, h)
		if typ, content := h.read(); typ != alertType || !bytes.Equal(content, last.alert) {
			t.Errorf("the last record is of type %d: %v, want alert %v", typ, content, last.alert)
		}
		if n, err := h.peer.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("behind the last record: %d, %v", n, err)
		}
		do(t, l, c.Abort)
	}
}

// TestWorn: a connection says once that its keys have protected enough, whichever direction did it, and goes on; it says
// nothing after its end.
func TestWorn(t *testing.T) {
	l := start(t)
	for name, act := range map[string]func(c *Conn, h *handmade){
		"written":     func(c *Conn, _ *handmade) { do(t, l, func() { c.Write([]byte("one")) }) },
		"written big": func(c *Conn, _ *handmade) { do(t, l, func() { c.Write(make([]byte, direct)) }) },
		"read":        func(_ *Conn, h *handmade) { h.write(h.record(appData, []byte("one"), 0)) },
		"theirs":      func(_ *Conn, h *handmade) { h.write(h.record(appData, nil, 0), h.record(appData, []byte("one"), 0)) },
		"asked late":  func(c *Conn, _ *handmade) { do(t, l, func() { c.tls.records = wornRecords }) },
	} {
		c, h := handmadeClient(t, l)
		worn := make(chan struct{}, 2)
		do(t, l, func() {
			watch(t, c)
			c.tls.records = wornRecords - 1
			if name != "asked late" {
				c.OnWorn(func() { worn <- struct{}{} })
			}
		})
		if len(worn) > 0 {
			t.Errorf("%s: too early", name)
		}
		act(c, h)
		do(t, l, func() {
			if name == "asked late" {
				c.OnWorn(func() { worn <- struct{}{} })
			}
		})
		recv(t, worn)
		act(c, h)
		do(t, l, func() { c.Write([]byte("more")) })
		for typ, content := h.read(); typ != appData || string(content) != "more"; typ, content = h.read() {
		}
		do(t, l, func() {
			if c.tls.worn != nil || len(worn) > 0 {
				t.Errorf("%s: twice", name)
			}
			c.OnWorn(func() { t.Errorf("%s: called after the end", name) })
			c.Abort()
		})
		do(t, l, func() {})
	}
}
