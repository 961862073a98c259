package netns_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"conduit.io/conduit/cli/lab"
	"conduit.io/conduit/tests/testnet"
)

// town is two nodes of one mesh, with programs to run in it: server is STRICT and lives on node two, away is on node
// one (its traffic to the server crosses the wire under mTLS), beside is on node two (one hop).
type town struct {
	ground
	shop, plain          string // namespaces
	server, away, beside testnet.Pod
	outsider             testnet.Pod  // on node one, not in the mesh
	service              []netip.Addr // the server's, on a cluster: a lab has no kube-proxy that it could get past
}

// The ports that a server of a cluster's town may listen on: its Service has them.
const (
	firstTownPort = 20000
	townPorts     = 60
)

func newTown(t *testing.T) *town {
	t.Helper()
	w := &town{ground: newGround(t)}
	w.shop = w.namespace(t, "shop", enrolledLabels, map[string]string{"conduit.io/mtls-mode": "STRICT"})
	w.plain = w.namespace(t, "plain", nil, nil)
	labels := map[string]string{"app": "server"}
	var ports []uint16
	if city.bin != "" {
		s := lab.Service{Namespace: w.shop, Name: "server", Selector: labels}
		for i := range townPorts {
			ports = append(ports, uint16(firstTownPort+i))
		}
		for _, port := range append(ports, pgPort, redisPort) {
			s.Ports = append(s.Ports, lab.ServicePort{Name: fmt.Sprintf("p%d", port), Port: int32(port)})
		}
		w.service = w.ground.service(t, s)
	}
	made := w.pods(t, resident{2, w.shop, "server", lab.PodOptions{ServiceAccount: "server", Labels: labels}, ports},
		resident{1, w.shop, "away", lab.PodOptions{}, nil}, resident{2, w.shop, "beside", lab.PodOptions{}, nil},
		resident{1, w.plain, "outsider", lab.PodOptions{}, nil})
	w.server, w.away, w.beside, w.outsider = made[0], made[1], made[2], made[3]
	// The addresses of a new pod are usable for others once their agent has read its manifest.
	port := testnet.Echo(t, w.server, 0)
	for _, path := range w.paths(port) {
		testnet.Eventually(t, 20*time.Second, func(ctx context.Context) error {
			_, err := testnet.RoundTrip(ctx, path.from, path.to, []byte("here"))
			return err
		})
	}
	// The control for everything that follows: without mTLS the server cannot be reached.
	for _, path := range w.paths(port) {
		if got, err := testnet.RoundTrip(t.Context(), w.outsider, path.to, []byte("plaintext")); err == nil {
			t.Fatalf("a STRICT server answers plaintext at %s: %q", path.to, got)
		}
	}
	return w
}

// path is a way from a client to the server.
type path struct {
	name string
	from testnet.Pod
	to   netip.AddrPort
	at   netip.Addr // the server's own address
}

// client is the address from which the server must see the client.
func (p path) client() netip.Addr {
	if p.to.Addr().Is4() {
		return p.from.IP(lab.IPv4)
	}
	return p.from.IP(lab.IPv6)
}

func podPort(p testnet.Pod, f lab.Families, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(p.IP(f), port)
}

func (p path) dial(t *testing.T) *net.TCPConn {
	t.Helper()
	c, err := testnet.Dial(t.Context(), p.from, p.to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// dialer is for clients that dial themselves.
func (p path) dialer() func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		return p.from.DialContext(ctx, network, addr)
	}
}

// paths are all ways to a port of the server; the first is from another node, by the pod's IPv4 address.
func (w *town) paths(port uint16) (all []path) {
	add := func(name string, from testnet.Pod, to, at netip.Addr) {
		if to.IsValid() && at.IsValid() {
			all = append(all, path{name, from, netip.AddrPortFrom(to, port), at})
		}
	}
	v4, v6 := w.server.IP(lab.IPv4), w.server.IP(lab.IPv6)
	add("away/v4", w.away, v4, v4)
	add("away/v6", w.away, v6, v6)
	add("beside/v4", w.beside, v4, v4)
	for _, ip := range w.service {
		own, family := v4, "v4"
		if ip.Is6() {
			own, family = v6, "v6"
		}
		add("away/service/"+family, w.away, ip, own)
		add("beside/service/"+family, w.beside, ip, own)
	}
	return all
}

