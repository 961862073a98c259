package discovery

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	discoveryv1 "conduit.io/conduit/api/discoveryv1"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
)

// world makes random changes to a cluster, and remembers what there is.
type world struct {
	rng     *rand.Rand
	objects map[string]any
}

var worldNames = []string{"a", "b", "c"}

func (w *world) pick(list []string) string { return list[w.rng.IntN(len(list))] }

// podIP is few, so that pods share and inherit addresses.
func (w *world) podIP() string { return fmt.Sprintf("10.1.0.%d", w.rng.IntN(6)) }

// step changes one object, in the index and in w.
func (w *world) step(t testing.TB, x *Index) {
	ns, name := w.pick(worldNames[:2]), w.pick(worldNames)
	var o any
	switch w.rng.IntN(9) {
	case 0:
		o = makeNamespace(ns, w.pick([]string{"enabled", "disabled"}))
	case 1:
		n := makeNode("n"+name, w.pick([]string{"east", "west"}), "192.0.2."+w.pick([]string{"1", "2"}))
		if w.rng.IntN(6) == 0 {
			n.Status.Addresses[0].Type = corev1.NodeExternalIP
		}
		o = n
	case 2:
		o = makePolicy(w.pick([]string{"STRICT", "PERMISSIVE"}))
	case 3, 4:
		p := makePod(ns, name, fmt.Sprintf("u-%s-%s-%d", ns, name, w.rng.IntN(3)), "n"+w.pick(worldNames), w.podIP())
		p.Spec.HostNetwork = w.rng.IntN(6) == 0
		if w.rng.IntN(3) == 0 {
			p.Spec.Containers = []corev1.Container{{Ports: []corev1.ContainerPort{{HostPort: 30001 + int32(w.rng.IntN(2)), ContainerPort: 8080}}}}
		}
		if w.rng.IntN(6) == 0 {
			p.Status.Phase = corev1.PodSucceeded
		}
		o = p
	case 5:
		s := makeService(ns, name, w.pick([]string{"None", "10.96.0.1", "10.96.0.2"}), corev1.ServicePort{
			Name: w.pick([]string{"http", "tcp"}), Port: 80, NodePort: 30000 + int32(w.rng.IntN(2))})
		s.Spec.ExternalIPs = []string{w.pick([]string{"198.51.100.1", "198.51.100.1", "192.0.2.1"})}
		o = s
	default:
		var backends []backend
		for range w.rng.IntN(4) {
			b := backend{ip: w.podIP(), unready: w.rng.IntN(3) == 0}
			if p, ok := w.objects["pod "+ns+w.pick(worldNames)].(*corev1.Pod); ok && w.rng.IntN(4) > 0 {
				b.pod, b.uid = p.Name, string(p.UID)
			}
			if !slices.ContainsFunc(backends, func(o backend) bool { return o.ip == b.ip && o.uid == b.uid }) {
				backends = append(backends, b)
			}
		}
		o = makeSlice(ns, name, w.pick(worldNames), w.pick([]string{"http", "tcp"}), int32(8080+w.rng.IntN(2)), backends...)
	}
	key := map[string]string{"*v1.Namespace": "ns", "*v1.Node": "node", "*v1alpha1.MeshPolicy": "policy", "*v1.Pod": "pod " + ns + name,
		"*v1.Service": "svc " + ns + name, "*v1.EndpointSlice": "slice " + ns + name}[fmt.Sprintf("%T", o)]
	switch key {
	case "ns":
		key += " " + ns
	case "node":
		key += " " + name
	}
	if old := w.objects[key]; old != nil && w.rng.IntN(3) == 0 {
		delete(w.objects, key)
		r, _ := Strip(old)
		x.Remove(r.Kind(), r.Named())
		return
	}
	w.objects[key] = o
	put(t, x, o)
}

