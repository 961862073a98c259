package h1_test

import (
	"strings"
	"testing"

	"conduit.io/conduit/proxy/exchange"
)

// TestTurnsAreShared: a client whose requests are answered at once has no longer a turn for it, and no request is lost.
func TestTurnsAreShared(t *testing.T) {
	const count = 1000
	for _, leave := range []bool{false, true} {
		r := newRig(exchange.ServerOptions{}, exchange.ClientOptions{})
		served, most := 0, 0
		r.h.OnRequest = func(s *exchange.Stream) {
			served++
			s.Respond(404, nil, nil)
		}
		r.client.Send(strings.Repeat(get, count))
		if leave {
			r.client.C.CloseWrite()
		}
		for before := -1; before != served || served == 0; most = max(most, served-before) {
			before = served
			r.n.Step()
			if served == 0 {
				before = 0
			}
		}
		r.n.Run()
		if most > 64 || served != count || r.client.Over() != leave || r.sv.Held() != 0 {
			t.Errorf("leave %v: %d served, %d in one turn, over %v, held %d", leave, served, most, r.client.Over(), r.sv.Held())
		}
		if got := strings.Count(r.client.Take(), "HTTP/1.1 404 "); got != count {
			t.Errorf("leave %v: %d answers", leave, got)
		}
	}
}

// TestTinyChunks: a body in chunks of one byte is passed on in few pieces, in both directions.
func TestTinyChunks(t *testing.T) {
	r := newRig(exchange.ServerOptions{}, exchange.ClientOptions{})
	tiny := strings.Repeat("1\r\nx\r\n", 5000) + "0\r\n\r\n"
	got, back := r.do("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"+tiny, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"+tiny)
	for name, s := range map[string]string{"request": got, "response": back} {
		if strings.Count(s, "x") != 5000 || len(s) > 5600 || !strings.HasSuffix(s, "\r\n0\r\n\r\n") {
			t.Errorf("%s: %d bytes with %d of data", name, len(s), strings.Count(s, "x"))
		}
	}
}
