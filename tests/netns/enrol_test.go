package netns_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"conduit.io/conduit/cli/lab"
	"conduit.io/conduit/tests/testnet"
)

// livePort is where every pod of running answers.
const livePort = 8300

// running are pods that talk while the mesh comes and goes.
type running struct {
	ground
	shop                    string // the namespace
	one, two                testnet.Node
	client, near, far       testnet.Pod // of it
	opted                   testnet.Pod // too, but labelled disabled
	outsider                testnet.Pod
	stop                    context.CancelFunc
	ctx                     context.Context
	talks                   sync.WaitGroup
	before, during, between []*talk
}

func newRunning(t *testing.T) *running {
	r := &running{ground: newGround(t)}
	r.shop = r.namespace(t, "shop", nil, nil)
	r.one, r.two = r.node(1), r.node(2)
	made := r.pods(t, resident{1, r.shop, "client", lab.PodOptions{}, nil}, resident{1, r.shop, "near", lab.PodOptions{}, nil}, resident{2, r.shop, "far", lab.PodOptions{}, nil},
		resident{1, r.shop, "opted", lab.PodOptions{Labels: map[string]string{"conduit.io/mesh": "disabled"}}, nil},
		resident{1, r.namespace(t, "plain", nil, nil), "outsider", lab.PodOptions{}, nil})
	r.client, r.near, r.far, r.opted, r.outsider = made[0], made[1], made[2], made[3], made[4]
	for _, p := range made {
		witness(t, p, livePort, false, "tcp")
	}
	r.ctx, r.stop = context.WithCancel(t.Context())
	t.Cleanup(func() { r.stop(); r.talks.Wait() })
	return r
}

// pairs are who talks to whom, in both directions, on one node and between two.
func (r *running) pairs() [][2]testnet.Pod {
	return [][2]testnet.Pod{
		{r.client, r.far}, {r.far, r.client}, {r.client, r.near}, {r.near, r.client},
		{r.client, r.outsider}, {r.outsider, r.client}, {r.outsider, r.far}, {r.opted, r.far}, {r.far, r.opted},
	}
}

// enrol labels the namespace, or takes the label away, and waits until the kernel of either node has it so.
func (r *running) enrol(t *testing.T, yes bool) {
	t.Helper()
	var labels map[string]string
	want := []string(nil)
	if yes {
		labels = enrolledLabels
		want = []string{r.shop + "/client", r.shop + "/far", r.shop + "/near"}
	}
	r.namespace(t, r.shop, labels, nil)
	testnet.Eventually(t, 15*time.Second, func(context.Context) error {
		got := slices.Sorted(slices.Values(slices.Concat(enrolled(t, r.one), enrolled(t, r.two))))
		got = slices.DeleteFunc(got, func(pod string) bool { return !strings.HasPrefix(pod, r.shop+"/") })
		if !slices.Equal(got, want) {
			return fmt.Errorf("enrolled: %v, want %v", got, want)
		}
		return nil
	})
	if yes {
		r.wantKnown(t)
	}
}

// wantKnown waits until every member is known to the others: in a cluster the controller tells the agents of other nodes, and until then
// a proxy takes it for a pod outside the mesh, and goes there with a port of its own.
func (r *running) wantKnown(t *testing.T) {
	t.Helper()
	for _, pair := range r.pairs() {
		if !r.member(pair[0]) || !r.member(pair[1]) {
			continue
		}
		for _, ip := range pair[1].Addrs() {
			testnet.Eventually(t, 15*time.Second, func(context.Context) error {
				s, local, err := dialPod(pair[0], ip)
				if err != nil {
					return err
				}
				defer s.Close()
				saw, err := s.ask("known", false)
				if err == nil && saw.accepted != local {
					err = fmt.Errorf("%s does not know yet that %s is in the mesh: the server saw %s, want %s", pair[0], pair[1], saw.accepted, local)
				}
				return err
			})
		}
	}
}

// talk is a connection that exchanges tokens all the time, until it is ended.
type talk struct {
	name    string
	sock    *rawSocket
	want    sighting
	anyPort bool         // the server sees another port of the client's address
	count   atomic.Int64 // exchanges so far
	fault   atomic.Pointer[error]
	end     context.CancelFunc
	done    chan struct{}
}

const talkTimeout = 5 * time.Second // for one exchange