// far is the way from the other node, near the one from the server's own.
func (w *town) far(port uint16) path { return w.paths(port)[0] }
func (w *town) near(port uint16) path {
	return path{"beside/v4", w.beside, podPort(w.server, lab.IPv4, port), w.server.IP(lab.IPv4)}
}

// onPaths runs f for every path as a subtest.
func (w *town) onPaths(t *testing.T, port uint16, f func(t *testing.T, p path)) {
	t.Helper()
	for _, p := range w.paths(port) {
		t.Run(p.name, func(t *testing.T) { f(t, p) })
	}
}

// needProgram skips a test that cannot do without a program, and says where to get it.
func needProgram(t *testing.T, name, pkg string) string {
	t.Helper()
	file, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("SKIPPED: needs %s: run `apt-get install %s` (.ci/run does)", name, pkg)
	}
	return file
}

// output runs a program in a pod for at most 60 s and returns what it wrote to standard output.
func output(t *testing.T, p testnet.Pod, stdin io.Reader, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := p.Command(ctx, name, args...)
	var stderr strings.Builder
	cmd.Stdin, cmd.Stderr = stdin, &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s in %s: %v\n%s%s", name, strings.Join(args, " "), p, err, out, &stderr)
	}
	return string(out)
}

// noise is a reader of n bytes that do not repeat and do not compress; the same seed gives the same bytes.
func noise(seed byte, n int64) io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte{seed}), n)
}

// sum is the SHA-256 of everything in r, in hex.
func sum(r io.Reader) (string, int64, error) {
	h := sha256.New()
	n, err := io.Copy(h, onlyReader{r}) // not ReadFrom or WriteTo: a plain loop of reads
	return hexSum(h), n, err
}

type onlyReader struct{ io.Reader }

func hexSum(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil)) }

// rss is a process's resident memory in KiB.
func rss(pid int) (int, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	_, after, ok := strings.Cut(string(b), "VmRSS:")
	if !ok {
		return 0, fmt.Errorf("process %d has no VmRSS", pid)
	}
	return strconv.Atoi(strings.Fields(after)[0])
}

// rssWatch samples the memory of both nodes' proxies until it is stopped.
type rssWatch struct {
	max  [2]atomic.Int64
	stop func()
}

const maxProxyRSS = 32 << 10 // KiB; what a proxy would store that stored what it cannot deliver is twice as much

func (w *town) watchRSS(t *testing.T) *rssWatch {
	t.Helper()
	r := &rssWatch{}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	var pids [2]int
	for i := range pids {
		node := w.node(i + 1)
		pid, err := node.ProxyPID()
		if err != nil || pid == 0 {
			t.Fatalf("proxy of %s: pid %d, %v", node.Name(), pid, err)
		}
		pids[i] = pid
	}
	go func() {
		defer close(done)
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for ctx.Err() == nil {
			for i, pid := range pids {
				if kib, err := rss(pid); err == nil {
					r.max[i].Store(max(r.max[i].Load(), int64(kib)))
				}
			}
			select {
			case <-ctx.Done():
			case <-tick.C:
			}
		}
	}()
	r.stop = func() { cancel(); <-done }
	t.Cleanup(r.stop)
	return r
}

// check stops the watch and fails the test if a proxy has grown too big.
func (r *rssWatch) check(t *testing.T) {
	t.Helper()
	r.stop()
	for i := range r.max {
		kib := r.max[i].Load()
		t.Logf("proxy of node %d: %d KiB resident at most", i+1, kib)
		if kib > maxProxyRSS || kib == 0 {
			t.Errorf("proxy of node %d: %d KiB resident, want at most %d", i+1, kib, maxProxyRSS)
		}
	}
}
