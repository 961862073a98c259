package proxylink

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"conduit.io/conduit/api/frame"
	"conduit.io/conduit/api/node"
)

// TestMain lets the test binary play the proxy: the supervisor runs it as one. What kind of proxy, its file name says.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "--link-fd" {
		self, _ := os.Readlink("/proc/self/exe")
		play(filepath.Base(self))
		return
	}
	os.Exit(m.Run())
}

func play(kind string) {
	if kind == "crash" {
		os.Exit(3)
	}
	l, err := net.FileListener(os.NewFile(3, "link"))
	if err != nil {
		os.Exit(4)
	}
	hello := &node.Hello{Version: node.Version, PID: os.Getpid(), Build: kind}
	if kind == "old" {
		hello.Version--
	}
	for {
		u, err := l.Accept()
		if err != nil {
			return
		}
		if kind == "mute" {
			continue
		}
		c := frame.New(u.(*net.UnixConn))
		_ = c.Send(&node.Message{Hello: hello})
		converse(c)
	}
}

func converse(c *frame.Conn) {
	for {
		var m node.Message
		files, err := c.Receive(&m)
		frame.CloseAll(files)
		if err != nil {
			return
		}
		ack := &node.Ack{}
		switch {
		case m.Stats != nil:
			ack.Stats = "up 1\n"
		case m.Pod != nil:
			ack.Error = "no such pod"
		case m.Remove != nil:
			_ = c.Send(&node.Message{Drained: &node.Drained{Cookie: m.Remove.Cookie}})
			asked := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(m.Remove.Cookie)}), 80)
			_ = c.Send(&node.Message{Lookup: &node.Lookup{Add: []netip.AddrPort{asked}}})
		}
		_ = c.Send(&node.Message{ID: m.ID, Ack: ack})
		if m.Shutdown != nil {
			os.Exit(0)
		}
	}
}

func proxyBinary(t *testing.T, kind string) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: needs root to start a proxy as another user")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), kind)
	if err := os.WriteFile(path, data, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

type fixture struct {
	s        *Supervisor
	attached chan *Link
	stop     func()
}

func supervise(t *testing.T, runDir, binary string) *fixture {
	t.Helper()
	return supervisePatiently(t, runDir, binary, 0)
}

func supervisePatiently(t *testing.T, runDir, binary string, hello time.Duration) *fixture {
	t.Helper()
	f := &fixture{attached: make(chan *Link, 100)}
	f.s = New(Config{
		RunDir: runDir, Binary: binary, HelloTimeout: hello, ProbeEvery: hello, Log: slog.New(slog.DiscardHandler),
		Attach: func(_ context.Context, l *Link) error { f.attached <- l; return nil },
		Detach: func(*Link) {},
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { f.s.Run(ctx); close(done) }()
	f.stop = func() { cancel(); <-done }
	t.Cleanup(func() {
		f.stop()
		if err := Kill(runDir, 5*time.Second); err != nil {
			t.Error(err)
		}
	})
	return f
}

func (f *fixture) next(t *testing.T) *Link {
	t.Helper()
	select {
	case l := <-f.attached:
		return l
	case <-time.After(10 * time.Second):
		state, why := f.s.State()
		t.Fatalf("no proxy; state %s, %v", state, why)
		return nil
	}
}

func TestProxyComesBackAfterKill(t *testing.T) {
	dir := t.TempDir()
	f := supervise(t, dir, proxyBinary(t, "good"))
	first := f.next(t)
	if pid, err := Running(dir); err != nil || pid != first.Hello().PID {
		t.Errorf("Running: %d, %v; hello says %d", pid, err, first.Hello().PID)
	}
	if err := syscall.Kill(first.Hello().PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	second := f.next(t)
	if d := time.Since(began); d > time.Second {
		t.Errorf("the next proxy was there after %v, want less than 1s", d)
	}
	select {
	case <-first.Done():
	case <-time.After(5 * time.Second):
		t.Error("the first link did not end")
	}
	if n := f.s.Served(); n != 2 {
		t.Errorf("%d proxies were ready, want 2", n)
	}
	if second.Hello().PID == first.Hello().PID || f.s.Starts() != 2 {
		t.Errorf("pids %d and %d, %d starts", first.Hello().PID, second.Hello().PID, f.s.Starts())
	}
}

func TestProxyIsLeastPrivilegedAndOutlivesTheAgent(t *testing.T) {
	dir := t.TempDir()
	binary := proxyBinary(t, "good")
	f := supervise(t, dir, binary)
	pid := f.next(t).Hello().PID
	data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"Uid:\t2102\t2102\t2102\t2102", "Gid:\t2102\t2102\t2102\t2102", "NoNewPrivs:\t1",
		"CapPrm:\t0000000000200000", "CapEff:\t0000000000200000", // CAP_SYS_ADMIN alone
	} {
		if !strings.Contains(string(data), want) {
			t.Errorf("/proc/%d/status has no %q:\n%s", pid, want, data)
		}
	}
	if env, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "environ")); err != nil || len(env) != 0 {
		t.Errorf("environment %q, %v; want none", env, err)
	}
	if st, err := os.Stat(Socket(dir)); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v; want mode 0600", st.Mode(), err)
	}
	f.stop()
	if state, _ := f.s.State(); state != Stopped {
		t.Errorf("state %s after the end", state)
	}
	next := supervise(t, dir, binary)
	if got := next.next(t).Hello().PID; got != pid {
		t.Errorf("the next agent found proxy %d, want %d", got, pid)
	}
	if n := next.s.Served(); n != 1 {
		t.Errorf("the next agent knows of %d proxies, want the one that it found", n)
	}
	if n := next.s.Starts(); n != 0 {
		t.Errorf("the next agent started %d proxies", n)
	}
}

