package sock

import (
	"net"
	"testing"

	"conduit.io/conduit/proxy/loop"
)

// turns counts the bytes within one turn of the loop.
type turns struct {
	l          *loop.Loop
	now        int64
	n, most    int
	total, all int
	done       chan int
}

func (r *turns) Data(p []byte) {
	if now := r.l.Now(); now != r.now {
		r.now, r.n = now, 0
	}
	r.n += len(p)
	r.most = max(r.most, r.n)
	if r.total += len(p); r.total == r.all {
		r.done <- r.total
	}
}
func (*turns) EOF()         {}
func (*turns) Drained()     {}
func (*turns) Closed(error) {}

// TestTinyRecords: a TLS record of one byte costs about as much as one of a kilobyte; a connection that sends nothing else
// has no longer a turn for it.
func TestTinyRecords(t *testing.T) {
	l := start(t)
	c, tc, _ := secure(t, l)
	const count = 4000
	for range count {
		if _, err := tc.Write([]byte{'x'}); err != nil {
			t.Fatal(err)
		}
	}
	r := &turns{l: l, all: count, done: make(chan int, 1)}
	do(t, l, func() { c.SetReceiver(r) })
	recv(t, r.done)
	do(t, l, func() {
		if r.most > 2*turnBytes/recordCost { // its event, and what was left to be done soon
			t.Errorf("%d records in one turn", r.most)
		}
		c.Abort()
	})
}

// TestLargeRecordsInTurns: records that crypto/tls opens, since others are before them, cost what is in them.
func TestLargeRecordsInTurns(t *testing.T) {
	l := start(t)
	c, h := handmadeClient(t, l)
	const count = 40
	var b []byte
	for range count {
		b = append(b, 20, 3, 3, 0, 1, 1) // change_cipher_spec
		b = append(b, h.record(appData, make([]byte, maxPlain), 0)...)
	}
	r := &turns{l: l, all: count * maxPlain, done: make(chan int, 1)}
	do(t, l, func() {
		c.tls.kept = b
		c.SetReceiver(r)
	})
	recv(t, r.done)
	do(t, l, func() {
		if r.most > 2*(turnBytes+maxPlain) {
			t.Errorf("%d bytes in one turn", r.most)
		}
		c.Abort()
	})
}

// TestAcceptInTurns: many connections that wait do not keep the others waiting until all of them are accepted.
func TestAcceptInTurns(t *testing.T) {
	l := start(t)
	const count = 200
	most, n, total, now := 0, 0, 0, int64(-1)
	done := make(chan int, 1)
	hold, held := make(chan struct{}), make(chan struct{})
	s := server(t, l, func(c *Conn) {
		if l.Now() != now {
			now, n = l.Now(), 0
		}
		n++
		most = max(most, n)
		c.Abort()
		if total++; total == count {
			done <- total
		}
	})
	addr := ""
	l.Post(func() { addr = s.Addr().String(); close(held); <-hold })
	<-held
	for range count {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	close(hold)
	recv(t, done)
	do(t, l, func() {
		if most > 16 {
			t.Errorf("%d connections accepted in one turn", most)
		}
	})
}
