package discovery

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"

	discoveryv1 "conduit.io/conduit/api/discoveryv1"

	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"
	discoveryk8s "k8s.io/api/discovery/v1"
)

func benchAddr(base string, i int) string {
	a := netip.MustParseAddr(base).As4()
	a[1], a[2], a[3] = a[1]+byte(i>>16), byte(i>>8), byte(i)
	return netip.AddrFrom4(a).String()
}

const podsPerService = 10

// bigIndex has n services of podsPerService pods each, on a node for each 50 pods.
func bigIndex(t testing.TB, n int) *Index {
	x := New()
	put(t, x, makeNamespace("n", "enabled"))
	for i := range n {
		put(t, x, makeService("n", fmt.Sprint("s", i), benchAddr("10.96.0.0", i), corev1.ServicePort{Name: "http", Port: 80}))
		var backends []backend
		for j := range podsPerService {
			k := i*podsPerService + j
			b := backend{ip: benchAddr("10.128.0.0", k), pod: fmt.Sprint("p", k), uid: fmt.Sprint("uid-", k)}
			put(t, x, makePod("n", b.pod, b.uid, fmt.Sprint("node", k/50), b.ip))
			backends = append(backends, b)
		}
		put(t, x, benchSlice(i, backends))
	}
	return x
}

func benchSlice(i int, backends []backend) *discoveryk8s.EndpointSlice {
	return makeSlice("n", fmt.Sprint("s", i, "-a"), fmt.Sprint("s", i), "http", 8080, backends...)
}

// BenchmarkChange is the cost of one endpoint that becomes ready or not, from the object to the messages of ten agents that
// are subscribed to its service, among services of which each has ten pods. A hundred agents are subscribed to ten services each.
func BenchmarkChange(b *testing.B) {
	for _, n := range []int{100, 1000, 10000} {
		b.Run(fmt.Sprint("services=", n), func(b *testing.B) {
			x := bigIndex(b, n)
			var streams []*Stream
			for a := range 100 {
				st := x.Open(fmt.Sprint("node", a), nil)
				for j := range 10 {
					st.Subscribe([]*discoveryv1.Address{ip(benchAddr("10.96.0.0", (a/10*10+j)%n))})
				}
				st.Next()
				streams = append(streams, st)
			}
			var slices [2]*discoveryk8s.EndpointSlice
			for v := range slices {
				var backends []backend
				for j := range podsPerService {
					backends = append(backends, backend{ip: benchAddr("10.128.0.0", j), pod: fmt.Sprint("p", j), uid: fmt.Sprint("uid-", j), unready: j == 0 && v == 1})
				}
				slices[v] = benchSlice(0, backends)
			}
			bytes, told := 0, 0
			b.ReportAllocs()
			b.ResetTimer()
			for i := range b.N {
				put(b, x, slices[(i+1)%2])
				for _, st := range streams {
					select {
					case <-st.Wake():
					default:
						continue
					}
					for _, m := range st.Next() {
						bytes += proto.Size(m)
						told++
					}
				}
			}
			b.ReportMetric(float64(bytes)/float64(max(1, told)), "B/message")
			b.ReportMetric(float64(told)/float64(b.N), "messages/op")
		})
	}
}

// BenchmarkSize is what an index holds: bytes for each pod, its share of services and slices included.
func BenchmarkSize(b *testing.B) {
	for range b.N {
		before := heap()
		x := bigIndex(b, 5000)
		b.ReportMetric(float64(heap()-before)/(5000*podsPerService), "B/pod")
		runtime.KeepAlive(x)
	}
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// BenchmarkStreamSize is what the index holds for a stream that has been sent what it asked for: bytes for each of its 120 addresses.
func BenchmarkStreamSize(b *testing.B) {
	const streams, each = 1000, 120
	x := bigIndex(b, 1000)
	for range b.N {
		before := heap()
		var open []*Stream
		for i := range streams {
			st := x.Open(fmt.Sprint("node", i), nil)
			for j := range each / 6 { // a service for every five pods
				st.Subscribe([]*discoveryv1.Address{ip(benchAddr("10.96.0.0", (i+j)%1000))})
				for k := range 5 {
					st.Subscribe([]*discoveryv1.Address{ip(benchAddr("10.128.0.0", (i*50+j*5+k)%10000))})
				}
			}
			st.Next()
			open = append(open, st)
		}
		b.ReportMetric(float64(heap()-before)/(streams*each), "B/subscription")
		for _, st := range open {
			st.Close()
		}
	}
}
