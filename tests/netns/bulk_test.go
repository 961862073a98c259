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
	"testing"
	"time"

	"conduit.io/conduit/tests/testnet"
)

// How many bytes go each way.
const (
	bulk    = 1 << 30
	bulkWeb = 1 << 29
)

// TestBulk sends a GiB up and a GiB down, over mTLS between nodes, and half of it as bodies of HTTP. What arrives is what was
// sent, and neither proxy keeps it.
func TestBulk(t *testing.T) {
	w := newTown(t)
	t.Run("opaque", func(t *testing.T) { bulkOpaque(t, w, sumOf(t, 'b', bulk)) })
	t.Run("http", func(t *testing.T) { bulkHTTP(t, w, sumOf(t, 'b', bulkWeb)) })
}

func sumOf(t *testing.T, seed byte, n int64) string {
	t.Helper()
	s, _, err := sum(noise(seed, n))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// rate logs how long bytes took.
func rate(t *testing.T, what string, bytes int, start time.Time) {
	t.Helper()
	took := time.Since(start)
	t.Logf("%s: %d MiB in %v, %.0f MiB/s", what, bytes>>20, took.Round(time.Millisecond), float64(bytes>>20)/took.Seconds())
}

// bulkOpaque speaks a protocol of one letter: U and then bytes, answered by their sum; or D, answered by bytes.
func bulkOpaque(t *testing.T, w *town, want string) {
	port := testnet.Serve(t, w.server, 0, func(c net.Conn) {
		order := make([]byte, 1)
		if _, err := io.ReadFull(c, order); err != nil {
			return
		}
		if order[0] == 'D' {
			io.Copy(c, onlyReader{noise('b', bulk)})
			return
		}
		if got, n, err := sum(c); err == nil {
			fmt.Fprintf(c, "%d %s", n, got)
		}
	})
	p := w.far(port)
	memory := w.watchRSS(t)
	up := bulkDial(t, p)
	start := time.Now()
	if _, err := io.Copy(up, io.MultiReader(strings.NewReader("U"), noise('b', bulk))); err != nil {
		t.Fatal(err)
	}
	if err := up.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(up); err != nil || string(got) != fmt.Sprintf("%d %s", bulk, want) {
		t.Errorf("the server got %q, %v; want %d bytes with the sum %s", got, err, bulk, want)
	}
	rate(t, "up", bulk, start)
	down := bulkDial(t, p)
	start = time.Now()
	if _, err := down.Write([]byte("D")); err != nil {
		t.Fatal(err)
	}
	if got, n, err := sum(down); err != nil || n != bulk || got != want {
		t.Errorf("the client got %d bytes with the sum %s, %v; want %d with %s", n, got, err, bulk, want)
	}
	rate(t, "down", bulk, start)
	memory.check(t)
}

func bulkDial(t *testing.T, p path) *net.TCPConn {
	t.Helper()
	c := p.dial(t)
	if err := c.SetDeadline(time.Now().Add(3 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	return c
}

// bulkHTTP uploads with the chunked coding and downloads without a length.
func bulkHTTP(t *testing.T, w *town, want string) {
	port := serveHTTP(t, w.server, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			io.Copy(rw, noise('b', bulkWeb))
			return
		}
		got, n, err := sum(r.Body)
		fmt.Fprintf(rw, "%d of %d %s %v", n, r.ContentLength, got, err)
	}))
	p := w.far(port)
	hc := &http.Client{Transport: &http.Transport{DialContext: p.dialer(), WriteBufferSize: 64 << 10, ReadBufferSize: 64 << 10}}
	t.Cleanup(hc.CloseIdleConnections)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	memory := w.watchRSS(t)
	start := time.Now()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+p.to.String()+"/up", onlyReader{noise('b', bulkWeb)})
	if err != nil {
		t.Fatal(err)
	}
	res, err := hc.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(res.Body)
	res.Body.Close()
	if err != nil || res.StatusCode != 200 || string(got) != fmt.Sprintf("%d of -1 %s <nil>", bulkWeb, want) {
		t.Errorf("upload: %s %q, %v; want the sum %s", res.Status, got, err, want)
	}
	rate(t, "chunked upload", bulkWeb, start)
	start = time.Now()
	req, err = http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.to.String()+"/down", nil)
	if err != nil {
		t.Fatal(err)
	}
	if res, err = hc.Do(req); err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if got, n, err := sum(res.Body); err != nil || n != bulkWeb || got != want || res.ContentLength != -1 {
		t.Errorf("download: %d bytes with the sum %s, %v; want %s", n, got, err, want)
	}
	rate(t, "download", bulkWeb, start)
	memory.check(t)
}

