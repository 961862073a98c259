package netns_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"conduit.io/conduit/cli/lab"
	"conduit.io/conduit/tests/testnet"
)

// pusher is a server that sends far more than anybody asked for, and counts what the kernel takes from it.
type pusher struct{ sent atomic.Int64 }

// counter counts what is read through it.
type counter struct {
	r io.Reader
	n atomic.Int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n.Add(int64(n))
	return n, err
}

// push writes in small pieces: a piece that is counted has been taken.
func (s *pusher) push(w io.Writer) {
	buf := make([]byte, 32<<10)
	for r := noise('p', pushed); ; {
		n, err := io.ReadFull(r, buf)
		if n > 0 {
			if _, err := w.Write(buf[:n]); err != nil {
				return
			}
			s.sent.Add(int64(n))
		}
		if err != nil {
			return
		}
	}
}

// serve pushes on "push\n" and echoes any other line.
func (s *pusher) serve(c net.Conn) {
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return
	}
	if line == "push\n" {
		s.push(c)
		return
	}
	io.WriteString(c, line)
}

func (s *pusher) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/push" {
		s.push(w)
		return
	}
	fmt.Fprintf(w, "%s %s", r.Proto, r.URL)
}

func (s *pusher) open(t *testing.T, p path) io.Reader {
	t.Helper()
	c := bulkDial(t, p)
	io.WriteString(c, "push\n")
	return c
}

// get asks over same for HTTP/2, over a connection of its own for HTTP/1.1.
func (s *pusher) get(t *testing.T, p path, h2 bool, same *http.Client) io.Reader {
	t.Helper()
	if !h2 {
		same = webClient(t, p, false)
	}
	res, err := same.Get("http://" + p.to.String() + "/push")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { res.Body.Close() })
	return res.Body
}

// webClient speaks one version of HTTP.
func webClient(t *testing.T, p path, h2 bool) *http.Client {
	t.Helper()
	tr := &http.Transport{DialContext: p.dialer(), Protocols: new(http.Protocols)}
	tr.Protocols.SetHTTP1(!h2)
	tr.Protocols.SetUnencryptedHTTP2(h2)
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 2 * time.Minute}
}

// small makes one exchange of each kind: bytes, HTTP/1.1 and HTTP/2 on new connections, and one with each of the clients.
func (s *pusher) small(t *testing.T, raw, web path, clients ...*http.Client) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if got, err := testnet.RoundTrip(ctx, raw.from, raw.to, []byte("a line\n")); err != nil || string(got) != "a line\n" {
		return fmt.Errorf("opaque: %q, %w", got, err)
	}
	for _, h2 := range []bool{false, true} {
		hc := webClient(t, web, h2)
		defer hc.CloseIdleConnections()
		clients = append(clients, hc)
	}
	for _, hc := range clients {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+web.to.String()+"/small", nil)
		if err != nil {
			return err
		}
		res, err := hc.Do(req)
		if err != nil {
			return err
		}
		got, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil || !strings.HasSuffix(string(got), " /small") {
			return fmt.Errorf("http: %q, %w", got, err)
		}
	}
	return nil
}

// TestEnds: how connections end, and that those which are not ended stay.
func TestEnds(t *testing.T) {
	w := newTown(t)
	for name, test := range map[string]func(*testing.T, *town){
		"client half-closes": testClientHalfCloses, "server half-closes": testServerHalfCloses,
		"reset": testReset, "any order": testAnyOrder, "idle": testIdle, "unmeshed": testUnmeshed,
	} {
		t.Run(name, func(t *testing.T) { test(t, w) })
	}
	// Nothing is left of all that in the proxies but the links between them, which node two has accepted.
	for metric, nodes := range map[string][]testnet.Node{"tcp_open_connections": {w.node(1), w.node(2)}, "conduit_proxy_connections_open": {w.node(1)}} {
		for _, node := range nodes {
			testnet.Eventually(t, 10*time.Second, func(ctx context.Context) error {
				n, err := testnet.Metric(ctx, node, metric)
				if err == nil && n != 0 {
					err = fmt.Errorf("%s on node %s is %v", metric, node.Name(), n)
				}
				return err
			})
		}
	}
}

