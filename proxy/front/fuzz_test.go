package front

import (
	"testing"
	"time"

	"conduit.io/conduit/mesh"
)

// FuzzPassedOn: whatever a client says, in whatever pieces, and whoever speaks first: what is not HTTP reaches the server as
// it is, and the connection ends when both have finished.
func FuzzPassedOn(f *testing.F) {
	for _, s := range []string{"", "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "GET", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "PRI * H", "\x16\x03\x01\x02", "CONNECT x:1 HTTP/1.1\r\n\r\n", "PING\r\n"} {
		f.Add([]byte(s), uint8(0), uint8(1), false)
		f.Add([]byte(s), uint8(3), uint8(7), true)
	}
	f.Fuzz(func(t *testing.T, in []byte, options, size uint8, serverFirst bool) {
		if len(in) > 20<<10 || len(in) == 0 && options&1 > 0 {
			return
		}
		r := start(Options{ClientFirst: options&1 > 0, Wait: time.Duration(options&2) * time.Millisecond})
		said := false
		for rest := in; len(rest) > 0; {
			k := min(len(rest), 1+int(size))
			r.client.Send(string(rest[:k]))
			rest = rest[k:]
			r.n.Run()
			r.n.Advance(time.Duration(options>>2) * 100 * time.Microsecond)
			if serverFirst && r.server != nil && !said {
				said = true
				r.server.Send("\x00hello")
				r.n.Run()
			}
		}
		r.client.C.CloseWrite()
		for range 20 {
			r.n.Advance(time.Second)
		}
		if http := r.last() == mesh.HTTP1 || r.last() == mesh.HTTP2; !http {
			if r.server == nil || r.server.Got.String() != string(in) || !r.server.HadEOF {
				t.Fatalf("%q: the server got %v", in, r.server)
			}
			if r.server.C.CloseWrite(); said && r.client.Take() != "\x00hello" {
				t.Fatalf("%q: the client did not get what the server said", in)
			}
		} else if said {
			t.Fatalf("%q: taken for HTTP although the server had spoken", in)
		}
		r.n.Run()
		for range 10 {
			r.n.Advance(time.Minute)
		}
		if r.closed != 1 {
			t.Fatalf("%q: closed %d times, chosen %v", in, r.closed, r.chosen)
		}
	})
}
