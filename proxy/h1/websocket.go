package h1

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"slices"

	"conduit.io/conduit/proxy/exchange"

	"golang.org/x/net/http2/hpack"
)

var errNoProof = errors.New("the server has not understood the WebSocket handshake")

// prove appends the key by which the server of a WebSocket proves that it understood, if its client speaks HTTP/2, which has
// none (RFC 8441, 5).
func (cl *Client) prove(b []byte, req *exchange.Head) []byte {
	if req.Method != "CONNECT" || !req.IsWebSocket() || req.Get("sec-websocket-key") != "" {
		return b
	}
	var nonce [16]byte
	_, _ = rand.Read(nonce[:]) // never fails
	cl.key = base64.StdEncoding.EncodeToString(nonce[:])
	return appendField(b, "sec-websocket-key", cl.key)
}

// proven checks the proof, and takes it out of the response (RFC 6455, 4.1).
func (cl *Client) proven(res *exchange.Head) (*exchange.Head, bool) {
	const field = "sec-websocket-accept"
	ok := res.Get(field) == exchange.WebSocketAccept(cl.key)
	h := &exchange.Head{Status: res.Status, Major: res.Major, Minor: res.Minor}
	h.Fields = slices.DeleteFunc(slices.Clone(res.Fields), func(f hpack.HeaderField) bool { return f.Name == field })
	return h, ok
}
