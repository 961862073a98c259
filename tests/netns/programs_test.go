package netns_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"conduit.io/conduit/tests/testnet"
)

// TestPrograms runs programs that were not written for a mesh through one.
func TestPrograms(t *testing.T) {
	w := newTown(t)
	for name, test := range map[string]func(*testing.T, *town){
		"curl": testCurl, "postgresql": testPostgreSQL, "redis": testRedis, "smtp": testSMTP,
		"grpc": testGRPC, "websocket": testWebSocket,
	} {
		t.Run(name, func(t *testing.T) { test(t, w) })
	}
}

// serveHTTP runs a Go HTTP server, HTTP/1.1 and HTTP/2 without TLS, on all addresses of a pod until the test ends.
func serveHTTP(t *testing.T, p testnet.Pod, h http.Handler) uint16 {
	t.Helper()
	l := testnet.Listen(t, p, "tcp", "[::]:0")
	s := &http.Server{Handler: h, Protocols: new(http.Protocols), ReadHeaderTimeout: 10 * time.Second}
	s.Protocols.SetHTTP1(true)
	s.Protocols.SetUnencryptedHTTP2(true)
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return uint16(l.Addr().(*net.TCPAddr).Port)
}

// curlServer answers with what it has seen.
func curlServer() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/seen", func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		body := fmt.Sprintf("%s %s %s from %s", r.Method, r.URL.RequestURI(), r.Proto, host)
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		w.Header().Set("X-Conn", r.RemoteAddr)
		io.WriteString(w, body)
	})
	mux.HandleFunc("/sum", func(w http.ResponseWriter, r *http.Request) {
		got, n, err := sum(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		fmt.Fprintf(w, "%d of %d %s %s", n, r.ContentLength, got, r.Header.Get("Content-Type"))
	})
	mux.HandleFunc("/refuse", func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, "not this", http.StatusRequestEntityTooLarge) // without reading the body
	})
	mux.HandleFunc("/trailers", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-Checksum")
		io.WriteString(w, "body")
		w.(http.Flusher).Flush()
		io.WriteString(w, " and more")
		w.Header().Set("X-Checksum", "abc123")
		w.Header().Set(http.TrailerPrefix+"X-Late", "undeclared")
	})
	mux.HandleFunc("/status/{code}", func(w http.ResponseWriter, r *http.Request) {
		code := 0
		fmt.Sscan(r.PathValue("code"), &code)
		w.Header().Set("ETag", `"v1"`)
		w.WriteHeader(code)
	})
	return mux
}

func testCurl(t *testing.T, w *town) {
	needProgram(t, "curl", "curl")
	port := serveHTTP(t, w.server, curlServer())
	body := make([]byte, 3<<20)
	io.ReadFull(noise('c', int64(len(body))), body)
	file := filepath.Join(t.TempDir(), "body")
	if err := os.WriteFile(file, body, 0o644); err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256(body)
	want := fmt.Sprintf("%d of %d %s", len(body), len(body), hex.EncodeToString(digest[:]))
	w.onPaths(t, port, func(t *testing.T, p path) {
		for _, version := range []string{"1.1", "2"} {
			t.Run("http"+version, func(t *testing.T) {
				c := &curl{t: t, p: p, flag: "--http" + version}
				proto := "HTTP/1.1"
				if version == "2" {
					c.flag, proto = "--http2-prior-knowledge", "HTTP/2.0"
				}
				c.methods(proto)
				c.upload(file, want, hex.EncodeToString(digest[:]), proto)
				c.bodiless()
				c.trailers()
				c.reuse(proto)
			})
		}
	})
}

// curl runs curl against one address, with one version of HTTP.
type curl struct {
	t    *testing.T
	p    path
	flag string
}

func (c *curl) url(path string) string { return "http://" + c.p.to.String() + path }

func (c *curl) run(stdin io.Reader, args ...string) string {
	c.t.Helper()
	return output(c.t, c.p.from, stdin, "curl", append([]string{"-sS", "--max-time", "30", c.flag}, args...)...)
}

