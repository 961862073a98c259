package h1

import (
	"bufio"
	"bytes"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"conduit.io/conduit/proxy/exchange"
)

// FuzzLikeNetHTTP: what we take for a request, another implementation takes for the same one, with the same body: where
// two of them disagree one request becomes two.
func FuzzLikeNetHTTP(f *testing.F) {
	for _, s := range []string{
		"GET / HTTP/1.1\r\nHost: h\r\n\r\n", "POST /a?b=c HTTP/1.1\r\nhost:h:80\r\nContent-Length: 10\r\nX: y\r\n\r\n",
		"PUT / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\n\r\n", "GET http://a/b HTTP/1.1\r\nHost: c\r\n\r\n",
		"OPTIONS * HTTP/1.1\r\nHost: h\r\nConnection: close, x\r\nX: y\r\n\r\n", "CONNECT h:1 HTTP/1.1\r\nHost: h:1\r\n\r\n",
		"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", "GET / HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", "GET / HTTP/1.1\r\nHost: h\r\nContent-Length: +1\r\n\r\n",
		"GET / HTTP/1.1\r\nHost : h\r\n\r\n", "GET / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: \x0bchunked\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		n, err := scanHead(in, 0)
		if err != nil || n == 0 || in[0] == '\r' || in[0] == '\n' {
			return
		}
		h, fr, err := parseRequest(exchange.NewPool(), in[:n], false)
		if err != nil {
			return
		}
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(in)))
		if err != nil {
			if bad := (*url.Error)(nil); errors.As(err, &bad) || strings.Contains(err.Error(), "invalid URI") {
				return // the target is the server's to judge
			}
			t.Fatalf("%q: net/http says %v", in[:n], err)
		}
		length := max(fr.length, 0)
		if fr.chunked {
			length = -1
		}
		if r.Method != h.Method || r.ContentLength != length || (len(r.TransferEncoding) == 1) != fr.chunked {
			t.Fatalf("%q: %s with %d bytes (%v); we have %s and %+v", in[:n], r.Method, r.ContentLength, r.TransferEncoding, h.Method, fr)
		}
		if !h.Absolute && h.Method != "CONNECT" && (r.Host != h.Authority || r.RequestURI != h.Path) {
			t.Fatalf("%q: %q at %q; we have %q at %q", in[:n], r.RequestURI, r.Host, h.Path, h.Authority)
		}
		if h.Authority != "" { // else the server's address takes its place
			again(t, h, fr)
		}
	})
}

// again: what we make of a request reads as the same one.
func again(t *testing.T, h *exchange.Head, fr framing) {
	b, mode := new(Client).appendRequest(nil, h, nil, !fr.chunked && fr.length <= 0)
	n, err := scanHead(b, 0)
	if err != nil || n != len(b) {
		t.Fatalf("we wrote %q, of which %d bytes are a head: %v", b, n, err)
	}
	got, gf, err := parseRequest(exchange.NewPool(), b, false)
	if err != nil {
		t.Fatalf("we wrote %q, and read: %v", b, err)
	}
	if got.Method != h.Method || got.Path != h.Path || got.Authority != h.Authority || got.Protocol != h.Protocol || got.Absolute != h.Absolute {
		t.Fatalf("we wrote %q of %+v", b, h)
	}
	if fr.length > 0 && (gf.length != fr.length || gf.chunked) || fr.chunked != (mode == modeChunked) || fr.chunked != gf.chunked {
		t.Fatalf("we wrote %q with mode %d, framed %+v", b, mode, fr)
	}
}

// FuzzResponseLikeNetHTTP is the same for responses.
func FuzzResponseLikeNetHTTP(f *testing.F) {
	for _, s := range []string{
		"HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 200 \r\nContent-Length: 3\r\n\r\n", "HTTP/1.0 404 Not Found\r\nConnection: keep-alive\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "HTTP/1.1 204 No Content\r\n\r\n", "HTTP/1.1 101 S\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n", "HTTP/1.1 099 X\r\n\r\n", "HTTP/1.1 200\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		n, err := scanHead(in, 0)
		if err != nil || n == 0 || in[0] == '\r' || in[0] == '\n' {
			return
		}
		h, fr, err := parseResponse(exchange.NewPool(), in[:n], false)
		if err != nil || h.Status < 200 || h.Status == 204 || h.Status == 304 {
			return // net/http gives these no length
		}
		r, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(in)), nil)
		if err != nil {
			t.Fatalf("%q: net/http says %v", in[:n], err)
		}
		length := fr.length
		if fr.chunked {
			length = -1
		}
		if r.StatusCode != h.Status || r.ContentLength != length || (len(r.TransferEncoding) == 1) != fr.chunked {
			t.Fatalf("%q: %d with %d bytes (%v); we have %d and %+v", in[:n], r.StatusCode, r.ContentLength, r.TransferEncoding, h.Status, fr)
		}
	})
}
