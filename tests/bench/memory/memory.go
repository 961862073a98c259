// Package memory measures what proxies keep resident: when nothing happens, with so many idle connections, and under
// load. Memory is no timing, so that many peers can be measured at the same time.
package memory

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"

	"conduit.io/conduit/tests/bench/peers"
	"conduit.io/conduit/tests/bench/report"
	"conduit.io/conduit/tests/bench/rig"
	"conduit.io/conduit/tests/bench/workload"
)

// Kind is what the idle connections speak.
type Kind string

// The kinds. MTLS is HTTP/2 over mutual TLS, to the second of two hops.
const (
	H2C   Kind = "h2c"
	HTTP1 Kind = "http1"
	MTLS  Kind = "mtls"
)

// Kinds are all of them.
var Kinds = []Kind{H2C, HTTP1, MTLS}

func (k Kind) lane() peers.Lane {
	if k == HTTP1 {
		return peers.H1
	}
	return peers.H2
}

// fits reports whether d can be measured with k: plain connections go to one hop, mutual TLS to the inner of two.
func (k Kind) fits(d *peers.Def) bool {
	return !d.Control() && d.Serves(k.lane()) && d.MTLS() == (k == MTLS)
}

// Meter measures.
type Meter struct {
	Starter  *peers.Starter
	Tools    *workload.Tools
	Settle   time.Duration // from the last connection to the measurement: garbage is collected by then
	Progress io.Writer

	mu  sync.Mutex
	run *report.Run
	n   int
}

// Station is a fresh peer with so many idle connections.
type Station struct {
	Kind  Kind
	Def   *peers.Def
	Count int

	peer *peers.Peer
	hold *rig.Client
	err  error // nothing more can be measured
}

// Stations are one for each peer that fits the kind.
func Stations(k Kind, defs []*peers.Def, count int) []*Station {
	var out []*Station
	for _, d := range defs {
		if k.fits(d) {
			out = append(out, &Station{Kind: k, Def: d, Count: count})
		}
	}
	return out
}

// Idle measures stations side by side, and appends what it finds to run. Meanwhile, if not nil, is called while they settle.
func (m *Meter) Idle(ctx context.Context, run *report.Run, stations []*Station, meanwhile func(context.Context) error) error {
	m.run = run
	defer each(stations, (*Station).stop)
	for _, s := range stations {
		if s.err = m.start(ctx, s); ctx.Err() != nil {
			return ctx.Err()
		}
	}
	each(stations, func(s *Station) { m.grow(ctx, s) })
	if err := m.settle(ctx, meanwhile); err != nil {
		return err
	}
	each(stations, func(s *Station) { m.measure(ctx, s) })
	return ctx.Err()
}

// each does something with all stations at the same time.
func each(stations []*Station, do func(*Station)) {
	var wg sync.WaitGroup
	for _, s := range stations {
		wg.Go(func() { do(s) })
	}
	wg.Wait()
}

func (m *Meter) settle(ctx context.Context, meanwhile func(context.Context) error) error {
	fmt.Fprintf(m.Progress, "memory: settling for %v\n", m.Settle)
	done := time.Now().Add(m.Settle)
	if meanwhile != nil {
		if err := meanwhile(ctx); err != nil {
			return err
		}
	}
	return rig.Pause(ctx, time.Until(done))
}

func (m *Meter) start(ctx context.Context, s *Station) error {
	if _, err := m.Starter.Find(s.Def); err != nil {
		return err
	}
	m.n++
	name := fmt.Sprintf("memory-%d-%s", m.n, s.Def.Name)
	var err error
	if s.peer, err = m.Starter.Start(ctx, s.Def, name, []peers.Lane{s.Kind.lane()}); err != nil {
		return err
	}
	argv := []string{m.Tools.Hold, "--target", s.address()}
	switch s.Kind {
	case HTTP1:
		argv = append(argv, "--http1")
	case MTLS:
		c := m.Starter.Certs
		argv = append(argv, "--tls-out", strings.Join([]string{c.ClientCert, c.ClientKey, c.CA, c.ServerName}, ","))
	}
	if s.Count == 0 {
		return nil
	}
	s.hold, err = m.Starter.Rig.Client(name+"-hold", argv)
	return err
}

// address is where the connections go.
func (s *Station) address() string {
	if s.Kind == MTLS {
		return s.peer.Inner[s.Kind.lane()]
	}
	return s.peer.Addr[s.Kind.lane()]
}

// processes are those that have the connections.
func (s *Station) processes() []*rig.Process {
	if s.Kind == MTLS {
		return s.peer.Server
	}
	return s.peer.Outer
}

func (s *Station) stop() {
	if s.hold != nil {
		s.hold.Close()
	}
	if s.peer != nil {
		s.peer.Stop()
	}
}

func (m *Meter) grow(ctx context.Context, s *Station) {
	n := s.Count
	if s.err != nil || n == 0 {
		return
	}
	if limit, err := rig.Files(); err == nil && n+100 > limit {
		s.err = fmt.Errorf("%d connections need more than the %d files that a process may open here", n, limit)
		return
	}
	_, s.err = s.hold.Ask(ctx, strconv.Itoa(n))
}

func (m *Meter) measure(ctx context.Context, s *Station) {
	n := s.Count
	out := report.Memory{Peer: s.Def.Name, State: string(s.Kind), Connections: n}
	if s.err == nil && n > 0 {
		s.err = s.stillOpen(ctx, n)
	}
	if s.err == nil {
		var mem rig.Memory
		mem, s.err = rig.Resident(s.processes()...)
		out.RSS, out.Anon = mem.RSS, mem.Anon
	}
	if s.err != nil {
		out.Error = s.err.Error()
	}
	m.add(out)
}

// stillOpen: connections that the peer has closed take no memory.
func (s *Station) stillOpen(ctx context.Context, n int) error {
	open, err := s.hold.Ask(ctx, strconv.Itoa(n))
	if err != nil {
		return err
	}
	if open != strconv.Itoa(n) {
		return fmt.Errorf("the peer has left %s of %d connections open", open, n)
	}
	return nil
}

func (m *Meter) add(x report.Memory) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.run.Memory = append(m.run.Memory, x)
	what := fmt.Sprintf("%.1f MB, %.1f anonymous", float64(x.RSS)/1024, float64(x.Anon)/1024)
	if x.Error != "" {
		what = x.Error
	}
	fmt.Fprintf(m.Progress, "memory: %-20s %-6s %5d connections, %d/s: %s\n", x.Peer, x.State, x.Connections, x.Rate, what)
}

var errNoLoad = errors.New("no workload of that name")