// testClientHalfCloses: the server sees the end of what the client has to say, and goes on speaking.
func testClientHalfCloses(t *testing.T, w *town) {
	w.onPaths(t, testnet.Serve(t, w.server, 0, halfClosed), func(t *testing.T, p path) {
		c := bulkDial(t, p)
		if _, err := io.Copy(c, noise('c', 3<<20)); err != nil {
			t.Fatal(err)
		}
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		r := bufio.NewReader(c)
		line, err := r.ReadString('\n')
		want, n, _ := sum(noise('c', 3<<20))
		if err != nil || line != fmt.Sprintf("%d %s\n", n, want) {
			t.Errorf("the server got %q, %v; want %d %s", line, err, n, want)
		}
		want, n, _ = sum(noise('h', 10<<20))
		if got, m, err := sum(r); err != nil || m != n || got != want {
			t.Errorf("after the half-close: %d bytes, sum %s, %v; want %d", m, got, err, n)
		}
	})
}

// testServerHalfCloses: the client sees the end before it has said anything, and goes on speaking.
func testServerHalfCloses(t *testing.T, w *town) {
	result := make(chan string, 1)
	port := testnet.Serve(t, w.server, 0, func(c net.Conn) {
		io.WriteString(c, "that is all\n")
		if c.(*net.TCPConn).CloseWrite() != nil {
			return
		}
		got, n, err := sum(c)
		result <- fmt.Sprint(n, got, err)
	})
	w.onPaths(t, port, func(t *testing.T, p path) {
		c := bulkDial(t, p)
		if got, err := io.ReadAll(c); err != nil || string(got) != "that is all\n" {
			t.Fatalf("%q, %v", got, err)
		}
		select {
		case got := <-result:
			t.Fatalf("the server saw an end that nobody made, after %s", got)
		default:
		}
		if _, err := io.Copy(c, noise('s', 10<<20)); err != nil {
			t.Fatal(err)
		}
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		want, n, err := sum(noise('s', 10<<20))
		if got := <-result; got != fmt.Sprint(n, want, err) {
			t.Errorf("the server got %s, want %d %s", got, n, want)
		}
	})
}

// testReset: a reset on one side is a reset on the other, and not an end.
func testReset(t *testing.T, w *town) {
	seen := make(chan error, 1)
	port := testnet.Serve(t, w.server, 0, func(c net.Conn) {
		order := make([]byte, 1)
		if _, err := io.ReadFull(c, order); err != nil {
			seen <- err
			return
		}
		c.Write(order)
		if order[0] == 'R' {
			c.(*net.TCPConn).SetLinger(0)
			return // the caller closes it
		}
		_, err := io.Copy(io.Discard, c)
		seen <- err
	})
	w.onPaths(t, port, func(t *testing.T, p path) {
		c := p.dial(t)
		io.WriteString(c, "R")
		if got, err := io.ReadAll(c); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the server reset the connection, the client got %q and %v", got, err)
		}
		c = p.dial(t)
		io.WriteString(c, "C")
		expect(t, c, "C")
		if err := c.SetLinger(0); err != nil {
			t.Fatal(err)
		}
		c.Close()
		if err := <-seen; !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the client reset the connection, the server got %v", err)
		}
	})
}

