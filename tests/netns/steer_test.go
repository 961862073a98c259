package netns_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"conduit.io/conduit/cli/lab"
	"conduit.io/conduit/tests/testnet"
)

// The ports of steering's servers. Those of a Service are one hundred lower.
const (
	rawPort    = 8101 // declared tcp, the client speaks first; a socket for each family
	detectPort = 8102 // undeclared, the client speaks first
	firstPort  = 8103 // undeclared, the server speaks first
)

// course is a place to dial, and who must answer there.
type course struct {
	dial  netip.AddrPort
	name  string         // the pod that must answer
	local netip.AddrPort // where it must have accepted
	first bool           // it speaks first
}

// steering is a client, a server on its node and one on another, with a Service before each.
type steering struct {
	ground
	shop              string // the namespace of all
	client, near, far testnet.Pod
	courses           map[int][]course // by address family
}

func newSteering(t *testing.T) *steering {
	s := &steering{ground: newGround(t), courses: map[int][]course{}}
	s.shop = s.namespace(t, "shop", enrolledLabels, nil)
	server := func(node int, name string) resident {
		return resident{node, s.shop, name, lab.PodOptions{Labels: map[string]string{"app": name}}, nil}
	}
	made := s.pods(t, resident{1, s.shop, "client", lab.PodOptions{ServiceAccount: "client"}, nil}, server(1, "near"), server(2, "far"))
	s.client, s.near, s.far = made[0], made[1], made[2]
	for _, p := range []testnet.Pod{s.near, s.far} {
		witness(t, p, rawPort, false, "tcp4", "tcp6")
		witness(t, p, detectPort, false, "tcp")
		witness(t, p, firstPort, true, "tcp")
		ips := s.service(t, lab.Service{Namespace: s.shop, Name: p.Name(), Selector: map[string]string{"app": p.Name()}, Ports: []lab.ServicePort{
			{Name: "tcp-raw", Port: rawPort - 100, TargetPort: fmt.Sprint(rawPort)},
			{Name: "detect", Port: detectPort - 100, TargetPort: fmt.Sprint(detectPort)},
			{Name: "first", Port: firstPort - 100, TargetPort: fmt.Sprint(firstPort)},
		}})
		for _, ip := range ips {
			own, family := p.IP(lab.IPv6), unix.AF_INET6
			if ip.Is4() {
				own, family = p.IP(lab.IPv4), unix.AF_INET
			}
			for _, port := range []uint16{rawPort, detectPort, firstPort} {
				at := netip.AddrPortFrom(own, port)
				s.courses[family] = append(s.courses[family],
					course{dial: at, name: p.Name(), local: at, first: port == firstPort},
					course{dial: netip.AddrPortFrom(ip, port-100), name: p.Name(), local: at, first: port == firstPort})
			}
		}
	}
	return s
}

// awaitServices waits until every course leads where it should: the agents read manifests in their own time.
func (s *steering) awaitServices(t *testing.T) (connections int) {
	t.Helper()
	for _, courses := range s.courses {
		for _, c := range courses {
			testnet.Eventually(t, 15*time.Second, func(context.Context) error {
				connections++
				v := &visit{from: s.client, course: c, token: "awaited", limit: time.Second}
				defer v.end()
				return errors.Join(v.begin(netip.AddrPort{}), v.talk())
			})
		}
	}
	return connections
}

// visit is one connection along a course.
type visit struct {
	from   testnet.Pod
	course course
	token  string
	reset  bool
	limit  time.Duration // of the whole visit; 0: visitTimeout
	sock   *rawSocket
}

const visitTimeout = 20 * time.Second

// begin starts to connect; a valid source is bound to, and may be shared with other connections.
func (v *visit) begin(source netip.AddrPort) (err error) {
	if v.sock, err = newRawSocket(v.from, familyOf(v.course.dial.Addr()), 0); err != nil {
		return err
	}
	if source.IsValid() {
		if err := unix.SetsockoptInt(v.sock.fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return err
		}
		if err := unix.SetsockoptInt(v.sock.fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
			return err
		}
		if err := v.sock.bind(source); err != nil {
			return err
		}
	}
	return v.sock.connectLater(v.course.dial, cmp.Or(v.limit, visitTimeout))
}

// talk exchanges the token, and compares what both ends see.
func (v *visit) talk() error {
	if v.sock == nil || v.sock.File == nil {
		return nil // begin has said why
	}
	if err := v.sock.await(); err != nil {
		return err
	}
	saw, err := v.sock.ask(v.token, v.course.first)
	if err != nil {
		return err
	}
	local, peer, err := v.sock.names()
	if err != nil {
		return err
	}
	want := sighting{name: v.course.name, accepted: local, peer: local, local: v.course.local, token: v.token}
	if saw != want || peer != v.course.dial || !slices.Contains(v.from.Addrs(), local.Addr()) {
		return &misrouted{fmt.Sprintf("dialled %s from %s, peer is %s: server saw %v, want %v", v.course.dial, local, peer, saw, want)}
	}
	return nil
}

func (v *visit) end() error {
	if v.sock == nil {
		return nil
	}
	if v.reset {
		if err := v.sock.reset(); err != nil {
			return err
		}
	}
	return v.sock.Close()
}

// misrouted is a connection that was served, but not as it should.
type misrouted struct{ what string }

func (m *misrouted) Error() string { return m.what }

