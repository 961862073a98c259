package testnet_test

import (
	"context"
	"errors"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"conduit.io/conduit/cli/lab"
	"conduit.io/conduit/tests/testnet"
)

// current is the network namespace of the calling goroutine's thread.
func current(t *testing.T) string {
	t.Helper()
	name, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Error(err)
	}
	return name
}

// TestThreadsGoHome enters namespaces from many goroutines and expects no thread to stay there, the main one included.
func TestThreadsGoHome(t *testing.T) {
	n := testnet.New(t, testnet.Config{})
	home, mainHome := current(t), mainThread(t)
	spaces := []*lab.Netns{n.Switch()}
	for _, name := range []string{"a", "b"} {
		ns, err := n.NewNetns(name)
		if err != nil {
			t.Fatal(err)
		}
		spaces = append(spaces, ns)
	}
	failure := errors.New("told to fail")
	var wg sync.WaitGroup
	for i := range 60 {
		wg.Go(func() {
			inside := ""
			err := spaces[i%3].InNetns(func() error {
				inside = current(t)
				runtime.Gosched()
				if i%2 == 0 {
					return failure
				}
				return nil
			})
			if (i%2 == 0) != errors.Is(err, failure) {
				t.Errorf("call %d: error %v", i, err)
			}
			if inside == home || inside == "" {
				t.Errorf("call %d ran in %q, which is home", i, inside)
			}
			if got := current(t); got != home {
				t.Errorf("after call %d a goroutine is in %s, home is %s", i, got, home)
			}
		})
	}
	wg.Wait()
	if got := mainThread(t); got != mainHome {
		t.Errorf("the main thread is in %s, and was in %s", got, mainHome)
	}
}

func mainThread(t *testing.T) string {
	t.Helper()
	name, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// A function that never returns (Goexit, as FailNow does it) is an error, not a deadlock.
func TestInNetnsGoexit(t *testing.T) {
	n := testnet.New(t, testnet.Config{})
	if err := n.Switch().InNetns(func() error { runtime.Goexit(); return nil }); err == nil {
		t.Error("no error")
	}
}

func TestCommandRunsInside(t *testing.T) {
	n := testnet.New(t, testnet.Config{})
	ns, err := n.NewNetns("inside")
	if err != nil {
		t.Fatal(err)
	}
	var want string
	if err := ns.InNetns(func() error { want = current(t); return nil }); err != nil {
		t.Fatal(err)
	}
	out, err := ns.Command(t.Context(), "readlink", "/proc/self/ns/net").Output()
	if got := strings.TrimSpace(string(out)); err != nil || got != want {
		t.Errorf("the process is in %q, %v; want %q", got, err, want)
	}
	// The end of the context takes the process's children along.
	ctx, cancel := context.WithCancel(t.Context())
	c := ns.Command(ctx, "sh", "-c", "sleep 600 & echo started; wait")
	pipe, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := pipe.Read(make([]byte, 16)); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := c.Wait(); err == nil {
		t.Error("a killed process ended well")
	}
	testnet.Eventually(t, 5*time.Second, func(context.Context) error {
		pids, err := ns.Processes()
		if err == nil && len(pids) > 0 {
			err = errors.New("processes are left")
		}
		return err
	})
}

func TestDialNeedsLiteralAddress(t *testing.T) {
	n := testnet.New(t, testnet.Config{})
	for _, address := range []string{"localhost:80", "web.shop:80", ":80", "noport"} {
		if c, err := n.Switch().DialContext(t.Context(), "tcp", address); err == nil {
			c.Close()
			t.Errorf("dialled %s", address)
		}
	}
	if _, err := n.Switch().DialContext(t.Context(), "tcp", "[::1%lo]:9"); err == nil || strings.Contains(err.Error(), "literal") {
		t.Errorf("a literal address with a zone: %v, want a refused connection", err)
	}
}