var worldAddresses = []*discoveryv1.Address{ip("10.1.0.0"), ip("10.1.0.1"), ip("10.1.0.2"), ip("10.1.0.3"), ip("10.1.0.4"), ip("10.1.0.5"),
	ip("10.96.0.1"), ip("10.96.0.2"), ip("192.0.2.1"), ipPort("192.0.2.1", 30000), ipPort("192.0.2.2", 30001), ip("198.51.100.1"),
	ipPort("10.96.0.1", 80), ipPort("192.0.2.1", 30002), ipPort("192.0.2.2", 30002), ipPort("192.0.2.1", 80), ipPort("198.51.100.1", 80)}

// TestStreamsAgree: whatever happens in whatever order, a client that applies what it is sent, at times late, and resumes
// now and then, holds what an index would tell that was built from the same objects at once.
func TestStreamsAgree(t *testing.T) {
	for seed := range uint64(20) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { agree(t, seed) })
	}
}

func agree(t *testing.T, seed uint64) {
	w := &world{rng: rand.New(rand.NewPCG(seed, 1)), objects: map[string]any{}}
	x, m := New(), newMirror()
	subscribed := map[string]*discoveryv1.Address{}
	st := x.Open("na", nil)
	for i := range 300 {
		w.step(t, x)
		switch a := worldAddresses[w.rng.IntN(len(worldAddresses))]; w.rng.IntN(12) {
		case 0, 1:
			st.Subscribe([]*discoveryv1.Address{a})
			subscribed[addressKey(a)] = a
		case 2:
			st.Unsubscribe([]*discoveryv1.Address{a})
			delete(subscribed, addressKey(a))
			delete(m.answers, addressKey(a))
			m.sweep(t)
		case 3:
			st.Close()
			var epoch *discoveryv1.Position
			if w.rng.IntN(4) > 0 {
				epoch = m.position
			}
			for k := range m.answers { // what was subscribed to and not answered yet is not held
				if subscribed[k] == nil {
					t.Fatalf("an answer for %s, which is not subscribed to", k)
				}
			}
			st = x.Open("na", epoch)
			st.Subscribe(held(subscribed, m, true))
			m.apply(t, st.Next()...)
			st.Subscribe(held(subscribed, m, false))
		}
		if w.rng.IntN(3) > 0 {
			continue // the client is slow
		}
		m.apply(t, st.Next()...)
		compare(t, i, w, subscribed, m)
	}
	st.Close()
	if n := len(x.portSubs); n != 0 {
		t.Errorf("%d ports are still watched after all streams have ended", n)
	}
	for a, c := range x.addrs {
		if len(c.watch) != 0 || c.empty() {
			t.Errorf("%s is still kept: %+v", a, c)
		}
	}
	for _, s := range x.services {
		if len(s.streams) != 0 {
			t.Errorf("%s still has streams", s.name)
		}
	}
}

// held are the subscriptions that m has, or has not, an answer for.
func held(subscribed map[string]*discoveryv1.Address, m *mirror, yes bool) []*discoveryv1.Address {
	var out []*discoveryv1.Address
	for k, a := range subscribed {
		if (m.answers[k] != nil) == yes {
			out = append(out, a)
		}
	}
	return out
}

func compare(t *testing.T, i int, w *world, subscribed map[string]*discoveryv1.Address, m *mirror) {
	t.Helper()
	if ambiguous(w) {
		return
	}
	truth := New()
	for _, o := range w.objects {
		put(t, truth, o)
	}
	var addrs []string
	for k := range subscribed {
		addrs = append(addrs, k)
	}
	if d := cmp.Diff(ask(t, truth, addrs...).text(), m.text()); d != "" {
		t.Fatalf("after step %d (-want +got):\n%s", i, d)
	}
}

// ambiguous reports whether pods share an address or a host port: the later has it, and a map of objects has no order.
func ambiguous(w *world) bool {
	pods := map[string]int{}
	for _, o := range w.objects {
		p, ok := o.(*corev1.Pod)
		if !ok {
			continue
		}
		r := stripPod(p)
		if r.claims() {
			claims := []string{r.addrs[0].String()}
			for _, b := range r.bindings {
				claims = append(claims, fmt.Sprint(r.node, b.port))
			}
			for _, k := range claims {
				if pods[k]++; pods[k] > 1 {
					return true
				}
			}
		}
	}
	return false
}
