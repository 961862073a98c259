package h2

import (
	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/exchange"

	"golang.org/x/net/http2/hpack"
)

// A request that asks for another protocol is an extended CONNECT in HTTP/2 (RFC 8441), between proxies and towards an
// application that has enabled it.

// held is a stream that waits to learn whether the server has.
type held struct {
	s     exchange.Ref
	extra []hpack.HeaderField
}

// extends reports whether req is to be sent as an extended CONNECT. To an application it can stand for a GET only, if it is
// none itself.
func (cl *Client) extends(req *exchange.Head) bool {
	return req.Protocol != "" && (cl.internal || cl.extended && (req.Method == "GET" || req.Method == "CONNECT"))
}

// awaits deals with an upgrade that cannot be sent, yet or at all; it reports true when it did. A server may pass over the
// wish to upgrade (RFC 9110, 7.8), and what is sent as an ordinary request instead is served so. A WebSocket client has no
// use for that, and an extended CONNECT no other meaning.
func (cl *Client) awaits(s *exchange.Stream, extra []hpack.HeaderField) bool {
	connect := s.Req.Method == "CONNECT"
	if cl.internal || s.Req.Method != "GET" && !connect {
		return false
	}
	if !cl.first {
		cl.held = append(cl.held, held{s.Ref(), extra})
		return true
	}
	if !cl.extended && (connect || s.Req.IsWebSocket()) {
		s.Abort(exchange.Up, mesh.ReasonNoUpgrade, codeNo, true)
		return true
	}
	return false
}

// release sends what was held until the server's SETTINGS came, or gives it up with the connection.
func (cl *Client) release() {
	l := cl.held
	cl.held = nil
	for _, h := range l {
		switch {
		case !h.s.Live():
		case cl.over || cl.broken:
			h.s.S.Abort(exchange.Up, cl.lost(), codeRefused, true)
		default:
			cl.Send(h.s.S, h.extra)
		}
	}
	if len(l) > 0 {
		cl.idle()
	}
}

// welcome is the response that accepts a WebSocket as an HTTP/1.1 client must see it. HTTP/2 has no keys to prove that
// the server understood (RFC 8441, 5): its 200 does.
func welcome(res, req *exchange.Head) *exchange.Head {
	key := req.Get("sec-websocket-key")
	if key == "" || res.Get("sec-websocket-accept") != "" {
		return res
	}
	h := &exchange.Head{Status: res.Status, Major: res.Major, Minor: res.Minor}
	h.Fields = append(append(h.Fields, res.Fields...), hpack.HeaderField{
		Name: "sec-websocket-accept", Value: exchange.WebSocketAccept(key),
	})
	return h
}
