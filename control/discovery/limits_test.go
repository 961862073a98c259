package discovery

import (
	"fmt"
	"testing"

	discoveryv1 "conduit.io/conduit/api/discoveryv1"

	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"
)

// TestOnlyWhatWasAsked: changes elsewhere do not even wake a stream.
func TestOnlyWhatWasAsked(t *testing.T) {
	x := shop(t)
	st := x.Open("n1", nil)
	st.Subscribe([]*discoveryv1.Address{ip("10.96.0.1"), ip("198.51.100.7")})
	m := newMirror()
	m.apply(t, st.Next()...)
	<-st.Wake()
	put(t, x, makePod("shop", "elsewhere", "u-9", "n9", "10.1.9.9"), makeService("shop", "elsewhere", "10.96.9.9", corev1.ServicePort{Port: 80}),
		makeSlice("shop", "elsewhere-1", "elsewhere", "", 80, backend{"10.1.9.9", "elsewhere", "u-9", false}))
	select {
	case <-st.Wake():
		t.Errorf("a change elsewhere woke the stream to send %v", st.Next())
	default:
	}
	if n := st.Next(); n != nil {
		t.Errorf("a change elsewhere is sent: %v", n)
	}
	sent := m.resources
	put(t, x, makeSlice("shop", "web-a", "web", "http", 8080, backend{"10.1.0.1", "web-0", "u-0", true}, backend{"10.1.0.2", "web-1", "u-1", true}))
	<-st.Wake()
	m.apply(t, st.Next()...)
	if n := m.resources - sent; n != 2 { // the endpoint, and its workload
		t.Errorf("one endpoint that changed took %d resources", n)
	}
	put(t, x, makePod("n", "late", "u-l", "n1", "198.51.100.7"))
	<-st.Wake()
	m.apply(t, st.Next()...)
	if a := m.answers["198.51.100.7:0"]; a.Workload != "u-l" {
		t.Errorf("an address that was nobody's: %v", a)
	}
}

// TestSlowClient: what waits for a client that does not read stays bounded while a service's pods come and go, and is the
// newest when it is read.
func TestSlowClient(t *testing.T) {
	x := New()
	put(t, x, makeService("n", "s", "10.96.0.1", corev1.ServicePort{Port: 80}))
	st := x.Open("n1", nil)
	st.Subscribe([]*discoveryv1.Address{ip("10.96.0.1")})
	m := newMirror()
	m.apply(t, st.Next()...)
	most := 0
	for i := range 2000 {
		name, uid := fmt.Sprint("p", i), fmt.Sprint("u", i)
		put(t, x, makePod("n", name, uid, "n1", "10.1.0.1"), makeSlice("n", "s-1", "s", "", 80, backend{"10.1.0.1", name, uid, false}))
		x.Remove(Pods, Name{"n", fmt.Sprint("p", i-1)})
		for _, p := range st.services {
			most = max(most, len(p.ids))
		}
	}
	if most > 100 {
		t.Errorf("%d endpoints were remembered of a service that has one", most)
	}
	responses := st.Next()
	m.apply(t, responses...)
	if len(m.endpoints["n/s"]) != 1 || m.endpoints["n/s"]["10.1.0.1/u1999"] == nil {
		t.Errorf("it holds %v", m.endpoints["n/s"])
	}
	if len(responses) != 1 || proto.Size(responses[0]) > 1<<10 {
		t.Errorf("2000 changes of one endpoint took %d responses", len(responses))
	}
}

