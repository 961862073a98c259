// Package controlplane is the agent's side of what the controller tells: who has the addresses that the node's pods talk
// to.
package controlplane

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/netip"
	"sync"

	"conduit.io/conduit/agent/discovery"
	"conduit.io/conduit/api/discoveryv1"
	"conduit.io/conduit/api/discoveryv1/discoveryv1connect"
	"conduit.io/conduit/api/node"

	"connectrpc.com/connect"
)

const (
	maxMessage   = 4 << 20
	maxSubscribe = 4096 // addresses in one message: what the controller takes
)

// Config says where the controller is.
type Config struct {
	URL    string       // https://HOST:PORT
	Client *http.Client // proves both sides; HTTP/2
	Node   string
	Log    *slog.Logger
}

// Directory follows the addresses that are of interest. What it was told stays in force while the controller is away. It
// is safe for concurrent use; its methods do not block.
type Directory struct {
	cfg    Config
	client discoveryv1connect.DiscoveryServiceClient
	kick   chan struct{} // has an element when the interest has changed

	mu        sync.Mutex
	proxy     questions // the proxy's interest
	local     questions // this node's pods
	asked     questions // by the stream that is open
	state     *state    // for the goroutine of the stream alone, but for asked addresses that are dropped
	view      *discovery.View
	told      bool // by the controller, something whole
	connected bool
	fault     error
}

// New makes a Directory that knows nothing; Run follows.
func New(cfg Config) *Directory {
	return &Directory{
		cfg: cfg, kick: make(chan struct{}, 1), view: &discovery.View{}, state: newState(cfg.Node),
		client: discoveryv1connect.NewDiscoveryServiceClient(cfg.Client, cfg.URL, connect.WithGRPC(), connect.WithReadMaxBytes(maxMessage)),
		proxy:  questions{}, local: questions{}, asked: questions{},
	}
}

// questions are addresses as a whole (port 0), and ports of such as others share.
type questions map[netip.AddrPort]struct{}

func question(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

// Reset replaces the proxy's interest.
func (d *Directory) Reset(all []netip.AddrPort) { d.replace(&d.proxy, all) }

// Local replaces the addresses of this node's pods.
func (d *Directory) Local(all []netip.Addr) {
	whole := make([]netip.AddrPort, 0, len(all))
	for _, a := range all {
		whole = append(whole, netip.AddrPortFrom(a, 0))
	}
	d.replace(&d.local, whole)
}

func (d *Directory) replace(set *questions, all []netip.AddrPort) {
	fresh := make(questions, len(all))
	for _, a := range all {
		fresh[question(a)] = struct{}{}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	same := len(fresh) == len(*set)
	for a := range fresh {
		if _, ok := (*set)[a]; !ok {
			same = false
			break
		}
	}
	if !same {
		*set = fresh
		d.poke()
	}
}

// Lookup changes the proxy's interest.
func (d *Directory) Lookup(q *node.Lookup) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, a := range q.Add {
		d.proxy[question(a)] = struct{}{}
	}
	for _, a := range q.Drop {
		delete(d.proxy, question(a))
	}
	d.poke()
}

func (d *Directory) poke() {
	select {
	case d.kick <- struct{}{}:
	default:
	}
}

// View is what is known. It is immutable.
func (d *Directory) View() *discovery.View {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.view
}

// Told reports whether the controller has answered, ever.
func (d *Directory) Told() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.told
}

// Status is how a Directory follows the controller.
type Status struct {
	Connected bool
	Fault     error  // why it is not connected
	Epoch     string // with Version, where in the controller's history View is
	Version   uint64
}

// Status is how it stands now.
func (d *Directory) Status() Status {
	d.mu.Lock()
	defer d.mu.Unlock()
	return Status{d.connected, d.fault, d.state.epoch, d.state.version}
}

// Run follows the controller until ctx ends, and calls changed, which must not block, when View has changed.
func (d *Directory) Run(ctx context.Context, changed func()) {
	insist(ctx, func(ctx context.Context) error { return d.follow(ctx, changed) }, func(err error, again bool) {
		d.mu.Lock()
		again = again && !d.connected
		d.connected, d.fault = false, err
		d.mu.Unlock()
		if !again {
			d.cfg.Log.Warn("controller is not followed; what it said stays in force", "error", err)
		}
	})
}