func TestCrashingProxyIsRetriedWithPauses(t *testing.T) {
	dir := t.TempDir()
	f := supervise(t, dir, proxyBinary(t, "crash"))
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if state, why := f.s.State(); state == Waiting {
			if why == nil || !strings.Contains(why.Error(), "greet proxy") && !strings.Contains(why.Error(), "proxy.log") {
				t.Errorf("waiting because of %v", why)
			}
			break
		}
		select {
		case <-deadline:
			t.Fatal("the supervisor never waits")
		case <-tick.C:
		}
	}
	for n, want := range []time.Duration{0, firstPause, 2 * firstPause, 4 * firstPause} {
		if got := pause(n); got != want {
			t.Errorf("pause(%d) = %v, want %v", n, got, want)
		}
	}
	if got := pause(1000); got != mostPause {
		t.Errorf("pause(1000) = %v, want %v", got, mostPause)
	}
}

func TestProxyOfAnotherVersionIsRetired(t *testing.T) {
	dir := t.TempDir()
	pid, exited, err := start(proxyBinary(t, "old"), dir, "")
	if err != nil {
		t.Fatal(err)
	}
	f := supervise(t, dir, proxyBinary(t, "good"))
	l := f.next(t)
	if l.Hello().PID == pid || l.Hello().Version != node.Version {
		t.Errorf("attached to %+v", l.Hello())
	}
	select {
	case <-exited:
	case <-time.After(5 * time.Second):
		t.Error("the old proxy was not asked to finish")
		syscall.Kill(pid, syscall.SIGKILL)
	}
}

// A proxy that lives and does not answer would hold its pods' connections for ever.
func TestHungProxyIsReplaced(t *testing.T) {
	dir := t.TempDir()
	pid, exited, err := start(proxyBinary(t, "mute"), dir, "")
	if err != nil {
		t.Fatal(err)
	}
	f := supervisePatiently(t, dir, proxyBinary(t, "good"), 300*time.Millisecond)
	if got := f.next(t).Hello().PID; got == pid {
		t.Errorf("attached to the mute proxy %d", got)
	}
	select {
	case <-exited:
	case <-time.After(5 * time.Second):
		t.Error("the mute proxy still runs")
		syscall.Kill(pid, syscall.SIGKILL)
	}
}

