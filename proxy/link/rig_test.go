package link_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"conduit.io/conduit/api/frame"
	api "conduit.io/conduit/api/node"
	"conduit.io/conduit/identity"
	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/link"
	"conduit.io/conduit/proxy/loop"
	"conduit.io/conduit/proxy/node"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"
)

// The rig runs real Nodes, each told by its own agent over a real link, and real sockets; only the kernel's steering is
// missing: listeners stand at the very addresses that applications dial. All pods share the test's own namespace, and
// are told apart by loopback addresses.

const meshPort = 15908

// The main goroutine keeps the main thread, so that none that changes its namespace runs on it: /proc/self is that one.
func init() { runtime.LockOSThread() }

// shards is how many loops a node gets.
var shards = 1

type testNode struct {
	t      *testing.T
	agent  *frame.Conn
	hello  *api.Hello
	node   *node.Node
	path   string
	ca     *identity.CA
	mu     sync.Mutex
	id     uint64
	acks   chan *api.Message
	drains chan uint64
	asked  chan *api.Lookup
	ended  chan time.Duration
}

func startNode(t *testing.T, change ...func(*node.Options)) *testNode {
	t.Helper()
	var all []*loop.Loop
	for range shards {
		l, err := loop.New()
		if err != nil {
			t.Fatal(err)
		}
		go l.Run(context.Background())
		all = append(all, l)
	}
	level := slog.LevelWarn
	if os.Getenv("CONDUIT_TEST_DEBUG") != "" {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	n := &testNode{t: t, ended: make(chan time.Duration, 1), path: filepath.Join(t.TempDir(), "p.sock")}
	o := node.Options{Loops: all, Log: log, Build: "test", MeshPort: meshPort, ConnectTimeout: 2 * time.Second}
	for _, f := range change {
		f(&o)
	}
	n.node = node.New(o)
	ln, err := link.Listen(n.path)
	if err != nil {
		t.Fatal(err)
	}
	srv := link.New(ln, n.node, log, func(grace time.Duration) { n.ended <- grace })
	go srv.Serve()
	t.Cleanup(func() {
		srv.Close()
		for _, l := range all {
			l.Stop()
			<-l.Done()
		}
	})
	n.connect()
	n.must(&api.Message{Kernel: &api.Kernel{}}, tagMap(t))
	return n
}

// connect makes a new agent connection.
func (n *testNode) connect() {
	n.t.Helper()
	c, err := frame.Dial(n.path, 2*time.Second)
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { c.Close() })
	var m api.Message
	if _, err := c.Receive(&m); err != nil || m.Hello == nil {
		n.t.Fatalf("hello: %v %+v", err, m)
	}
	n.agent, n.hello = c, m.Hello
	acks, drains, asked := make(chan *api.Message, 16), make(chan uint64, 16), make(chan *api.Lookup, 16)
	n.acks, n.drains, n.asked = acks, drains, asked
	go func() {
		defer close(acks)
		for {
			var m api.Message
			if _, err := c.Receive(&m); err != nil {
				return
			}
			switch {
			case m.Drained != nil:
				drains <- m.Drained.Cookie
			case m.Lookup != nil:
				asked <- m.Lookup
			default:
				acks <- &m
			}
		}
	}()
}

// ask sends a request and waits for its answer.
func (n *testNode) ask(m *api.Message, files ...*os.File) *api.Ack {
	n.t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.id++
	m.ID = n.id
	if err := n.agent.Send(m, files...); err != nil {
		n.t.Fatal(err)
	}
	select {
	case a, ok := <-n.acks:
		if !ok || a.ID != n.id || a.Ack == nil {
			n.t.Fatalf("answer %+v", a)
		}
		return a.Ack
	case <-time.After(10 * time.Second):
		n.t.Fatal("no answer")
	}
	return nil
}

func (n *testNode) must(m *api.Message, files ...*os.File) *api.Ack {
	n.t.Helper()
	a := n.ask(m, files...)
	if a.Error != "" {
		n.t.Fatal(a.Error)
	}
	return a
}

func (n *testNode) stats() string {
	n.t.Helper()
	return n.must(&api.Message{Stats: &api.StatsRequest{}}).Stats
}

// want waits until every line is in the metrics.
func (n *testNode) want(lines ...string) {
	n.t.Helper()
	var last string
	eventually(n.t, func() bool {
		last = n.stats()
		for _, l := range lines {
			if !strings.Contains(last, l+"\n") {
				return false
			}
		}
		return true
	}, func() string {
		var have []string
		for l := range strings.Lines(last) {
			if !strings.HasPrefix(l, "#") && !strings.Contains(l, "_bucket") {
				have = append(have, l)
			}
		}
		return "metrics lack one of\n" + strings.Join(lines, "\n") + "\nin\n" + strings.Join(have, "")
	})
}

func eventually(t *testing.T, ok func() bool, why func() string) {
	t.Helper()
	within(t, 5*time.Second, ok, why)
}

func within(t *testing.T, d time.Duration, ok func() bool, why func() string) {
	t.Helper()
	deadline := time.Now().Add(d)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatal(why())
		}
		<-tick.C
	}
}

