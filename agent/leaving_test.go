package agent

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"conduit.io/conduit/agent/podnet"
	"conduit.io/conduit/agent/proxylink"
	"conduit.io/conduit/api/podapi"
	"conduit.io/conduit/loader"
	"conduit.io/conduit/tests/tcptest"
)

// try runs f in a pod's network namespace: sockets stay where they were made.
func (w *world) try(pod string, f func() error) error {
	ns, err := podnet.Open(w.netns(pod))
	if err == nil {
		defer ns.Close()
		err = loader.Inside(ns.File, f)
	}
	return err
}

// inside is try for what must not fail.
func (w *world) inside(pod string, f func() error) {
	w.t.Helper()
	if err := w.try(pod, f); err != nil {
		w.t.Fatal(err)
	}
}

// echo has pod b greet, and answer every line with itself: a protocol that the mesh does not know.
func (w *world) echo() {
	w.t.Helper()
	var l net.Listener
	w.inside("b", func() (err error) { l, err = net.Listen("tcp", ":9100"); return err })
	tcptest.ServeOn(w.t, l, func(c net.Conn) {
		fmt.Fprintln(c, "hello")
		_, _ = io.Copy(c, c) // until the client goes
	})
}

// line is a connection of pod a's to echo.
type line struct {
	net.Conn
	read *bufio.Reader
}

func (w *world) dialEcho() *line {
	w.t.Helper()
	l := &line{}
	w.inside("a", func() (err error) { l.Conn, err = net.DialTimeout("tcp", "10.99.0.3:9100", 5*time.Second); return err })
	w.t.Cleanup(func() { l.Close() })
	l.read = bufio.NewReader(l)
	if err := l.expect("hello\n"); err != nil {
		w.t.Fatal(err)
	}
	return l
}

func (l *line) expect(want string) error {
	if err := l.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	got, err := l.read.ReadString('\n')
	if err == nil && got != want {
		err = fmt.Errorf("got %q", got)
	}
	return err
}

func (l *line) ask(what string) error {
	if _, err := fmt.Fprintln(l, what); err != nil {
		return err
	}
	return l.expect(what + "\n")
}

// follow starts a proxy that takes the place of the node's, which keeps its connections, and returns the former's process ID.
func (w *world) follow() (former int) {
	w.t.Helper()
	former, err := proxylink.Running(w.run())
	if err != nil {
		w.t.Fatal(err)
	}
	next := exec.Command(filepath.Join(w.bin, "conduit-proxy"), "--link="+proxylink.Socket(w.run()), "--follow-grace=60s")
	next.Stdout, next.Stderr = &w.log, &w.log
	if err := next.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		_ = syscall.Kill(former, syscall.SIGKILL) // it has perhaps ended
		next.Process.Kill()
		_ = next.Wait() // it was killed
	})
	w.eventually("another proxy has the socket", func() error {
		l, err := proxylink.Connect(proxylink.Socket(w.run()))
		if err != nil {
			return err
		}
		defer l.Close()
		if pid := l.Hello().PID; pid != next.Process.Pid {
			return fmt.Errorf("it is %d's", pid)
		}
		return nil
	})
	return former
}

// A pod that leaves the mesh keeps what its open connections need, also where these are of a proxy that another one has followed: the
// follower knows nothing of them.
func TestConnectionsOfAFormerProxyOutliveTheirPodsLeave(t *testing.T) {
	w := newWorld(t)
	w.write("enabled", "")
	w.start()
	for _, p := range []string{"a", "b"} {
		w.must(podapi.Add, p, true)
	}
	w.echo()
	first := w.dialEcho()
	w.kill()
	w.follow()
	w.start()
	second := w.dialEcho() // by the proxy that follows
	if n := w.pod("a").Counters.Steered; n != 2 {
		t.Fatalf("%d connections were steered, want 2", n)
	}
	w.write("disabled", "")
	w.eventually("the kernel steers a no more", func() error {
		if w.pod("a").Enrolled || w.pod("b").Enrolled {
			return errors.New("still enrolled")
		}
		return nil
	})
	for what, l := range map[string]*line{"of the proxy": second, "of the one before": first} {
		if err := l.ask("left"); err != nil {
			t.Errorf("a connection %s, after the pod has left: %v", what, err)
		}
	}
	second.Close() // the proxy says that it has no more
	w.kill()       // and an agent that has not heard of it begins
	w.start()
	if err := first.ask("still there"); err != nil {
		t.Errorf("a connection of the former proxy: %v", err)
	}
	if p := w.pod("a"); !p.Leaving || w.leftovers("a") == 0 {
		t.Errorf("pod a has left although its connection is open: %+v", p)
	}
	first.Close()
	w.eventually("both have left", func() error {
		for _, p := range []string{"a", "b"} {
			if n := w.leftovers(p); n > 0 || w.pod(p).Leaving {
				return fmt.Errorf("%d rules and routes left in %s", n, p)
			}
		}
		return nil
	})
}

// A pod that is to leave goes on being reached by mTLS for a while, for those that have not heard of it yet, and from the same moment on by
// those that have, in plaintext, whatever its mode was.
func TestPodThatLeavesIsReachedBothWays(t *testing.T) {
	w := newWorld(t)
	w.write("enabled", "conduit.io/mtls-mode: STRICT")
	w.start()
	for _, p := range []string{"a", "b"} {
		w.must(podapi.Add, p, true)
	}
	w.serve()
	stranger := w.client("sw", false)
	if _, err := get(stranger, "http://10.99.0.3:8080/"); err == nil {
		t.Fatal("a STRICT pod takes plaintext")
	}
	mesh := func() error {
		return w.try("sw", func() error {
			c, err := net.DialTimeout("tcp", "10.99.0.3:15008", 5*time.Second)
			if err == nil {
				err = c.Close()
			}
			return err
		})
	}
	w.write("disabled", "conduit.io/mtls-mode: STRICT")
	w.eventually("it takes plaintext", func() error { _, err := get(stranger, "http://10.99.0.3:8080/"); return err })
	if err := mesh(); err != nil {
		t.Errorf("by mTLS, while word goes round: %v", err)
	}
	w.eventually("it is reached by mTLS no more", func() error {
		if mesh() == nil {
			return errors.New("it is")
		}
		return nil
	})
	if _, err := get(stranger, "http://10.99.0.3:8080/"); err != nil {
		t.Errorf("in plaintext, outside of the mesh: %v", err)
	}
}
