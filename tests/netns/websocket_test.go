package netns_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"

	"conduit.io/conduit/tests/testnet"
)

// RFC 6455, 5.2: the opcodes.
const (
	wsText   = 1
	wsBinary = 2
	wsClose  = 8
	wsPing   = 9
	wsPong   = 10
)

const wsGUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11" // RFC 6455, 1.3

func wsAccept(key string) string {
	digest := sha1.Sum([]byte(key + wsGUID))
	return base64.StdEncoding.EncodeToString(digest[:])
}

// wsConn is one end of a WebSocket. Messages are single frames.
type wsConn struct {
	net.Conn
	r    *bufio.Reader
	mask bool // the client masks, the server does not (RFC 6455, 5.1)
}

func (c *wsConn) send(opcode byte, payload []byte) error {
	head := []byte{0x80 | opcode, 0}
	switch n := len(payload); {
	case n < 126:
		head[1] = byte(n)
	case n < 1<<16:
		head[1] = 126
		head = binary.BigEndian.AppendUint16(head, uint16(n))
	default:
		head[1] = 127
		head = binary.BigEndian.AppendUint64(head, uint64(n))
	}
	body := bytes.Clone(payload)
	if c.mask {
		head[1] |= 0x80
		key := []byte{0x12, 0x34, 0x56, 0x78}
		head = append(head, key...)
		for i := range body {
			body[i] ^= key[i%4]
		}
	}
	_, err := c.Write(append(head, body...))
	return err
}

func (c *wsConn) receive() (opcode byte, payload []byte, err error) {
	var head [2]byte
	if _, err := io.ReadFull(c.r, head[:]); err != nil {
		return 0, nil, err
	}
	if masked := head[1]&0x80 != 0; masked == c.mask || head[0]&0x80 == 0 {
		return 0, nil, fmt.Errorf("frame header %x: wrong masking, or a fragment", head)
	}
	n := uint64(head[1] & 0x7f)
	if n >= 126 {
		long := make([]byte, map[uint64]int{126: 2, 127: 8}[n])
		if _, err := io.ReadFull(c.r, long); err != nil {
			return 0, nil, err
		}
		n = binary.BigEndian.Uint64(append(make([]byte, 8-len(long)), long...))
	}
	var key [4]byte
	if !c.mask {
		if _, err := io.ReadFull(c.r, key[:]); err != nil {
			return 0, nil, err
		}
	}
	if n > 16<<20 {
		return 0, nil, fmt.Errorf("frame of %d bytes", n)
	}
	payload = make([]byte, n)
	_, err = io.ReadFull(c.r, payload)
	for i := range payload {
		payload[i] ^= key[i%4]
	}
	return head[0] & 0x0f, payload, err
}

// wsServer greets, pings, echoes until the client closes, and answers that.
func wsServer(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Upgrade") != "websocket" || r.Header.Get("Sec-WebSocket-Version") != "13" {
		w.Header().Set("Upgrade", "websocket")
		http.Error(w, fmt.Sprintf("no WebSocket: %v", r.Header), http.StatusUpgradeRequired)
		return
	}
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer conn.Close()
	fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Protocol: %s\r\nSec-WebSocket-Accept: %s\r\n\r\n",
		r.Header.Get("Sec-WebSocket-Protocol"), wsAccept(r.Header.Get("Sec-WebSocket-Key")))
	c := &wsConn{Conn: conn, r: rw.Reader}
	c.send(wsText, []byte("hello "+clientAddr(conn).Addr().String()))
	c.send(wsPing, []byte("are you there"))
	for {
		op, p, err := c.receive()
		if err != nil {
			return
		}
		if op == wsPong {
			op, p = wsText, append([]byte("pong: "), p...)
		}
		if c.send(op, p) != nil || op == wsClose {
			return
		}
	}
}

// dialWebSocket shakes hands as a browser does (RFC 6455, 4.1).
func dialWebSocket(t *testing.T, p path) *wsConn {
	t.Helper()
	conn := p.dial(t)
	const key = "dGhlIHNhbXBsZSBub25jZQ=="
	fmt.Fprintf(conn, "GET /chat HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nOrigin: http://shop\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: chat\r\nSec-WebSocket-Key: %s\r\n\r\n", p.to, key)
	c := &wsConn{Conn: conn, r: bufio.NewReader(conn), mask: true}
	res, err := http.ReadResponse(c.r, nil)
	if err != nil {
		t.Fatal(err)
	}
	h := res.Header
	if res.StatusCode != 101 || h.Get("Sec-WebSocket-Accept") != wsAccept(key) || h.Get("Sec-WebSocket-Protocol") != "chat" || h.Get("Upgrade") != "websocket" {
		t.Fatalf("handshake: %s %v", res.Status, h)
	}
	return c
}

func testWebSocket(t *testing.T, w *town) {
	port := serveHTTP(t, w.server, http.HandlerFunc(wsServer))
	w.onPaths(t, port, func(t *testing.T, p path) {
		c := dialWebSocket(t, p)
		want := func(op byte, payload string) {
			t.Helper()
			if gotOp, got, err := c.receive(); err != nil || gotOp != op || string(got) != payload {
				t.Fatalf("opcode %d with %d bytes, %v; want %d with %.40q", gotOp, len(got), err, op, payload)
			}
		}
		send := func(op byte, payload []byte) {
			t.Helper()
			if err := c.send(op, payload); err != nil {
				t.Fatal(err)
			}
		}
		want(wsText, "hello "+p.client().String()) // the server speaks after the handshake
		want(wsPing, "are you there")
		send(wsPong, []byte("yes"))
		want(wsText, "pong: yes")
		big, err := io.ReadAll(noise('w', 1<<20))
		if err != nil {
			t.Fatal(err)
		}
		sent := make(chan error, 1)
		go func() { sent <- c.send(wsBinary, big) }()
		want(wsBinary, string(big))
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
		for i := range 100 {
			m := fmt.Appendf(nil, "message %d", i)
			send(wsText, m)
			want(wsText, string(m))
		}
		send(wsClose, []byte{0x03, 0xe8})
		want(wsClose, "\x03\xe8")
		if _, _, err := c.receive(); !errors.Is(err, io.EOF) {
			t.Errorf("after the close: %v, want the end of the connection", err)
		}
	})
	t.Run("refused", func(t *testing.T) { refuseUpgrade(t, w, port) })
	t.Run("metrics", func(t *testing.T) {
		n, err := testnet.Metric(context.Background(), w.node(1), "request_total", `direction="outbound"`, `src="`+w.away.String()+`"`, `dst="`+w.server.String()+`"`, `tls="mtls"`)
		if err != nil || n < 1 {
			t.Errorf("%v requests over mTLS counted, %v", n, err)
		}
	})
}

// refuseUpgrade asks for another protocol: the answer is the server's, and the connection goes on.
func refuseUpgrade(t *testing.T, w *town, port uint16) {
	for _, p := range w.paths(port) {
		conn := p.dial(t)
		r := bufio.NewReader(conn)
		for range 2 {
			fmt.Fprintf(conn, "GET /chat HTTP/1.1\r\nHost: shop\r\nConnection: Upgrade\r\nUpgrade: other\r\n\r\n")
			res, err := http.ReadResponse(r, nil)
			if err != nil {
				t.Fatal(err)
			}
			io.Copy(io.Discard, res.Body)
			if res.StatusCode != http.StatusUpgradeRequired || res.Header.Get("Conduit-Reason") != "" {
				t.Errorf("%s: %s %v", p.name, res.Status, res.Header)
			}
		}
	}
}