// A proxy that was ready, and then answers nothing any more, is replaced too.
func TestProxyThatStopsAnsweringIsReplaced(t *testing.T) {
	dir := t.TempDir()
	f := supervisePatiently(t, dir, proxyBinary(t, "good"), 300*time.Millisecond)
	first := f.next(t).Hello().PID
	if err := syscall.Kill(first, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if second := f.next(t).Hello().PID; second == first {
		t.Errorf("attached again to the stopped proxy %d", first)
	}
}

// A proxy that answers every probe is left alone.
func TestProbedProxyIsLeftAlone(t *testing.T) {
	f := supervisePatiently(t, t.TempDir(), proxyBinary(t, "good"), time.Second)
	l := f.next(t)
	select {
	case <-l.Done():
		t.Error("the link to a proxy that answers has ended")
	case <-time.After(3500 * time.Millisecond):
	}
}

func TestMissingBinary(t *testing.T) {
	dir := t.TempDir()
	f := supervise(t, dir, filepath.Join(dir, "nothing"))
	deadline := time.Now().Add(5 * time.Second)
	for {
		if state, why := f.s.State(); state == Waiting {
			if !errors.Is(why, os.ErrNotExist) {
				t.Errorf("waiting because of %v", why)
			}
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the supervisor never waits")
		}
	}
}

func TestCalls(t *testing.T) {
	dir := t.TempDir()
	f := supervise(t, dir, proxyBinary(t, "good"))
	l := f.next(t)
	ctx := t.Context()
	if text, err := l.Stats(ctx); err != nil || text != "up 1\n" {
		t.Errorf("Stats: %q, %v", text, err)
	}
	if _, err := l.Call(ctx, &node.Message{Pod: &node.Pod{Cookie: 1}}); err == nil || !strings.Contains(err.Error(), "no such pod") {
		t.Errorf("a refusal came back as %v", err)
	}
	// Requests may be on their way together, and each has its own answer.
	first, err := l.Send(&node.Message{Stats: &node.StatsRequest{}})
	if err != nil {
		t.Fatal(err)
	}
	second, err := l.Send(&node.Message{Pod: &node.Pod{Cookie: 1}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := second.Wait(ctx); err == nil || !strings.Contains(err.Error(), "no such pod") {
		t.Errorf("the second of two answers: %v", err)
	}
	if ack, err := first.Wait(ctx); err != nil || ack.Stats != "up 1\n" {
		t.Errorf("the first of two answers: %+v, %v", ack, err)
	}
	// A pod may have drained before anybody asked to be told.
	if _, err := l.Call(ctx, &node.Message{Remove: &node.Remove{Cookie: 7, Drain: true}}); err != nil {
		t.Fatal(err)
	}
	asked := make(chan *node.Lookup, 2)
	l.OnLookup(func(q *node.Lookup) { asked <- q })
	got := make(chan uint64, 2)
	l.OnDrained(func(cookie uint64) { got <- cookie })
	if _, err := l.Call(ctx, &node.Message{Remove: &node.Remove{Cookie: 8, Drain: true}}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		select {
		case c := <-got:
			if c != 7 && c != 8 {
				t.Errorf("drained %d", c)
			}
		case <-time.After(5 * time.Second):
			t.Fatal("a drained pod was not reported")
		}
	}
	for _, want := range []string{"10.0.0.7:80", "10.0.0.8:80"} {
		if q := <-asked; len(q.Add) != 1 || q.Add[0].String() != want {
			t.Errorf("asked for %+v, want %s", q, want)
		}
	}
	l.Close()
	if _, err := l.Stats(ctx); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v, want ErrClosed", err)
	}
	if f.next(t).Hello().PID != l.Hello().PID {
		t.Error("a lost link ended the proxy")
	}
}

func TestKillSparesOthers(t *testing.T) {
	dir := t.TempDir()
	if err := Kill(dir, time.Second); err != nil {
		t.Errorf("no record: %v", err)
	}
	// A record whose process number now belongs to somebody else: this test.
	if err := os.WriteFile(filepath.Join(dir, pidName), []byte(`{"pid":`+strconv.Itoa(os.Getpid())+`,"start":"1"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Kill(dir, time.Second); err != nil {
		t.Errorf("reused number: %v", err)
	}
	if _, err := Running(dir); !errors.Is(err, ErrNone) {
		t.Errorf("Running: %v, want ErrNone", err)
	}
}

// A proxy that others start is waited for, found, and not killed.
func TestProxyOfAnotherContainer(t *testing.T) {
	dir := t.TempDir()
	f := supervise(t, dir, "")
	deadline := time.Now().Add(10 * time.Second)
	for {
		state, why := f.s.State()
		if state == Waiting && strings.Contains(why.Error(), "its container starts it") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s, %v", state, why)
		}
	}
	pid, _, err := start(proxyBinary(t, "good"), dir, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = Kill(dir, time.Second) })
	if l := f.next(t); l.Hello().PID != pid || f.s.Starts() != 0 {
		t.Errorf("found %d instead of %d after %d starts", l.Hello().PID, pid, f.s.Starts())
	}
	f.s.end()
	if _, err := Running(dir); err != nil {
		t.Errorf("after its end was due: %v", err)
	}
}