// TestStoppedReader has clients that stop reading. Each holds up its own server and nobody else, no proxy stores what
// cannot be delivered, and when the client reads again it gets everything.
func TestStoppedReader(t *testing.T) {
	w := newTown(t)
	s := &pusher{}
	raw := testnet.Serve(t, w.server, 0, s.serve)
	web := serveHTTP(t, w.server, s)
	for i, p := range []path{w.far(raw), w.near(raw)} {
		h := []path{w.far(web), w.near(web)}[i]
		t.Run(p.name+"/opaque", func(t *testing.T) { stopReading(t, w, s, p, h, func(*http.Client) io.Reader { return s.open(t, p) }) })
		for name, h2 := range map[string]bool{"http1": false, "http2": true} {
			t.Run(h.name+"/"+name, func(t *testing.T) {
				stopReading(t, w, s, p, h, func(same *http.Client) io.Reader { return s.get(t, h, h2, same) })
			})
		}
	}
	t.Run("server stops reading", func(t *testing.T) { serverStops(t, w) })
}

const (
	pushed   = 64 << 20 // bytes of an answer
	inFlight = 16 << 20 // more than all socket buffers, windows and queues on the way
	stall    = 500 * time.Millisecond
)

// waitStalled waits until a counter has not moved for a while, though it began to.
func waitStalled(t *testing.T, count func() int64) int64 {
	t.Helper()
	last, since := int64(-1), time.Now()
	testnet.Eventually(t, 30*time.Second, func(context.Context) error {
		n := count()
		if n != last {
			last, since = n, time.Now()
		}
		if n == 0 || time.Since(since) < stall {
			return errors.New("bytes still move, or none has")
		}
		return nil
	})
	return last
}

// stopReading lets open begin an answer that is not read at first. With HTTP/2 it is on a connection of the client that
// open gets.
func stopReading(t *testing.T, w *town, s *pusher, raw, web path, open func(*http.Client) io.Reader) {
	memory := w.watchRSS(t)
	s.sent.Store(0)
	same := webClient(t, web, true)
	r := open(same)
	sent := waitStalled(t, s.sent.Load)
	if sent > inFlight {
		t.Errorf("the server wrote %d bytes to a client that does not read, want at most %d", sent, inFlight)
	}
	t.Logf("the server stopped after %d KiB", sent>>10)
	// The same link between the nodes goes on carrying others, of every kind, and so does the client's own connection.
	for range 20 {
		if err := s.small(t, raw, web, same); err != nil {
			t.Fatalf("beside a stopped reader: %v", err)
		}
	}
	if now := s.sent.Load(); now-sent > 0 {
		t.Errorf("%d bytes more were written meanwhile", now-sent)
	}
	want := sumOf(t, 'p', pushed)
	if got, n, err := sum(r); err != nil || n != pushed || got != want {
		t.Errorf("after all the client got %d bytes, sum %s, %v; want %d, %s", n, got, err, pushed, want)
	}
	memory.check(t)
}

// serverStops is the other direction: a server that does not read an upload.
func serverStops(t *testing.T, w *town) {
	resume, result := make(chan struct{}), make(chan string, 1)
	port := testnet.Serve(t, w.server, 0, func(c net.Conn) {
		<-resume
		got, n, err := sum(c)
		result <- fmt.Sprint(n, got, err)
	})
	p := w.far(port)
	c := bulkDial(t, p)
	count := &counter{r: noise('p', pushed)}
	failed := make(chan error, 1)
	go func() {
		_, err := io.Copy(c, count)
		failed <- errors.Join(err, c.CloseWrite())
	}()
	if sent := waitStalled(t, count.n.Load); sent > inFlight {
		t.Errorf("the client wrote %d bytes to a server that does not read, want at most %d", sent, inFlight)
	}
	close(resume)
	want, n, err := sum(noise('p', pushed))
	if got := <-result; got != fmt.Sprint(n, want, err) {
		t.Errorf("the server got %s, want %d %s", got, n, want)
	}
	if err := <-failed; err != nil {
		t.Error(err)
	}
}

// halfClosed is the server of TestHalfClose: it reads to the end, and only then writes.
func halfClosed(c net.Conn) {
	got, n, err := sum(c)
	if err != nil {
		return
	}
	w := bufio.NewWriter(c)
	fmt.Fprintf(w, "%d %s\n", n, got)
	io.Copy(w, noise('h', 10<<20))
	w.Flush()
}