// testIdle holds 200 silent connections while others work: none is ended, and each works afterwards.
func testIdle(t *testing.T, w *town) {
	const n = 200
	s := &pusher{}
	echo := testnet.Echo(t, w.server, 0)
	raw, web := w.paths(testnet.Serve(t, w.server, 0, s.serve)), w.paths(serveHTTP(t, w.server, s))
	w.onPaths(t, echo, func(t *testing.T, p path) {
		var idle []net.Conn
		for i := range n {
			c := bulkDial(t, p)
			if i%2 == 0 { // half of them have worked before, the others have not said a word
				io.WriteString(c, "before\n") // a whole line, which is no HTTP's: nobody waits for the rest of one
				expect(t, c, "before\n")
			}
			idle = append(idle, c)
		}
		if open, err := testnet.Metric(t.Context(), p.from, "tcp_open_connections", `direction="outbound"`, p.from.String()); err != nil || open < n/2 {
			t.Errorf("%v connections counted as open, %v; want at least %d", open, err, n/2)
		}
		for i := range 60 {
			if err := s.small(t, raw[i%len(raw)], web[i%len(web)]); err != nil {
				t.Fatal(err)
			}
		}
		var wg sync.WaitGroup
		for i, c := range idle {
			wg.Go(func() {
				word := fmt.Sprintf("after %03d", i)
				got := make([]byte, len(word))
				io.WriteString(c, word)
				if _, err := io.ReadFull(c, got); err != nil || string(got) != word {
					t.Errorf("idle connection %d: %q, %v", i, got, err)
				}
			})
		}
		wg.Wait()
	})
}

// testUnmeshed: traffic between the mesh and pods outside of it passes through as it is, in both directions, on one
// node and between nodes. The mesh's side is PERMISSIVE.
func testUnmeshed(t *testing.T, w *town) {
	made := w.pods(t, resident{1, w.namespace(t, "open", enrolledLabels, nil), "in", lab.PodOptions{}, nil}, resident{2, w.plain, "far", lab.PodOptions{}, nil})
	in, far := made[0], made[1]
	families := 0
	for _, out := range []testnet.Pod{w.outsider, far} {
		for _, way := range []struct{ from, to testnet.Pod }{{in, out}, {out, in}} {
			greeter := func(c net.Conn) {
				fmt.Fprintf(c, "hello %s\n", clientAddr(c).Addr())
				halfClosed(c)
			}
			port := testnet.Serve(t, way.to, 0, greeter)
			web := serveHTTP(t, way.to, curlServer())
			for _, f := range []lab.Families{lab.IPv4, lab.IPv6} {
				if !way.to.IP(f).IsValid() {
					continue
				}
				families++
				p := path{fmt.Sprintf("%s to %s", way.from, way.to), way.from, podPort(way.to, f, port), way.to.IP(f)}
				passThrough(t, p)
				p.to = podPort(way.to, f, web)
				want := fmt.Sprintf("GET /seen HTTP/1.1 from %s", p.client())
				res, err := webClient(t, p, false).Get("http://" + p.to.String() + "/seen")
				if err != nil {
					t.Fatalf("%s: %v", p.name, err)
				}
				if got, err := io.ReadAll(res.Body); err != nil || string(got) != want || res.Header.Get("Conduit-Reason") != "" {
					t.Errorf("%s: %q %v, %v; want %q", p.name, got, res.Header, err, want)
				}
				res.Body.Close()
			}
		}
	}
	for _, direction := range []string{"outbound", "inbound"} { // it did pass the proxy
		n, err := testnet.Metric(t.Context(), w.node(1), "request_total", `direction="`+direction+`"`, in.String()+`"`, `tls="none"`)
		if want := families / 2; err != nil || int(n) != want {
			t.Errorf("%v requests of pod in counted %s without TLS, %v; want %d", n, direction, err, want)
		}
	}
}

// passThrough reads a greeting, sends, half-closes, and reads to the end.
func passThrough(t *testing.T, p path) {
	t.Helper()
	c := bulkDial(t, p)
	expect(t, c, fmt.Sprintf("hello %s\n", p.client()))
	if _, err := io.Copy(c, noise('u', 1<<20)); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	sent, n, _ := sum(noise('u', 1<<20))
	answer, _, _ := sum(io.MultiReader(strings.NewReader(fmt.Sprintf("%d %s\n", n, sent)), noise('h', 10<<20)))
	if got, m, err := sum(c); err != nil || got != answer {
		t.Errorf("%s: %d bytes, sum %s, %v; want %s", p.name, m, got, err, answer)
	}
}
