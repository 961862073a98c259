package netns_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	rpc "google.golang.org/grpc/interop/grpc_testing"

	"conduit.io/conduit/cli/lab"
	"conduit.io/conduit/tests/testnet"
)

// The ports on which every pod of a region serves.
const (
	regionHTTP    = 8080 // HTTP/1.1 and HTTP/2
	regionWitness = 9000 // lines; see witness
	regionGRPC    = 9090
)

// region is two nodes with a pod of each kind on each: the open ones are PERMISSIVE and go on without a proxy, the shut
// ones are STRICT and do not. All of them serve, and call each other. The outsider, on node one, is not in the mesh.
type region struct {
	ground
	open, shut, plain string // namespaces
	one, two          testnet.Node
	openA, openB      testnet.Pod // on node one, on node two
	shutA, shutB      testnet.Pod
	outsider          testnet.Pod
}

func newRegion(t *testing.T) *region {
	t.Helper()
	return newRegionOn(t, newGround(t))
}

func newRegionOn(t *testing.T, g ground) *region {
	t.Helper()
	r := &region{ground: g, one: g.node(1), two: g.node(2),
		open:  g.namespace(t, "open", enrolledLabels, map[string]string{"conduit.io/mtls-mode": "PERMISSIVE", "conduit.io/agent-down": "Open"}),
		shut:  g.namespace(t, "shut", enrolledLabels, map[string]string{"conduit.io/mtls-mode": "STRICT", "conduit.io/agent-down": "Closed"}),
		plain: g.namespace(t, "plain", nil, nil)}
	wanted := func(node int, namespace, name, account string) resident {
		return resident{node, namespace, name, lab.PodOptions{ServiceAccount: account}, nil}
	}
	made := g.pods(t, wanted(1, r.open, "a", "open-a"), wanted(2, r.open, "b", "open-b"), wanted(1, r.shut, "a", "shut-a"), wanted(2, r.shut, "b", "shut-b"),
		wanted(1, r.plain, "out", "plain-out"))
	r.openA, r.openB, r.shutA, r.shutB, r.outsider = made[0], made[1], made[2], made[3], made[4]
	for _, p := range made {
		serveRegion(t, p)
	}
	for _, p := range r.pairs() {
		p.await(t)
	}
	return r
}

// lab is the region's ground, in scenarios that only a lab allows, with its nodes.
func (r *region) lab() (g *labGround, one, two *lab.Node) {
	g = r.ground.(*labGround)
	return g, g.nodes[0], g.nodes[1]
}

func serveRegion(t *testing.T, p testnet.Pod) {
	t.Helper()
	l := testnet.Listen(t, p, "tcp", fmt.Sprintf("[::]:%d", regionHTTP))
	s := &http.Server{ReadHeaderTimeout: 10 * time.Second, Protocols: new(http.Protocols),
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "%s ", p)
			io.Copy(w, r.Body)
		})}
	s.Protocols.SetHTTP1(true)
	s.Protocols.SetUnencryptedHTTP2(true)
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	witness(t, p, regionWitness, false, "tcp")
	g := grpc.NewServer()
	rpc.RegisterTestServiceServer(g, &calls{})
	gl := testnet.Listen(t, p, "tcp", fmt.Sprintf("[::]:%d", regionGRPC))
	go g.Serve(gl)
	t.Cleanup(g.Stop)
}

// pair is a client and a server.
type pair struct{ from, to testnet.Pod }

// families are those in which the client can dial the server.
func (p pair) families() (all []lab.Families) {
	for _, f := range []lab.Families{lab.IPv4, lab.IPv6} {
		if p.to.IP(f).IsValid() {
			all = append(all, f)
		}
	}
	return all
}

// family is the last of them.
func (p pair) family() lab.Families { return p.families()[len(p.families())-1] }

func (p pair) String() string { return p.from.String() + " to " + p.to.String() }

// pairs are calls between enrolled pods, four across nodes and two within one.
func (r *region) pairs() []pair {
	return []pair{{r.openA, r.openB}, {r.openB, r.shutA}, {r.shutA, r.shutB}, {r.shutB, r.openA}, {r.openA, r.shutA}, {r.shutB, r.openB}}
}

// at is an address of the server.
func (p pair) at(f lab.Families, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(p.to.IP(f), port)
}

// ask says token to the witness of the server, and fails unless the right one answers and sees the client's address.
func (p pair) ask(ctx context.Context, f lab.Families, token string) error {
	c, err := testnet.Dial(ctx, p.from, p.at(f, regionWitness))
	if err != nil {
		return fmt.Errorf("%s: %w", p, err)
	}
	defer c.Close()
	return p.askOn(c, token)
}

// askOn is ask on a connection that is there.
func (p pair) askOn(c net.Conn, token string) error {
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(c, token+"\n"); err != nil {
		return fmt.Errorf("%s: %w", p, err)
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return fmt.Errorf("%s: heard %q: %w", p, line, err)
	}
	saw, err := parseSighting(line)
	if err != nil {
		return err
	}
	local := unmap(c.LocalAddr())
	if want := (sighting{name: p.to.Name(), accepted: local, peer: local, local: unmap(c.RemoteAddr()), token: token}); saw != want {
		return fmt.Errorf("%s: the server saw %+v, want %+v", p, saw, want)
	}
	return nil
}

