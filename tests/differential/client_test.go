package differential

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// patience bounds every wait of the tests.
const patience = time.Minute

var lastCase atomic.Int64

// outcome is what became of an exchange: what the server received, and what the client did.
type outcome struct{ seen, got *message }

// play sends the exchanges over one new connection to addr, on which the client speaks proto.
func play(b *backend, proto, addr string, xs []exchange) ([]outcome, error) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	var runs []*run
	for i := range xs {
		id := fmt.Sprint(lastCase.Add(1))
		xs[i].req.fields = append([]field{{"X-Case", id}}, xs[i].req.fields...)
		runs = append(runs, b.expect(id, xs[i].res))
		defer b.forget(id)
	}
	var out []outcome
	if proto == "http1" {
		out, err = play1(c, xs)
	} else {
		out, err = play2(c, xs)
	}
	if err != nil {
		return out, err
	}
	for i := range out {
		select {
		case out[i].seen = <-runs[i].seen:
		case <-time.After(patience):
			return out, fmt.Errorf("exchange %d did not reach the server, the client got %v", i, out[i].got)
		}
		if len(runs[i].seen) > 0 {
			return out, fmt.Errorf("exchange %d reached the server more than once", i)
		}
	}
	return out, nil
}

// play1 writes requests as early as their authors allow, and reads the responses in order.
func play1(c net.Conn, xs []exchange) ([]outcome, error) {
	r := bufio.NewReader(c)
	answered := make(chan struct{}, len(xs)) // a response, or an interim one, has come
	var wg sync.WaitGroup
	stop := make(chan struct{})
	wait := func(n *int, want int) bool {
		for ; *n < want; *n++ {
			select {
			case <-answered:
			case <-stop:
				return false
			}
		}
		return true
	}
	wg.Go(func() {
		n := 0
		for i, x := range xs {
			if x.req.lone && !wait(&n, i) {
				return
			}
			if _, err := c.Write(x.req.head1()); err != nil {
				return
			}
			if x.req.wait && !wait(&n, i+1) {
				return
			}
			if _, err := c.Write(x.req.body1()); err != nil {
				return
			}
		}
	})
	defer wg.Wait()
	defer close(stop)
	var out []outcome
	for _, x := range xs {
		if x.req.wait { // the first sign of life lets the body go
			if _, err := r.Peek(1); err != nil {
				return out, err
			}
			answered <- struct{}{}
		}
		m, err := readResponse(r, x.req.method)
		if err != nil && (m == nil || m.end == whole) {
			return out, fmt.Errorf("after %d responses: %w", len(out), err)
		}
		out = append(out, outcome{got: m})
		if !x.req.wait {
			answered <- struct{}{}
		}
		if x.res.early || m.end != whole {
			break
		}
		if slices.Contains(named(m.fields), "close") {
			if rest, err := r.ReadByte(); err != io.EOF {
				return out, fmt.Errorf("a connection that was to be closed goes on: %q, %v", rest, err)
			}
			break
		}
	}
	return out, nil
}

// play2 sends each request when the one before has been answered, or all at once if they allow it.
func play2(c net.Conn, xs []exchange) ([]outcome, error) {
	h := newH2(c, true, nil)
	if err := h.start(); err != nil {
		return nil, err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer c.Close()
	out := make([]outcome, len(xs))
	var streams []*h2stream
	collect := func(upTo int) error {
		for i := range upTo {
			if out[i].got == nil {
				if out[i].got = streams[i].response(); out[i].got == nil {
					return fmt.Errorf("exchange %d: %w", i, streams[i].fate())
				}
			}
		}
		return nil
	}
	for i, x := range xs {
		if x.req.lone {
			if err := collect(i); err != nil {
				return out[:i], err
			}
		}
		bare := x.req.framing == none
		s := h.open(x.req.head2(), bare)
		streams = append(streams, s)
		if bare {
			continue
		}
		wg.Go(func() {
			if x.req.wait && !s.until(func() bool { return len(s.heads) > 0 }) {
				return
			}
			var trailers []field
			if x.req.framing == chunked {
				trailers = x.req.trailers
			}
			s.finish(x.req.body, x.req.cuts, trailers)
		})
	}
	return out, collect(len(xs))
}

// fate says how a stream ended that has no response.
func (s *h2stream) fate() error {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if s.reset {
		return fmt.Errorf("reset with code %v", s.code)
	}
	return fmt.Errorf("connection ended: %w", orEOF(s.c.err))
}

func orEOF(err error) error {
	if err == nil {
		return io.EOF
	}
	return err
}
