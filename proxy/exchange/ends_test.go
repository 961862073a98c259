package exchange_test

import (
	"strings"
	"testing"
)

// TestLinkEndsBeforeItsLastBytes: a link that its client closes, because every stream on it is over there, has carried
// everything. What the server's proxy still holds for a slow application arrives.
func TestLinkEndsBeforeItsLastBytes(t *testing.T) {
	c := newChain(false, "opaque")
	c.app.C.CloseWrite()
	c.n.Run()
	body := strings.Repeat("0123456789abcdef", 150<<10/16)
	c.app.C.Room = 32 << 10
	c.app.C.Pause()
	c.client.Send(body)
	c.client.C.CloseWrite()
	c.n.Run()
	if c.near.Open != 0 || c.far.Open != 1 {
		t.Fatalf("open: %d near, %d far; the test wants the stream to be over on one side only", c.near.Open, c.far.Open)
	}
	c.link.Drain()
	c.n.Run()
	if !c.mid[0].Gone() || !c.mid[1].Gone() || c.app.IsReset() {
		t.Fatalf("link gone %v %v, application reset %v", c.mid[0].Gone(), c.mid[1].Gone(), c.app.Err)
	}
	c.app.C.Resume()
	c.n.Run()
	if c.app.Take() != body || !c.app.HadEOF || c.app.Err != nil || c.far.Open != 0 || c.far.Log[0].Reason != "" {
		t.Errorf("EOF %v, %v, open %d, log %v", c.app.HadEOF, c.app.Err, c.far.Open, c.far.Log)
	}
}

// TestUpgradeEndsBeforeItsLastBytes is the same for a connection that was upgraded, in both directions.
func TestUpgradeEndsBeforeItsLastBytes(t *testing.T) {
	const up = "GET /chat HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
	const accept = "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n"
	body := strings.Repeat("0123456789abcdef", 150<<10/16)
	for _, direct := range []bool{true, false} {
		for _, fromClient := range []bool{true, false} {
			c := newChain(direct, "h1")
			c.do(up, accept)
			from, to := c.client, c.app
			if !fromClient {
				from, to = to, from
			}
			to.C.CloseWrite()
			c.n.Run()
			to.C.Room = 32 << 10
			to.C.Pause()
			from.Send(body)
			from.C.CloseWrite()
			c.n.Run()
			if !from.Ended {
				t.Errorf("direct %v, from client %v: the source is not over: the test has no point", direct, fromClient)
			}
			if to.IsReset() {
				t.Errorf("direct %v, from client %v: reset: %v", direct, fromClient, to.Err)
				continue
			}
			to.C.Resume()
			c.n.Run()
			if to.Take() != body || !to.HadEOF || !to.Ended || to.Err != nil || c.near.Open+c.far.Open != 0 {
				t.Errorf("direct %v, from client %v: EOF %v, %v, open %d", direct, fromClient, to.HadEOF, to.Err, c.near.Open+c.far.Open)
			}
		}
	}
}