// follow opens a stream and keeps to it until it ends.
func (d *Directory) follow(ctx context.Context, changed func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := d.client.Watch(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = stream.CloseResponse() }()
	if err := d.open(stream, changed); err != nil {
		return errors.Join(err, ended(stream))
	}
	sent := make(chan error, 1)
	go func() {
		sent <- d.send(ctx, stream, changed)
		_ = stream.CloseRequest()
	}()
	for {
		m, err := stream.Receive()
		if err != nil {
			cancel()
			if e := <-sent; e != nil && !errors.Is(e, context.Canceled) {
				err = errors.Join(err, e)
			}
			return err
		}
		if d.apply(m) {
			changed()
		}
	}
}

type watch = connect.BidiStreamForClientSimple[discoveryv1.WatchRequest, discoveryv1.WatchResponse]

// ended is the error that the other side has ended the stream with: what Send returns says less.
func ended(stream *watch) error {
	_, err := stream.Receive()
	return err
}

// open begins a stream: first with what an earlier one was answered, so that only what has changed is told.
func (d *Directory) open(stream *watch, changed func()) error {
	d.mu.Lock()
	clear(d.asked)
	first := &discoveryv1.WatchRequest{}
	if d.state.version == 0 { // what there is may be a part
		d.state = newState(d.cfg.Node)
	}
	if s := d.state; s.version > 0 {
		first.Resume = &discoveryv1.Position{Epoch: s.epoch, Version: s.version}
		for a := range s.answers {
			if len(first.Subscribe) < maxSubscribe && d.wants(a) {
				first.Subscribe = append(first.Subscribe, message(a))
				d.asked[a] = struct{}{}
			}
		}
	}
	d.mu.Unlock()
	if err := stream.Send(first); err != nil {
		return err
	}
	return d.tell(stream, changed)
}

func (d *Directory) wants(a netip.AddrPort) bool {
	_, local := d.local[a]
	_, proxy := d.proxy[a]
	return local || proxy
}

func message(a netip.AddrPort) *discoveryv1.Address {
	return &discoveryv1.Address{Ip: a.Addr().AsSlice(), Port: uint32(a.Port())}
}

// send tells of the interest whenever it has changed.
func (d *Directory) send(ctx context.Context, stream *watch, changed func()) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-d.kick:
		}
		if err := d.tell(stream, changed); err != nil {
			return err
		}
	}
}

// tell sends what the controller has not been asked on this stream yet, and what is not wanted any more.
func (d *Directory) tell(stream *watch, changed func()) error {
	for {
		m := d.change()
		if len(m.Subscribe)+len(m.Unsubscribe) == 0 {
			return nil
		}
		if len(m.Unsubscribe) > 0 {
			changed()
		}
		if err := stream.Send(m); err != nil {
			return err
		}
	}
}

// change is the next difference between what is wanted and what was asked.
func (d *Directory) change() *discoveryv1.WatchRequest {
	d.mu.Lock()
	defer d.mu.Unlock()
	m := &discoveryv1.WatchRequest{Applied: d.state.version}
	n := 0
	for a := range d.asked {
		if n < maxSubscribe && !d.wants(a) {
			delete(d.asked, a)
			m.Unsubscribe = append(m.Unsubscribe, message(a))
			n++
		}
	}
	for _, set := range []questions{d.local, d.proxy} {
		for a := range set {
			if _, ok := d.asked[a]; !ok && n < maxSubscribe {
				d.asked[a] = struct{}{}
				m.Subscribe = append(m.Subscribe, message(a))
				n++
			}
		}
	}
	if len(m.Unsubscribe) > 0 && !d.state.partial {
		d.state.forget(d.wants)
		d.view = d.state.view()
	}
	return m
}

// apply takes in a response; when it completes a version, that becomes the View.
func (d *Directory) apply(m *discoveryv1.WatchResponse) (whole bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.connected {
		d.connected, d.fault = true, nil
		d.cfg.Log.Info("controller is followed", "epoch", m.GetPosition().GetEpoch())
	}
	d.state.apply(m, d.wants)
	if m.GetMore() {
		return false
	}
	d.view, d.told = d.state.view(), true
	return true
}
