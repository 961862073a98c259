package hostile

import (
	"context"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"conduit.io/conduit/tests/load/backend"
	"conduit.io/conduit/tests/load/drive"
	"conduit.io/conduit/tests/load/engine"
)

// serve runs the application behind the proxy; its paths are backend.Usage.
func serve(t testing.TB) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	l, err := engine.New()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := backend.Serve(l, ln.(*net.TCPListener)); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- l.Run() }()
	t.Cleanup(func() {
		l.Post(l.Stop)
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return ln.Addr().String()
}

// bystanders are well-behaved clients: HTTP/2 and HTTP/1.1, a hundred requests a second each.
type bystanders struct {
	t      testing.TB
	cancel context.CancelFunc
	ended  chan outcome
	served [2]atomic.Uint64
}

type outcome struct {
	*drive.Result
	err error
	who drive.Protocol
}

func watch(t testing.TB, addr string) *bystanders {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	b := &bystanders{t: t, cancel: cancel, ended: make(chan outcome, 2)}
	for i, protocol := range []drive.Protocol{drive.H2C, drive.HTTP1} {
		go func() {
			r, err := drive.Run(ctx, drive.Config{
				Target: netip.MustParseAddrPort(addr), Protocol: protocol, Open: true, Connections: 4, Streams: 1, Rate: 100,
				Duration: time.Hour, Path: "/bytes/1000", Method: "GET", Timeout: time.Minute, Expect: 1000, Status: 200,
				Report: func(r *drive.Result) { b.served[i].Store(r.Completed) },
			})
			b.ended <- outcome{r, err, protocol}
		}()
	}
	return b
}

// count is how many answers the bystanders have had, each.
func (b *bystanders) count() [2]uint64 { return [2]uint64{b.served[0].Load(), b.served[1].Load()} }

// have reports whether each has had n answers more than at since.
func (b *bystanders) have(since [2]uint64, n uint64) bool {
	now := b.count()
	return now[0]-since[0] >= n && now[1]-since[1] >= n
}

// stop ends them, and checks that all of their requests were answered.
func (b *bystanders) stop() []outcome {
	b.t.Helper()
	b.cancel()
	var all []outcome
	for range 2 {
		o := <-b.ended
		if o.err != nil {
			b.t.Errorf("bystander %s: %v", o.who, o.err)
			continue
		}
		if o.Failed > 0 || o.Completed != o.Sent || o.Completed == 0 {
			b.t.Errorf("bystander %s: %d sent, %d completed, %d failed: %v", o.who, o.Sent, o.Completed, o.Failed, o.Failures)
		}
		all = append(all, o)
	}
	return all
}
