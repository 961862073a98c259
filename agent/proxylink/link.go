// Package proxylink starts, finds and supervises the node's proxy, and speaks with it (package node).
package proxylink

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"conduit.io/conduit/api/frame"
	"conduit.io/conduit/api/node"
)

const (
	dialTimeout  = time.Second
	helloTimeout = 10 * time.Second
	// CallTimeout bounds one request. A proxy that takes longer is taken for broken, and the link is closed.
	CallTimeout = 10 * time.Second
)

// ErrClosed is wrapped by Call when the link has ended: the proxy has died, or another agent took over.
var ErrClosed = errors.New("proxy link closed")

// errHung is wrapped when a proxy is there and does not answer.
var errHung = errors.New("the proxy does not answer")

// Link is a connection to a proxy. It is safe for concurrent use.
type Link struct {
	c     *frame.Conn
	hello *node.Hello
	done  chan struct{}
	at    os.FileInfo // the socket

	release func() bool // of the Supervisor

	mu      sync.Mutex
	last    uint64
	waiting map[uint64]chan *node.Ack
	drained func(cookie uint64)
	early   []uint64 // drained before OnDrained
	lookup  func(*node.Lookup)
	asked   []*node.Lookup // before OnLookup
	err     error
}

// Connect dials the proxy at the Unix socket path and reads its Hello. The caller must Close the Link. The proxy's
// version is not looked at.
func Connect(path string) (*Link, error) { return connect(path, helloTimeout) }

func connect(path string, patience time.Duration) (*Link, error) {
	at, err := os.Stat(path) // before: if it changes meanwhile, the proxy is taken for another one, and greeted once more
	if err != nil {
		return nil, fmt.Errorf("connect to proxy: %w", err)
	}
	c, err := frame.Dial(path, dialTimeout)
	if err != nil {
		return nil, fmt.Errorf("connect to proxy: %w", err)
	}
	var m node.Message
	c.SetDeadline(time.Now().Add(patience))
	files, err := c.Receive(&m)
	frame.CloseAll(files)
	c.SetDeadline(time.Time{})
	if err == nil && m.Hello == nil {
		err = errors.New("its first message is no hello")
	}
	if err != nil {
		c.Close()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			err = fmt.Errorf("%w within %v: %w", errHung, patience, err)
		}
		return nil, fmt.Errorf("greet proxy: %w", err)
	}
	l := &Link{c: c, hello: m.Hello, at: at, done: make(chan struct{}), waiting: map[uint64]chan *node.Ack{}}
	go l.read()
	return l, nil
}

// Hello is what the proxy said of itself when the link began.
func (l *Link) Hello() *node.Hello { return l.hello }

// Done is closed when the link has ended.
func (l *Link) Done() <-chan struct{} { return l.done }

// Close ends the link; the proxy goes on.
func (l *Link) Close() { l.fail(ErrClosed) }

// OnDrained says whom to tell, on a goroutine of its own, that a draining pod's last connection has ended.
func (l *Link) OnDrained(f func(cookie uint64)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drained = f
	for _, cookie := range l.early {
		go f(cookie)
	}
	l.early = nil
}

// OnLookup says whom to ask for addresses, in order and after Hello's Interest. f must neither block nor use the Link.
func (l *Link) OnLookup(f func(*node.Lookup)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lookup = f
	for _, q := range l.asked {
		f(q)
	}
	l.asked = nil
}

func (l *Link) read() {
	for {
		var m node.Message
		files, err := l.c.Receive(&m)
		frame.CloseAll(files) // the proxy sends none
		if err != nil {
			l.fail(fmt.Errorf("%w: %w", ErrClosed, err))
			return
		}
		l.mu.Lock()
		switch {
		case m.Ack != nil:
			if ch := l.waiting[m.ID]; ch != nil {
				delete(l.waiting, m.ID)
				ch <- m.Ack
			}
		case m.Drained != nil && l.drained != nil:
			go l.drained(m.Drained.Cookie)
		case m.Drained != nil:
			l.early = append(l.early, m.Drained.Cookie)
		case m.Lookup != nil && l.lookup != nil:
			l.lookup(m.Lookup)
		case m.Lookup != nil:
			l.asked = append(l.asked, m.Lookup)
		}
		l.mu.Unlock()
	}
}

func (l *Link) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil {
		l.err = err
		l.c.Close()
		close(l.done)
	}
}

// Call sends a request with its files, which stay the caller's, and waits for the answer: see Send and Answer.Wait.
func (l *Link) Call(ctx context.Context, m *node.Message, files ...*os.File) (*node.Ack, error) {
	a, err := l.Send(m, files...)
	if err != nil {
		return nil, err
	}
	return a.Wait(ctx)
}

// Answer is what the proxy will say to a request. It may be waited for once.
type Answer struct {
	l     *Link
	id    uint64
	ack   chan *node.Ack
	until time.Time
}

// Send sends a request with its files, which stay the caller's. The proxy carries out requests in the order in which they were sent, and
// answers in that order.
func (l *Link) Send(m *node.Message, files ...*os.File) (*Answer, error) {
	a := &Answer{l: l, ack: make(chan *node.Ack, 1), until: time.Now().Add(CallTimeout)}
	l.mu.Lock()
	if l.err != nil {
		l.mu.Unlock()
		return nil, l.err
	}
	l.last++
	a.id, m.ID = l.last, l.last
	l.waiting[a.id] = a.ack
	l.mu.Unlock()
	l.c.SetWriteDeadline(a.until)
	if err := l.c.Send(m, files...); err != nil {
		l.fail(fmt.Errorf("%w: %w", ErrClosed, err))
		return nil, fmt.Errorf("ask proxy: %w", err)
	}
	return a, nil
}

// Wait waits for the answer. An answer that is an error is returned as one. CallTimeout after the request was sent the link is closed:
// nobody knows what the proxy has done. When ctx ends first, the link stays, and the caller must reckon with either.
func (a *Answer) Wait(ctx context.Context) (*node.Ack, error) {
	timer := time.NewTimer(time.Until(a.until))
	defer timer.Stop()
	select {
	case ack := <-a.ack:
		if ack.Error != "" {
			return ack, fmt.Errorf("proxy refused: %s", ack.Error)
		}
		return ack, nil
	case <-a.l.done:
		return nil, a.l.err
	case <-ctx.Done():
		a.l.mu.Lock()
		delete(a.l.waiting, a.id)
		a.l.mu.Unlock()
		return nil, fmt.Errorf("ask proxy: %w", ctx.Err())
	case <-timer.C:
		err := fmt.Errorf("%w: %w within %v", ErrClosed, errHung, CallTimeout)
		a.l.fail(err)
		return nil, err
	}
}

// Stats asks for the proxy's metrics as Prometheus text.
func (l *Link) Stats(ctx context.Context) (string, error) {
	ack, err := l.Call(ctx, &node.Message{Stats: &node.StatsRequest{}})
	if err != nil {
		return "", err
	}
	return ack.Stats, nil
}