// client makes HTTP requests of either version, and counts the connections it makes.
func (p pair) client(version int, dials *int) *http.Client {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(version == 1)
	protocols.SetUnencryptedHTTP2(version == 2)
	return &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{Protocols: protocols,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			*dials++
			return p.from.DialContext(ctx, network, addr)
		}}}
}

// post sends a body and wants it back.
func (p pair) post(ctx context.Context, c *http.Client, f lab.Families, body string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+p.at(f, regionHTTP).String()+"/", strings.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := c.Do(req)
	if err != nil {
		return fmt.Errorf("%s: %w", p, err)
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if want := p.to.String() + " " + body; err != nil || resp.StatusCode != 200 || string(got) != want {
		return fmt.Errorf("%s: %s, reason %q, %q, %w; want %q", p, resp.Status, resp.Header.Get("conduit-reason"), got, err, want)
	}
	return nil
}

// await waits until the pair can talk by HTTP and by lines, in both families.
func (p pair) await(t *testing.T) {
	t.Helper()
	for _, f := range p.families() {
		testnet.Eventually(t, 15*time.Second, func(ctx context.Context) error {
			dials := 0
			c := p.client(1, &dials)
			defer c.CloseIdleConnections()
			return errors.Join(p.ask(ctx, f, "awaited"), p.post(ctx, c, f, "awaited"))
		})
	}
}

// wantRefused expects connect(2) to fail at once with ECONNREFUSED, in both families.
func (p pair) wantRefused(t *testing.T) {
	t.Helper()
	for _, f := range p.families() {
		if err := p.refused(t.Context(), f); err != nil {
			t.Error(err)
		}
	}
}

// refused is nil when a connection was refused as it should be.
func (p pair) refused(ctx context.Context, f lab.Families) error {
	start := time.Now()
	c, err := testnet.Dial(ctx, p.from, p.at(f, regionWitness))
	took := time.Since(start)
	if err == nil {
		c.Close()
		return fmt.Errorf("%s: connected, want a refusal", p)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) || took > time.Second {
		return fmt.Errorf("%s: %w after %v, want ECONNREFUSED at once", p, err, took)
	}
	return nil
}

// holds opens a connection to the witness, which stays.
func (p pair) hold(t *testing.T) net.Conn {
	t.Helper()
	c := open(t, p.from, p.at(lab.IPv4, regionWitness))
	if err := p.askOn(c, "held"); err != nil {
		t.Fatal(err)
	}
	return c
}

// wantEnded expects a connection to end, by whatever error, rather than to hang.
func wantEnded(t *testing.T, what string, c net.Conn) {
	t.Helper()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	io.WriteString(c, "is-anybody-there\n")
	_, err := io.Copy(io.Discard, c)
	if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
		t.Errorf("%s: hangs, want its end", what)
	}
}

// metric reads a counter, or fails the test.
func metric(t *testing.T, node testnet.Asked, name string, parts ...string) float64 {
	t.Helper()
	v, err := testnet.Metric(t.Context(), node, name, parts...)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// proxyPID is the process ID of a node's proxy, which must be there.
func proxyPID(t testing.TB, node testnet.Node) (pid int) {
	t.Helper()
	testnet.Eventually(t, 2*time.Second, func(context.Context) (err error) {
		// All threads of a busy proxy may be in pods' namespaces at one moment.
		if pid, err = node.ProxyPID(); err == nil && pid == 0 {
			err = errors.New("no proxy on " + node.Name())
		}
		return err
	})
	return pid
}

// killProxy kills a node's proxy and waits for its end. It returns the process ID it had.
func killProxy(t *testing.T, node testnet.Node) int {
	t.Helper()
	pid := proxyPID(t, node)
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	testnet.Eventually(t, 5*time.Second, func(context.Context) error {
		// All threads are gone, and so is what they had open: only the record for the parent may be left.
		tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		for _, task := range tasks {
			stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/stat", pid, task.Name()))
			if err == nil && !strings.Contains(string(stat), ") Z ") && !strings.Contains(string(stat), ") X ") {
				return fmt.Errorf("killed proxy of %s: %s", node.Name(), stat)
			}
		}
		return err
	})
	return pid
}

func (r *region) record(t *testing.T) (*lab.Capture, func()) {
	t.Helper()
	return record(t, r.ground)
}

// record captures what passes between the nodes until the test ends, or until the function it returns is called.
func record(t *testing.T, g ground) (*lab.Capture, func()) {
	t.Helper()
	c, err := g.capture()
	if err != nil {
		t.Fatal(err)
	}
	stopped := false
	stop := func() {
		if stopped {
			return
		}
		stopped = true
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(stop)
	return c, stop
}