// member reports whether p is in the mesh when the namespace is labelled.
func (r *running) member(p testnet.Pod) bool { return p != r.opted && p != r.outsider }

// ownPort reports whether a server sees the client's own port: to servers outside the mesh the proxy goes with the pod's
// address, and a port of its own.
func (r *running) ownPort(from, to testnet.Pod, labelled bool) bool {
	return !labelled || !r.member(from) || r.member(to)
}

// begin opens a connection for each pair and family, and keeps them busy.
func (r *running) begin(t *testing.T, what string, labelled bool) (talks []*talk) {
	t.Helper()
	for _, pair := range r.pairs() {
		for _, ip := range pair[1].Addrs() {
			name := fmt.Sprintf("%s: %s to %s at %s", what, pair[0].Name(), pair[1].Name(), ip)
			sock, local, err := dialPod(pair[0], ip)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			k := &talk{name: name, sock: sock, done: make(chan struct{}), anyPort: !r.ownPort(pair[0], pair[1], labelled)}
			k.want = sighting{name: pair[1].Name(), accepted: local, peer: local, local: netip.AddrPortFrom(ip, livePort)}
			var ctx context.Context
			ctx, k.end = context.WithCancel(r.ctx)
			r.talks.Go(func() { k.run(ctx) })
			talks = append(talks, k)
		}
	}
	return talks
}

// dialPod connects from p to another pod's witness.
func dialPod(p testnet.Pod, to netip.Addr) (*rawSocket, netip.AddrPort, error) {
	s, err := newRawSocket(p, familyOf(to), 0)
	if err != nil {
		return nil, netip.AddrPort{}, err
	}
	at := netip.AddrPortFrom(to, livePort)
	err = s.connectLater(at, talkTimeout)
	if err == nil {
		err = s.await()
	}
	local, peer, nerr := s.names()
	if err = errors.Join(err, nerr); err == nil && peer != at {
		err = fmt.Errorf("dialled %s, but the peer is %s", at, peer)
	}
	if err != nil {
		s.Close()
	}
	return s, local, err
}

func (k *talk) run(ctx context.Context) {
	defer close(k.done)
	defer k.sock.Close()
	tick := time.NewTicker(3 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		k.sock.SetDeadline(time.Now().Add(talkTimeout))
		k.want.token = fmt.Sprintf("exchange-%d", k.count.Load())
		saw, err := k.sock.ask(k.want.token, false)
		if err == nil && !alike(saw, k.want, k.anyPort) {
			err = fmt.Errorf("server saw %v, want %v", saw, k.want)
		}
		if err != nil {
			k.fault.Store(&err)
			return
		}
		k.count.Add(1)
	}
}

// alike compares what a server saw with what it should have.
func alike(saw, want sighting, anyPort bool) bool {
	if anyPort {
		want.accepted = netip.AddrPortFrom(want.accepted.Addr(), saw.accepted.Port())
		want.peer = want.accepted
	}
	return saw == want
}

// wantUnharmed waits until every connection has made a few more exchanges.
func wantUnharmed(t *testing.T, when string, talks ...*talk) {
	t.Helper()
	from := make([]int64, len(talks))
	for i, k := range talks {
		from[i] = k.count.Load()
	}
	testnet.Eventually(t, 2*talkTimeout, func(context.Context) error {
		for i, k := range talks {
			if err := k.fault.Load(); err != nil {
				t.Fatalf("%s: %s: broken after %d exchanges: %v", when, k.name, k.count.Load(), *err)
			}
			if k.count.Load() < from[i]+3 {
				return fmt.Errorf("%s: %s: no progress", when, k.name)
			}
		}
		return nil
	})
}

func finish(talks []*talk) {
	for _, k := range talks {
		k.end()
	}
	for _, k := range talks {
		<-k.done
	}
}

