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
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"conduit.io/conduit/cli/lab"
	"conduit.io/conduit/tests/testnet"
)

// town is two nodes of one mesh, with programs to run in it: server is STRICT and lives on node two, away is on node
// one (its traffic to the server crosses the wire under mTLS), beside is on node two (one hop).
type town struct {
	*testnet.Net
	one, two             *lab.Node
	server, away, beside *lab.Pod
	outsider             *lab.Pod // on node one, not in the mesh
}

func newTown(t *testing.T) *town {
	t.Helper()
	n := testnet.New(t, testnet.Config{Mesh: true})
	strict := map[string]string{"conduit.io/mtls-mode": "STRICT"}
	if err := n.WriteNamespace("shop", map[string]string{"conduit.io/mesh": "enabled"}, strict); err != nil {
		t.Fatal(err)
	}
	if err := n.WriteNamespace("plain", nil, nil); err != nil {
		t.Fatal(err)
	}
	w := &town{Net: n}
	w.one, w.two = n.MeshNode("one", lab.NodeConfig{}), n.MeshNode("two", lab.NodeConfig{Primary: lab.PTP})
	w.pods(t)
	// The addresses of a new pod are usable for others once their agent has read its manifest.
	port := testnet.Echo(t, w.server, 0)
	for _, path := range w.paths(port) {
		testnet.Eventually(t, 10*time.Second, func(ctx context.Context) error {
			_, err := testnet.RoundTrip(ctx, path.from, path.to, []byte("here"))
			return err
		})
	}
	// The control for everything that follows: without mTLS the server cannot be reached.
	if got, err := testnet.RoundTrip(t.Context(), w.outsider, w.paths(port)[0].to, []byte("plaintext")); err == nil {
		t.Fatalf("a STRICT server answers plaintext: %q", got)
	}
	return w
}

// pods makes all pods at once: each waits for duplicate address detection.
func (w *town) pods(t *testing.T) {
	t.Helper()
	var group sync.WaitGroup
	add := func(to **lab.Pod, node *lab.Node, namespace, name string, opts lab.PodOptions) {
		group.Go(func() {
			p, err := node.AddPod(t.Context(), namespace, name, opts)
			if err != nil {
				t.Error(err)
			}
			*to = p
		})
	}
	add(&w.server, w.two, "shop", "server", lab.PodOptions{ServiceAccount: "server"})
	add(&w.away, w.one, "shop", "away", lab.PodOptions{})
	add(&w.beside, w.two, "shop", "beside", lab.PodOptions{})
	add(&w.outsider, w.one, "plain", "outsider", lab.PodOptions{})
	group.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

// path is a way from a client to the server.
type path struct {
	name string
	from *lab.Pod
	to   netip.AddrPort
}

// client is the address from which the server must see the client.
func (p path) client() netip.Addr {
	if p.to.Addr().Is4() {
		return p.from.IP(lab.IPv4)
	}
	return p.from.IP(lab.IPv6)
}

func podPort(p *lab.Pod, f lab.Families, port uint16) netip.AddrPort {
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

func (w *town) paths(port uint16) []path {
	v4, v6 := podPort(w.server, lab.IPv4, port), podPort(w.server, lab.IPv6, port)
	return []path{{"away/v4", w.away, v4}, {"away/v6", w.away, v6}, {"beside/v4", w.beside, v4}}
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
func output(t *testing.T, p *lab.Pod, stdin io.Reader, name string, args ...string) string {
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
	for i, node := range []*lab.Node{w.one, w.two} {
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