// TestSteering makes 24,000 short connections, 200 at a time, to pods on the same and on another node, by Service and by
// pod address. Every one must reach the server it was meant for, and both ends must see each other's real address.
func TestSteering(t *testing.T) {
	s := newSteering(t)
	made := s.awaitServices(t)
	before := s.carried(t)
	total, far := 0, 0
	for _, load := range []struct {
		name   string
		family int
		n      int
		shared bool
	}{
		{"v4", unix.AF_INET, 8000, false},
		{"v6", unix.AF_INET6, 4000, false},
		{"v4/shared source port", unix.AF_INET, 8000, true},
		{"v6/shared source port", unix.AF_INET6, 4000, true},
	} {
		if len(s.courses[unix.AF_INET6]) == 0 { // pods have no IPv6
			load.family = unix.AF_INET
		}
		t.Run(load.name, func(t *testing.T) { far += s.load(t, load.family, load.n, load.shared) })
		total += load.n
	}
	if got := steered(t, s.client, s.client); int(got) != made+total {
		t.Errorf("%v connections of the client were steered, want %d", got, made+total)
	}
	for _, p := range []testnet.Pod{s.client, s.near, s.far} {
		wantNoFault(t, p)
	}
	after := s.carried(t)
	for tls, want := range map[string]int{"mtls": far, "local": total - far, "none": 0} {
		if got := after[tls] - before[tls]; got != want {
			t.Errorf("%d connections were carried with tls=%s, want %d", got, tls, want)
		}
	}
}

// wantNoFault expects that the kernel saw no connection of p leave that should have been steered.
func wantNoFault(t *testing.T, p testnet.Pod) {
	t.Helper()
	for _, reason := range []string{"unseen", "unrouted"} {
		got, err := testnet.Metric(t.Context(), p, "conduit_sockets_bypassed_total", `pod="`+p.String()+`"`, `reason="`+reason+`"`)
		if err != nil || got != 0 {
			t.Errorf("%v connections of %s bypassed the proxy, %s (%v)", got, p, reason, err)
		}
	}
}

// carried counts the client's connections that the proxy took, by how it carried them.
func (s *steering) carried(t *testing.T) map[string]int {
	t.Helper()
	out := map[string]int{}
	for _, tls := range []string{"mtls", "local", "none"} {
		n, err := testnet.Metric(t.Context(), s.client, "tcp_open_total", `direction="outbound"`, `src="`+s.client.String()+`"`, `tls="`+tls+`"`)
		if err != nil {
			t.Fatal(err)
		}
		out[tls] = int(n)
	}
	return out
}

// crowd is how many connections are open at once.
const crowd = 200

// load makes n connections. With a shared source port the connections of a batch, one for each course, are bound to the
// same address and port, and are open at the same time. It returns how many went to the other node.
func (s *steering) load(t *testing.T, family, n int, shared bool) (far int) {
	courses := s.courses[family]
	batch, workers := 1, crowd
	if shared {
		batch, workers = len(courses), (crowd+len(courses)-1)/len(courses)
	}
	var (
		next atomic.Int64
		wg   sync.WaitGroup
		all  = tally{t: t}
	)
	start := time.Now()
	for range workers {
		wg.Go(func() {
			for {
				first := int(next.Add(int64(batch))) - batch
				if first >= n {
					return
				}
				visits := make([]visit, min(batch, n-first))
				for i := range visits {
					number := first + i
					visits[i] = visit{from: s.client, course: courses[number%len(courses)],
						token: fmt.Sprintf("token-%d-%d", family, number), reset: (number+number/len(courses))%2 == 1}
				}
				var source netip.AddrPort
				if shared {
					source = netip.AddrPortFrom(s.source(family), uint16(20000+first/batch))
				}
				all.add(together(visits, source)...)
			}
		})
	}
	wg.Wait()
	for i := range n {
		if courses[i%len(courses)].name == s.far.Name() {
			far++
		}
	}
	t.Logf("%d connections in %v: %d errors, %d misrouted", n, time.Since(start).Round(time.Millisecond), all.errors, all.misrouted)
	if all.done != n || all.errors+all.misrouted != 0 {
		t.Errorf("%d of %d connections made, %d errors, %d misrouted; want all, and none", all.done, n, all.errors, all.misrouted)
	}
	return far
}

func (s *steering) source(family int) netip.Addr {
	if family == unix.AF_INET {
		return s.client.IP(lab.IPv4)
	}
	return s.client.IP(lab.IPv6)
}

// together opens all visits before the first one talks, and ends none before the last one has talked.
func together(visits []visit, source netip.AddrPort) []error {
	errs := make([]error, len(visits))
	for i := range visits {
		errs[i] = visits[i].begin(source)
	}
	for i := range visits {
		errs[i] = errors.Join(errs[i], visits[i].talk())
	}
	for i := range visits {
		errs[i] = errors.Join(errs[i], visits[i].end())
	}
	return errs
}

// tally counts results, and logs the first few that are bad.
type tally struct {
	t                       testing.TB
	mu                      sync.Mutex
	done, errors, misrouted int
}

func (a *tally) add(errs ...error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, err := range errs {
		a.done++
		if err == nil {
			continue
		}
		if _, ok := errors.AsType[*misrouted](err); ok {
			a.misrouted++
		} else {
			a.errors++
		}
		if a.errors+a.misrouted <= 5 {
			a.t.Log(err)
		}
	}
}
