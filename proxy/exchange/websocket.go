package exchange

import (
	"crypto/sha1"
	"encoding/base64"
	"strings"
)

// IsWebSocket reports whether a request asks for a WebSocket.
func (h *Head) IsWebSocket() bool { return strings.EqualFold(h.Protocol, "websocket") }

// WebSocketAccept is the Sec-WebSocket-Accept that proves that a server has understood a Sec-WebSocket-Key (RFC 6455, 4.2.2).
func WebSocketAccept(key string) string {
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return base64.StdEncoding.EncodeToString(sum[:])
}