// wantSteered makes a connection for each pair, and expects it steered at either end, or not.
func (r *running) wantSteered(t *testing.T, when string, yes bool) {
	t.Helper()
	member := func(p testnet.Pod) bool { return yes && r.member(p) }
	for _, pair := range r.pairs() {
		from, to := pair[0], pair[1]
		wantOut, wantIn := 0.0, 0.0
		if member(from) {
			wantOut = 1
		}
		if member(to) && ((from == r.far) != (to == r.far) || !member(from)) { // one hop, if it is known where it goes
			wantIn = 1
		}
		for _, ip := range to.Addrs() {
			out, in := steered(t, from, from), inbound(t, to)
			s, local, err := dialPod(from, ip)
			if err != nil {
				t.Errorf("%s: %s to %s: %v", when, from, ip, err)
				continue
			}
			saw, err := s.ask("new", false)
			s.Close()
			if want := (sighting{to.Name(), local, local, netip.AddrPortFrom(ip, livePort), "new"}); err != nil || !alike(saw, want, !r.ownPort(from, to, yes)) {
				t.Errorf("%s: %s to %s: server saw %v (%v), want %v", when, from, ip, saw, err, want)
			}
			if out, in = steered(t, from, from)-out, inbound(t, to)-in; out != wantOut || in != wantIn {
				t.Errorf("%s: %s to %s at %s: steered %v at the client and %v at the server, want %v and %v", when, from, to, ip, out, in, wantOut, wantIn)
			}
		}
	}
}

