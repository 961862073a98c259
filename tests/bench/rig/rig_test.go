package rig

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"conduit.io/conduit/tests/leak"
)

// childEnv makes the test binary the program that it tests with.
const childEnv = "CONDUIT_RIG_CHILD"

func TestMain(m *testing.M) {
	switch os.Getenv(childEnv) {
	case "":
		os.Exit(leak.Main(m))
	case "parent": // starts a process, says which, and waits to be killed
		r := must(Open(must(PickCores()), false))
		p := must(r.Proxy("sleeper", []string{"sleep", "600"}, nil))
		fmt.Println(p.PID(), r.Dir)
		waitForEver()
	case "burn": // uses 100 ms of processor time on a thread, says so by listening, and waits
		for start := time.Now(); time.Since(start) < 100*time.Millisecond; {
		}
		l := must(net.Listen("tcp", os.Args[1]))
		defer l.Close()
		waitForEver()
	}
}

// waitForEver waits for a signal that is not handled. An empty select would at times be taken for a deadlock.
func waitForEver() {
	never := make(chan os.Signal, 1)
	signal.Notify(never, syscall.SIGUSR2)
	<-never
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func open(t *testing.T) *Rig {
	t.Helper()
	r, err := Open(must(PickCores()), false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

func TestDivide(t *testing.T) {
	for _, tc := range []struct {
		own  []int
		want Cores
	}{
		{[]int{4}, Cores{4, []int{4}}},
		{[]int{0, 1}, Cores{1, []int{0}}},
		{[]int{0, 1, 2, 3}, Cores{3, []int{1, 2}}},
	} {
		if got := divide(tc.own); got.Proxy != tc.want.Proxy || !slices.Equal(got.Load, tc.want.Load) {
			t.Errorf("divide(%v) = %v, want %v", tc.own, got, tc.want)
		}
	}
}

func TestProcessIsPinnedAndMeasured(t *testing.T) {
	r := open(t)
	addr := must(NewPorts().Addr())
	p, err := r.Proxy("burn", []string{os.Args[0], addr}, []string{childEnv + "=burn"})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Ready(t.Context(), addr); err != nil {
		t.Fatal(err)
	}
	status := string(must(os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))))
	if want := "Cpus_allowed_list:\t" + strconv.Itoa(r.Cores.Proxy) + "\n"; !strings.Contains(status, want) {
		t.Errorf("the process is not pinned to core %d:\n%s", r.Cores.Proxy, status)
	}
	// 100 ms of wall time are fewer of processor time on a busy machine, but not none.
	if cpu, err := CPU(p); err != nil || cpu < 5*time.Millisecond {
		t.Errorf("processor time %v, %v", cpu, err)
	}
	if m, err := Resident(p); err != nil || m.RSS < 1000 || m.Anon < 100 || m.Anon > m.RSS {
		t.Errorf("memory %+v, %v", m, err)
	}
	Stop(p)
	if _, err := CPU(p); err == nil {
		t.Error("a process that has ended still has processor time")
	}
}

func TestFailureShowsWhatTheProgramSaid(t *testing.T) {
	r := open(t)
	p := must(r.Proxy("bad", []string{"sh", "-c", "echo no such option >&2; exit 3"}, nil))
	err := p.Ready(t.Context(), must(NewPorts().Addr()))
	if !errors.Is(err, errGone) || !strings.Contains(err.Error(), "no such option") {
		t.Errorf("error %v", err)
	}
	if _, err := r.Generate(t.Context(), []string{"sh", "-c", "echo wrong >&2; exit 1"}); err == nil || !strings.Contains(err.Error(), "wrong") {
		t.Errorf("error %v", err)
	}
	if out, err := r.Generate(t.Context(), []string{"echo", "fine"}); err != nil || string(out) != "fine\n" {
		t.Errorf("%q, %v", out, err)
	}
}

func TestGenerateEndsWithItsContext(t *testing.T) {
	r := open(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := r.Generate(ctx, []string{"sleep", "600"}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
}

func TestStopEndsDescendants(t *testing.T) {
	r := open(t)
	// The shell ignores SIGTERM and has a child.
	p := must(r.Proxy("stubborn", []string{"sh", "-c", "trap '' TERM; sleep 600 & echo $!; wait; wait"}, nil))
	var pids []int
	eventually(t, func() bool { pids = tree(p.PID()); return len(pids) == 2 })
	Stop(p)
	eventually(t, func() bool { return !running(pids[1]) })
}

func TestChildrenDieWithTheProgram(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"=parent")
	out := must(cmd.StdoutPipe())
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	var dir string
	if _, err := fmt.Fscan(out, &pid, &dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if !running(pid) || filepath.Dir(dir) != filepath.Clean(os.TempDir()) {
		t.Fatalf("process %d does not run, or %s is not a temporary directory", pid, dir)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	eventually(t, func() bool { return !running(pid) })
}

// running: the process exists and is not a zombie that nobody has waited for yet.
func running(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(stat), ") Z ") && syscall.Kill(pid, 0) == nil
}

func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Fatal("it does not become so")
		}
		<-time.After(5 * time.Millisecond)
	}
}

func TestParseStatus(t *testing.T) {
	got := parseStatus([]byte("Name:\tx\nVmRSS:\t    6100 kB\nRssAnon:\t     900 kB\nRssFile:\t 5200 kB\n"))
	if want := (Memory{RSS: 6100, Anon: 900}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}
