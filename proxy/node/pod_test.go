package node

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"testing"
	"time"

	api "conduit.io/conduit/api/node"
	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/loop"

	"golang.org/x/sys/unix"
)

func start(t *testing.T) *Node {
	t.Helper()
	l, err := loop.New()
	if err != nil {
		t.Fatal(err)
	}
	go l.Run(context.Background())
	t.Cleanup(func() {
		l.Stop()
		<-l.Done()
	})
	return New(Options{Loops: []*loop.Loop{l}, Log: slog.New(slog.DiscardHandler)})
}

// podFiles are the descriptors of a pod with one listener, at the address that it returns.
func podFiles(t *testing.T) (files []*os.File, addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	files = append(files, open(t, "/proc/self/ns/net"), f)
	for range int(api.Slots) - 1 {
		files = append(files, open(t, "/dev/null"))
	}
	t.Cleanup(func() { f.Close() })
	return files, l.Addr().String()
}

func open(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func mustSet(t *testing.T, n *Node, files []*os.File) {
	t.Helper()
	if err := n.SetPod(&api.Pod{Cookie: 7, Workload: mesh.Workload{Mode: mesh.Permissive}}, files); err != nil {
		t.Fatal(err)
	}
}

// A pod that could not be added has left nothing behind.
func TestFailedAdd(t *testing.T) {
	n := start(t)
	files, _ := podFiles(t)
	files[2] = files[1] // a second listener, for which there will be no descriptor
	free := starve(t, 3)
	err := n.SetPod(&api.Pod{Cookie: 7}, files)
	free()
	if !errors.Is(err, unix.EMFILE) {
		t.Fatalf("want %v, got %v", unix.EMFILE, err)
	}
	sh := n.shards[0]
	if e := sh.loop.Do(func() {
		if len(sh.shares)+len(sh.pools) != 0 || sh.loop.Watched() != 0 {
			t.Errorf("%d shares, %d pools and %d watched descriptors are left", len(sh.shares), len(sh.pools), sh.loop.Watched())
		}
	}); e != nil {
		t.Fatal(e)
	}
	mustSet(t, n, files)
}

// starve leaves the process n free descriptors, until the function that it returns is called.
func starve(t *testing.T, n int) (end func()) {
	t.Helper()
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	limit := old
	limit.Cur = 200
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	var all []int
	for {
		fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			break
		}
		all = append(all, fd)
	}
	for range n {
		unix.Close(all[len(all)-1])
		all = all[:len(all)-1]
	}
	return func() {
		for _, fd := range all {
			unix.Close(fd)
		}
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
			t.Error(err)
		}
	}
}

// The end of a drain that was called off says nothing about a later one.
func TestStaleEndOfADrain(t *testing.T) {
	n := start(t)
	told := make(chan uint64, 10)
	n.OnDrained(func(cookie uint64) {
		if n.mu.TryLock() {
			n.mu.Unlock()
			t.Error("the pod may change before the notice is given")
		}
		told <- cookie
	})
	files, addr := podFiles(t)
	mustSet(t, n, files)
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for deadline := time.Now().Add(5 * time.Second); n.process.Open.Load() == 0; {
		if time.Now().After(deadline) {
			t.Fatal("the connection was not accepted")
		}
		_ = n.shards[0].loop.Do(func() {})
	}
	p := n.pods.Load().byCookie[7]
	n.Remove(&api.Remove{Cookie: 7, Drain: true})
	first := p.drains
	mustSet(t, n, files)
	n.podDrained(p, first) // it had found nothing left, and waited for its turn
	n.Remove(&api.Remove{Cookie: 7, Drain: true})
	n.podDrained(p, first)
	if n.pods.Load().byCookie[7] != p || len(told) > 0 {
		t.Error("the pod was taken away with a connection open")
	}
	c.Close()
	select {
	case cookie := <-told:
		if cookie != 7 {
			t.Errorf("drained %d", cookie)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("never drained")
	}
	n.podDrained(p, p.drains)
	if len(told) > 0 {
		t.Error("drained twice")
	}
	if _, err := io.ReadAll(c); err == nil {
		t.Error("the connection is still there")
	}
}