// inbound counts the connections that the proxy has accepted for p from elsewhere.
func inbound(t *testing.T, p testnet.Pod) float64 {
	t.Helper()
	n, err := testnet.Metric(t.Context(), p, "tcp_open_total", `direction="inbound"`, `dst="`+p.String()+`"`)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestEnrolWhileTalking labels a running namespace, takes the label away, and does both again, while connections of its
// pods, made before, meanwhile and in between, go on exchanging data.
func TestEnrolWhileTalking(t *testing.T) {
	r := newRunning(t)
	r.before = r.begin(t, "before", false)
	r.wantSteered(t, "before", false)
	idle, err := newRawSocket(r.client, unix.AF_INET, 0) // made before, and connected when enrolled
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()

	r.enrol(t, true)
	wantUnharmed(t, "enrolled", r.before...)
	r.wantSteered(t, "enrolled", true)
	count := steered(t, r.one, r.client)
	if err := idle.connectBlocking(netip.AddrPortFrom(r.far.IP(lab.IPv4), livePort), talkTimeout); err != nil {
		t.Errorf("socket that is older than the enrolment: %v", err)
	}
	if n := steered(t, r.one, r.client) - count; n != 1 {
		t.Errorf("socket that is older than the enrolment: %v connections steered, want 1", n)
	}
	idle.Close()
	r.during = r.begin(t, "during", true)

	r.enrol(t, false)
	wantUnharmed(t, "un-enrolled", slices.Concat(r.before, r.during)...)
	r.wantSteered(t, "un-enrolled", false)
	r.between = r.begin(t, "between", false)

	r.enrol(t, true)
	wantUnharmed(t, "enrolled while draining", slices.Concat(r.before, r.during, r.between)...)
	r.wantSteered(t, "enrolled while draining", true)

	r.enrol(t, false)
	wantUnharmed(t, "un-enrolled again", slices.Concat(r.before, r.during, r.between)...)
	finish(r.during)
	for _, p := range []testnet.Pod{r.client, r.near, r.far} {
		wantUntouchedSoon(t, p)
	}
	for _, node := range []testnet.Node{r.one, r.two} {
		r.wantNoLookup(t, node)
	}
	wantUnharmed(t, "the mesh gone", slices.Concat(r.before, r.between)...)

	r.enrol(t, true)
	wantUnharmed(t, "enrolled a third time", slices.Concat(r.before, r.between)...)
	r.flutter(t)
	r.wantSteered(t, "enrolled a third time", true)
	for _, p := range []testnet.Pod{r.client, r.near, r.far} {
		wantNoFault(t, p)
	}
	wantUntouched(t, r.opted)
}

// flutter changes the label faster than the agents can follow; it is there at the end.
func (r *running) flutter(t *testing.T) {
	t.Helper()
	talks := r.begin(t, "fluttering", true)
	for i := range 20 {
		labels := enrolledLabels
		if i%2 == 0 {
			labels = nil
		}
		r.namespace(t, r.shop, labels, nil)
		if i%5 == 0 {
			wantUnharmed(t, "fluttering", slices.Concat(r.before, r.between, talks)...)
		}
	}
	r.enrol(t, true)
	wantUnharmed(t, "fluttered", slices.Concat(r.before, r.between, talks)...)
	finish(talks)
}

// wantNoLookup expects that no pod's program is left on the node.
func (r *running) wantNoLookup(t *testing.T, node testnet.Node) {
	t.Helper()
	testnet.Eventually(t, 30*time.Second, func(context.Context) error { // a cluster may still have pods of the test before
		pins, err := os.ReadDir(filepath.Join(node.PinDir(), "lookups"))
		if err != nil || len(pins) != 0 {
			return fmt.Errorf("lookup programs pinned on %s: %v, %v", node.Name(), pins, err)
		}
		return nil
	})
	for _, p := range podStates(t, node) {
		if p.Namespace == r.shop && (p.Enrolled || p.Leaving || p.Listeners["inV4"] || p.Listeners["outV6"]) {
			t.Errorf("state of a pod that has left: %+v", p)
		}
	}
}

// podState is a part of what the agent says about a pod.
type podState struct {
	Namespace, Name, Mode string
	Enrolled, Leaving     bool
	Listeners             map[string]bool
}

func podStates(t *testing.T, node testnet.Node) (all []podState) {
	t.Helper()
	status, body, err := node.Get(t.Context(), "/debug/pods")
	if err == nil {
		err = json.Unmarshal(body, &all)
	}
	if err != nil || status != 200 {
		t.Fatalf("/debug/pods of %s: %d, %v: %s", node.Name(), status, err, body)
	}
	return all
}

// TestModeChangesApply makes running pods STRICT and PERMISSIVE again: what is outside the mesh is refused meanwhile, and
// what is inside does not notice.
func TestModeChangesApply(t *testing.T) {
	r := newRunning(t)
	r.enrol(t, true)
	inside, _, err := dialPod(r.client, r.far.IP(lab.IPv4))
	if err != nil {
		t.Fatal(err)
	}
	defer inside.Close()
	for _, mode := range []string{"PERMISSIVE", "STRICT", "PERMISSIVE", "STRICT"} {
		r.namespace(t, r.shop, enrolledLabels, map[string]string{"conduit.io/mtls-mode": mode})
		testnet.Eventually(t, 15*time.Second, func(context.Context) error {
			for _, p := range slices.Concat(podStates(t, r.one), podStates(t, r.two)) {
				if p.Namespace == r.shop && p.Enrolled && p.Mode != mode {
					return fmt.Errorf("%s is %s, want %s", p.Name, p.Mode, mode)
				}
			}
			return nil
		})
		for _, to := range []testnet.Pod{r.near, r.far} {
			for _, ip := range to.Addrs() {
				for _, from := range []testnet.Pod{r.client, r.outsider, r.opted} {
					r.wantMode(t, mode, from, ip)
				}
			}
		}
		inside.SetDeadline(time.Now().Add(talkTimeout))
		if _, err := inside.ask("inside", false); err != nil {
			t.Fatalf("%s: connection between members: %v", mode, err)
		}
	}
}

// wantMode connects: members always may, others unless the mode is STRICT.
func (r *running) wantMode(t *testing.T, mode string, from testnet.Pod, to netip.Addr) {
	t.Helper()
	s, _, err := dialPod(from, to)
	if err == nil {
		_, err = s.ask("hello", false)
		s.Close()
	}
	if mode == "STRICT" && from != r.client {
		reset := errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ENOTCONN) // it depends on who is faster
		if !reset && !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("%s: %s to %s: %v, want a refusal", mode, from, to, err)
		}
		return
	}
	if err != nil {
		t.Errorf("%s: %s to %s: %v", mode, from, to, err)
	}
}

// wantUntouchedSoon waits until nothing of the mesh is in a pod any more.
func wantUntouchedSoon(t *testing.T, p testnet.Pod) {
	t.Helper()
	testnet.Eventually(t, 20*time.Second, func(context.Context) error {
		if got := tracesIn(t, p); got != (traces{}) {
			return fmt.Errorf("in %s, whose last steered connection has ended: %+v", p, got)
		}
		return nil
	})
}

// open connects from a pod; the connection is closed when the test ends.
func open(t *testing.T, from testnet.Pod, to netip.AddrPort) net.Conn {
	t.Helper()
	c, err := testnet.Dial(t.Context(), from, to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// steered counts the connections of p that the kernel handed to the proxy.
func steered(t *testing.T, node testnet.Asked, p testnet.Pod) float64 {
	t.Helper()
	v, err := testnet.Metric(t.Context(), node, "conduit_sockets_steered_total", `pod="`+p.String()+`"`)
	if err != nil {
		t.Fatal(err)
	}
	return v
}