func (c *curl) methods(proto string) {
	want := fmt.Sprintf("/seen?q=a%%20b %s from %s", proto, c.p.client())
	if got := c.run(nil, "-w", "|%{http_code}|%{http_version}", c.url("/seen?q=a%20b")); !strings.HasPrefix(got, "GET "+want+"|200|"+proto[5:6]) {
		c.t.Errorf("GET: %q, want %q", got, want)
	}
	if got := c.run(nil, "-X", "DELETE", c.url("/seen?q=a%20b")); got != "DELETE "+want {
		c.t.Errorf("DELETE: %q", got)
	}
	// The length is that of the body which GET would have: HEAD is one letter longer.
	head := strings.ToLower(c.run(nil, "-I", c.url("/seen?q=a%20b")))
	if !strings.Contains(head, fmt.Sprintf("content-length: %d\r\n", len("HEAD "+want))) {
		c.t.Errorf("HEAD: %q", head)
	}
}

func (c *curl) upload(file, want, digest, proto string) {
	verbose := filepath.Join(c.t.TempDir(), "verbose")
	got := c.run(nil, "-v", "--stderr", verbose, "-H", "Content-Type: x/y", "-H", "Expect: 100-continue", "--data-binary", "@"+file, c.url("/sum"))
	if got != want+" x/y" {
		c.t.Errorf("POST: %q, want %q", got, want)
	}
	log, err := os.ReadFile(verbose)
	if err != nil {
		c.t.Fatal(err)
	}
	status := strings.TrimSuffix(proto, ".0")
	if !bytes.Contains(log, []byte("< "+status+" 100")) || !bytes.Contains(log, []byte("< "+status+" 200")) {
		c.t.Errorf("POST with Expect got no 100 and 200:\n%s", log)
	}
	in, err := os.Open(file)
	if err != nil {
		c.t.Fatal(err)
	}
	defer in.Close()
	args := []string{"-T", "-", "-H", "Expect:"}
	if proto == "HTTP/1.1" {
		args = append(args, "-H", "Transfer-Encoding: chunked")
	}
	if got := c.run(in, append(args, c.url("/sum"))...); !strings.Contains(got, " of -1 "+digest) {
		c.t.Errorf("upload of unknown length: %q, want the sum %s", got, digest)
	}
	if proto == "HTTP/2.0" {
		return // this curl (7.88) takes the RST_STREAM after an early response for an error, without a mesh too
	}
	// A server that refuses without reading: the answer comes, and the body is not sent.
	if got := c.run(nil, "-H", "Expect: 100-continue", "-o", "/dev/null", "-w", "%{http_code} %{size_upload}", "--data-binary", "@"+file, c.url("/refuse")); got != "413 0" {
		c.t.Errorf("refused POST: status and bytes sent are %q, want 413 0", got)
	}
}

func (c *curl) bodiless() {
	for _, code := range []string{"204", "304", "200", "404"} {
		got := c.run(nil, "-D", "-", "-w", "|%{http_code} %{size_download}", "-H", `If-None-Match: "v1"`, c.url("/status/"+code))
		if !strings.HasSuffix(got, "|"+code+" 0") || !strings.Contains(strings.ToLower(got), `etag: "v1"`) {
			c.t.Errorf("status %s: %q", code, got)
		}
	}
}

func (c *curl) trailers() {
	dump := filepath.Join(c.t.TempDir(), "headers")
	got := c.run(nil, "-D", dump, "-H", "TE: trailers", c.url("/trailers"))
	fields, err := os.ReadFile(dump)
	if err != nil {
		c.t.Fatal(err)
	}
	f := strings.ToLower(string(fields))
	if got != "body and more" || !strings.Contains(f, "x-checksum: abc123") || !strings.Contains(f, "x-late: undeclared") {
		c.t.Errorf("response with trailers: body %q, fields:\n%s", got, fields)
	}
}

// reuse makes three requests in one run: curl opens one connection, and the server sees one client. (With prior knowledge
// of HTTP/2 this curl fails to use a connection twice, without a mesh too.)
func (c *curl) reuse(proto string) {
	if proto == "HTTP/2.0" {
		return
	}
	got := c.run(nil, "-w", "|%{num_connects}\n", c.url("/seen?1"), c.url("/seen?2"), c.url("/seen?3"))
	want := ""
	for i := 1; i <= 3; i++ {
		want += fmt.Sprintf("GET /seen?%d %s from %s|%d\n", i, proto, c.p.client(), 1/i)
	}
	if got != want {
		c.t.Errorf("three requests on one connection: %q, want %q", got, want)
	}
}

// clientAddr is the other end of a server's connection.
func clientAddr(c net.Conn) netip.AddrPort {
	a := c.RemoteAddr().(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}
