package netns_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	rpc "google.golang.org/grpc/interop/grpc_testing"

	"conduit.io/conduit/cli/lab"
	"conduit.io/conduit/tests/grpctest"
	"conduit.io/conduit/tests/testnet"
)

// bustle is traffic of every kind between pods, which goes on until it is stopped, and must not fail meanwhile.
type bustle struct {
	t      testing.TB
	cancel context.CancelFunc
	wg     sync.WaitGroup
	voices []*voice
}

// voice is one client of a bustle.
type voice struct {
	name string
	done atomic.Int64 // exchanges
	err  error        // the first; read when the voice has ended
}

// beat is how often each voice speaks.
const beat = 40 * time.Millisecond

// newBustle starts, for each pair: an HTTP/1.1 client that keeps its connection, one that makes a new one for each request,
// opaque TCP on one connection and on new ones, and a gRPC stream that stays open.
func newBustle(t *testing.T, pairs []pair) *bustle {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	b := &bustle{t: t, cancel: cancel}
	for _, p := range pairs {
		b.start(ctx, p.String()+", HTTP keep-alive", p.keepAlive(t))
		b.start(ctx, p.String()+", HTTP anew", func() error {
			dials := 0
			c := p.client(1, &dials)
			defer c.CloseIdleConnections()
			return p.post(ctx, c, p.family(), "anew")
		})
		held := p.hold(t)
		b.start(ctx, p.String()+", TCP held", func() error { return p.askOn(held, "held") })
		b.start(ctx, p.String()+", TCP anew", func() error { return p.ask(ctx, lab.IPv4, "anew") })
		b.start(ctx, p.String()+", gRPC stream", p.stream(ctx, t))
	}
	t.Cleanup(func() { cancel(); b.wg.Wait() })
	b.progress(3)
	return b
}

// keepAlive opens a connection; each call of the function it returns makes a request on it, and on no other: a client of
// net/http would hide the loss of a connection that it keeps.
func (p pair) keepAlive(t *testing.T) func() error {
	c := open(t, p.from, p.at(lab.IPv4, regionHTTP))
	r := bufio.NewReader(c)
	return func() error {
		c.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := io.WriteString(c, "POST / HTTP/1.1\r\nHost: kept\r\nContent-Length: 4\r\n\r\nkept"); err != nil {
			return err
		}
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if want := p.to.String() + " kept"; err != nil || resp.StatusCode != 200 || string(body) != want || resp.Close {
			return fmt.Errorf("%s, reason %q, close %v, %q, %w; want %q", resp.Status, resp.Header.Get("conduit-reason"), resp.Close, body, err, want)
		}
		return nil
	}
}

// stream opens a gRPC stream; each call of the function it returns sends a message and wants it back.
func (p pair) stream(ctx context.Context, t *testing.T) func() error {
	both, err := dialCalls(t, path{from: p.from, to: p.at(lab.IPv4, regionGRPC)}).FullDuplexCall(ctx)
	if err != nil {
		t.Fatal(err)
	}
	n := byte(0)
	return func() error {
		n++
		if err := both.Send(&rpc.StreamingOutputCallRequest{Payload: grpctest.Filled(n, 100)}); err != nil {
			return err
		}
		r, err := both.Recv()
		if err != nil || !bytes.Equal(r.GetPayload().GetBody(), grpctest.Filled(n, 100).GetBody()) {
			return fmt.Errorf("message %d: %d bytes, %w", n, len(r.GetPayload().GetBody()), err)
		}
		return nil
	}
}

func (b *bustle) start(ctx context.Context, name string, once func() error) {
	v := &voice{name: name}
	b.voices = append(b.voices, v)
	b.wg.Go(func() {
		tick := time.NewTicker(beat)
		defer tick.Stop()
		for {
			if err := once(); err != nil {
				if ctx.Err() == nil {
					v.err = fmt.Errorf("after %d exchanges: %w", v.done.Load(), err)
				}
				return
			}
			v.done.Add(1)
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	})
}

// progress waits until every voice has made n exchanges more. A voice that failed does not; stop says why.
func (b *bustle) progress(n int64) {
	b.t.Helper()
	want := map[*voice]int64{}
	for _, v := range b.voices {
		want[v] = v.done.Load() + n
	}
	deadline := time.Now().Add(30 * time.Second)
	tick := time.NewTicker(beat)
	defer tick.Stop()
	for {
		var behind []string
		for v, n := range want {
			if v.done.Load() < n {
				behind = append(behind, v.name)
			}
		}
		if len(behind) == 0 {
			return
		}
		if time.Now().After(deadline) {
			b.t.Errorf("no progress of %d clients: %s", len(behind), strings.Join(behind, "; "))
			b.stop()
			b.t.FailNow()
		}
		<-tick.C
	}
}

// stop ends the traffic, and fails the test if any of it failed.
func (b *bustle) stop() {
	b.t.Helper()
	b.cancel()
	b.wg.Wait()
	total := int64(0)
	for _, v := range b.voices {
		total += v.done.Load()
		if v.err != nil {
			b.t.Errorf("%s: %v", v.name, v.err)
		}
	}
	b.t.Logf("%d clients made %d exchanges", len(b.voices), total)
}

// attempt is a connection that says a token to a witness, and how it went.
type attempt struct {
	err  error
	took time.Duration
}

// attempts connects again and again until stop is closed, and returns what came of it.
func (p pair) attempts(ctx context.Context, stop <-chan struct{}, f lab.Families, token string) (all []attempt) {
	for {
		select {
		case <-stop:
			return all
		default:
		}
		start := time.Now()
		c, err := testnet.Dial(ctx, p.from, p.at(f, regionWitness))
		if err == nil {
			err = p.askOn(net.Conn(c), token)
			c.Close()
		}
		all = append(all, attempt{err, time.Since(start)})
	}
}