func TestTooManySubscriptions(t *testing.T) {
	x := New()
	st := x.Open("n1", nil)
	var all []*discoveryv1.Address
	for i := range maxSubscriptions + 10 {
		all = append(all, ip(benchAddr("10.0.0.0", i)))
	}
	bad := []*discoveryv1.Address{{}, {Ip: []byte{1, 2, 3}}, {Ip: []byte{1, 2, 3, 4}, Port: 65536}, nil}
	if !st.Subscribe(append(all, bad...)) {
		t.Fatal("a little too much ended the stream")
	}
	kinds := map[discoveryv1.Answer_Kind]int{}
	for _, r := range st.Next() {
		for _, a := range r.Answers {
			kinds[a.Kind]++
		}
	}
	if kinds[discoveryv1.Answer_KIND_NOBODY] != maxSubscriptions || kinds[discoveryv1.Answer_KIND_REFUSED] != 10+len(bad) {
		t.Errorf("answers %v", kinds)
	}
	st.Unsubscribe(all[:1])
	st.Subscribe(all[maxSubscriptions:][:1])
	if r := st.Next(); len(r) != 1 || r[0].Answers[0].Kind != discoveryv1.Answer_KIND_NOBODY {
		t.Errorf("after one was taken back: %v", r)
	}
	for range maxRefused / len(bad) {
		if !st.Subscribe(bad) {
			t.Fatal("it ended early")
		}
	}
	if st.Subscribe(bad) {
		t.Error("refusals are remembered without a bound")
	}
	st.Close()
	if len(x.addrs) != 0 {
		t.Errorf("%d addresses are kept after the stream", len(x.addrs))
	}
}

// TestLargeService: what does not fit one response comes in several of one version.
func TestLargeService(t *testing.T) {
	x := New()
	put(t, x, makeService("n", "s", "10.96.0.1", corev1.ServicePort{Name: "http", Port: 80}))
	const n = 5000
	for i := range n / 100 {
		var backends []backend
		for j := range 100 {
			b := backend{ip: benchAddr("10.128.0.0", i*100+j), pod: fmt.Sprint("p-", i*100+j), uid: fmt.Sprint("u-", i*100+j)}
			put(t, x, makePod("n", b.pod, b.uid, "n1", b.ip))
			backends = append(backends, b)
		}
		put(t, x, makeSlice("n", fmt.Sprint("s-", i), "s", "http", 8080, backends...))
	}
	st := x.Open("n1", nil)
	st.Subscribe([]*discoveryv1.Address{ip("10.96.0.1")})
	responses, m := st.Next(), newMirror()
	for _, r := range responses {
		if size := proto.Size(r); size > maxResponse+4<<10 {
			t.Errorf("a response of %d bytes", size)
		}
	}
	m.apply(t, responses...)
	if len(responses) < 2 || len(m.endpoints["n/s"]) != n || len(m.workloads) != n {
		t.Errorf("%d responses, %d endpoints, %d workloads", len(responses), len(m.endpoints["n/s"]), len(m.workloads))
	}
}

// FuzzSubscribe gives a stream whatever a client may send: it must answer all of it, or end, and leave nothing behind.
func FuzzSubscribe(f *testing.F) {
	seed := func(m *discoveryv1.WatchRequest) {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	seed(&discoveryv1.WatchRequest{Subscribe: []*discoveryv1.Address{ip("10.96.0.1"), ip("::ffff:10.1.0.1"), ipPort("192.0.2.1", 30080)}})
	seed(&discoveryv1.WatchRequest{Subscribe: []*discoveryv1.Address{{Ip: []byte{1}}, {Port: 1 << 30}}, Unsubscribe: []*discoveryv1.Address{ip("10.96.0.1")},
		Resume: &discoveryv1.Position{Epoch: "x", Version: 1 << 60}, Applied: 7})
	x := shop(f)
	addresses := len(x.addrs)
	f.Fuzz(func(t *testing.T, data []byte) {
		m := &discoveryv1.WatchRequest{}
		if proto.Unmarshal(data, m) != nil || check(m) != nil {
			return
		}
		st := x.Open("n1", m.Resume)
		whole := st.Subscribe(m.Subscribe)
		st.Unsubscribe(m.Unsubscribe)
		answered := map[string]bool{}
		for _, r := range st.Next() {
			for _, a := range r.Answers {
				answered[addressText(a.Address)] = true
			}
		}
		if whole && m.Resume == nil && len(m.Unsubscribe) == 0 {
			for _, a := range m.Subscribe {
				if !answered[addressText(a)] {
					t.Errorf("%v was not answered", a)
				}
			}
		}
		st.Close()
		if len(x.addrs) != addresses || len(x.portSubs) != 0 || x.streams != 0 {
			t.Errorf("%d addresses, %d ports, %d streams are left", len(x.addrs)-addresses, len(x.portSubs), x.streams)
		}
	})
}

func addressText(m *discoveryv1.Address) string {
	a, port, ok := parse(m)
	return fmt.Sprint(a, port, ok)
}