// tagMap is a socket-tag map as the loader makes it.
func tagMap(t *testing.T) *os.File {
	t.Helper()
	u8 := &btf.Int{Name: "u8", Size: 1}
	m, err := ebpf.NewMap(&ebpf.MapSpec{
		Name: "cdt_test_tags", Type: ebpf.SkStorage, KeySize: 4, ValueSize: 20, Flags: 1,
		Key:   &btf.Int{Name: "int", Size: 4, Encoding: btf.Signed},
		Value: &btf.Struct{Name: "tag", Size: 20, Members: []btf.Member{{Name: "b", Type: &btf.Array{Index: u8, Type: u8, Nelems: 20}}}},
	})
	if err != nil {
		if errors.Is(err, os.ErrPermission) {
			t.Skip("SKIPPED: needs root for BPF")
		}
		t.Fatal(err)
	}
	defer m.Close()
	fd, err := unix.Dup(m.FD())
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "tags")
	t.Cleanup(func() { f.Close() })
	return f
}

// file gives the descriptor of a listener on addr, or /dev/null for "".
func file(t *testing.T, addr string) *os.File {
	t.Helper()
	if addr == "" {
		f, err := os.Open("/dev/null")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// addPod gives the node a pod; in and out are where its four listeners stand.
func (n *testNode) addPod(cookie uint64, w mesh.Workload, in, out string) {
	n.t.Helper()
	n.addPodIn(ownNetns(n.t), cookie, w, in, out)
}

// addPodIn is addPod for a pod whose applications are in another namespace than its listeners, so that they can be
// reached at the very address that was dialled.
func (n *testNode) addPodIn(ns *os.File, cookie uint64, w mesh.Workload, in, out string) {
	n.t.Helper()
	files := podFiles(n.t, in, out)
	n.must(&api.Message{Pod: &api.Pod{Cookie: cookie, Workload: w}}, append([]*os.File{ns}, files...)...)
	frame.CloseAll(files) // only the proxy's copies keep the listeners
}

func ownNetns(t *testing.T) *os.File {
	t.Helper()
	ns, err := os.Open("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

// otherNetns makes a namespace in which app is served at addr.
func otherNetns(t *testing.T, addr string, app func(c *net.TCPConn)) *os.File {
	t.Helper()
	var ns *os.File
	var l net.Listener
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		done <- func() (err error) {
			if err = unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return err
			}
			if ns, err = os.Open("/proc/thread-self/ns/net"); err != nil {
				return err
			}
			if err = loopbackUp(); err != nil {
				return err
			}
			l, err = net.Listen("tcp", addr)
			return err
		}()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close(); ns.Close() })
	go serve(l, app)
	return ns
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	r, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	r.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, r)
}

func podFiles(t *testing.T, in, out string) []*os.File {
	t.Helper()
	in1, in2, _ := strings.Cut(in, ",")
	out1, out2, _ := strings.Cut(out, ",")
	return []*os.File{file(t, in1), file(t, in2), file(t, out1), file(t, out2)}
}

// certify gives the node a certificate for every service account.
func (n *testNode) certify(ca *identity.CA, accounts ...string) {
	n.t.Helper()
	c := &api.Certificates{Roots: ca.Roots()}
	for _, a := range accounts {
		id := mesh.Identity{TrustDomain: ca.TrustDomain(), Namespace: "shop", ServiceAccount: a}
		l, err := ca.Issue(id)
		if err != nil {
			n.t.Fatal(err)
		}
		c.Leaves = append(c.Leaves, api.Leaf{Identity: id, Chain: l.Chain, Key: l.Key})
	}
	n.must(&api.Message{Certificates: c})
}

func newCA(t *testing.T) *identity.CA {
	t.Helper()
	ca, err := identity.OpenCA(t.TempDir(), "test", nil)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func workload(name, node, addr string) mesh.Workload {
	w := mesh.Workload{UID: "shop/" + name, Namespace: "shop", Name: name, ServiceAccount: name, Node: node, Meshed: true, Mode: mesh.Strict}
	w.Addrs = []netip.Addr{netip.MustParseAddr(addr)}
	return w
}

func service(name, addr string, port uint16, proto mesh.Protocol, endpoints ...string) mesh.Service {
	p := mesh.Port{Port: port, Protocol: proto}
	for _, e := range endpoints {
		p.Endpoints = append(p.Endpoints, mesh.Endpoint{Addr: netip.MustParseAddrPort(e)})
	}
	return mesh.Service{Namespace: "shop", Name: name, Addrs: []netip.Addr{netip.MustParseAddr(addr)}, Ports: []mesh.Port{p}}
}

// tcpApp serves TCP at addr.
func tcpApp(t *testing.T, addr string, f func(c *net.TCPConn)) {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go serve(l, f)
}

func serve(l net.Listener, f func(c *net.TCPConn)) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			f(c.(*net.TCPConn))
		}()
	}
}

func dial(t *testing.T, addr string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(10 * time.Second))
	return c.(*net.TCPConn)
}

// echo answers line by line until the client has finished.
func echo(c *net.TCPConn) { io.Copy(c, c) }
