package kubelet

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"conduit.io/conduit/agent/proctcp"
	"conduit.io/conduit/api/kernel"
	"conduit.io/conduit/loader"

	"golang.org/x/sys/unix"
)

const testPort = 10250

// vouched is the process that the kernel vouches for in the tests' namespace.
func vouched(t *testing.T, w *Watcher) (kernel.Process, bool) {
	t.Helper()
	p, ok, err := w.kernel.Kubelet(w.cookie)
	if err != nil {
		t.Fatal(err)
	}
	return p, ok
}

func watcher(d *loader.Datapath) *Watcher { return New(testPort, d, slog.New(slog.DiscardHandler)) }

// The process that serves the port is found wherever it listens, and again when another takes its place.
func TestKubeletIsFound(t *testing.T) {
	d, _ := open(t)
	w := watcher(d)
	if err := w.look(t.Context()); !errors.Is(err, errNone) {
		t.Fatalf("no kubelet: %v", err)
	}
	w.note(w.look(t.Context()))
	if w.Known() {
		t.Error("known, and there is none")
	}
	seen := map[kernel.Process]string{}
	for _, addrs := range []string{"127.0.0.1:10250", "0.0.0.0:10250", "[::]:10250", "[::1]:10250", "127.0.0.3:10250 [::1]:10250"} {
		pid, stop := process(t, addrs, syscall.SysProcAttr{})
		w.note(w.look(t.Context()))
		p, ok := vouched(t, w)
		if !ok || !w.Known() || seen[p] != "" {
			t.Errorf("%s: the kernel vouches for %+v, %v; known: %v; before: %q", addrs, p, ok, w.Known(), seen[p])
		}
		if initial(t) && int(p.Tgid) != pid {
			t.Errorf("%s: the kernel vouches for pid %d, want %d", addrs, p.Tgid, pid)
		}
		seen[p] = addrs
		stop()
		w.note(w.look(t.Context()))
		if w.Known() {
			t.Errorf("%s: known, although it has ended", addrs)
		}
		if after, ok := vouched(t, w); !ok || after != p {
			t.Errorf("%s: after its end the kernel vouches for %+v, %v", addrs, after, ok)
		}
	}
}

// initial reports whether the test is in the kernel's first PID namespace, whose numbers are the kernel's.
func initial(t *testing.T) bool {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat("/proc/self/ns/pid", &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino == 0xeffffffc // PROC_PID_INIT_INO of linux/proc_ns.h
}

// Nobody becomes the kubelet by taking its port, if not the node's root.
func TestStrangersAreNotTheKubelet(t *testing.T) {
	d, _ := open(t)
	for _, c := range []struct {
		name, addrs, want string
		attr              syscall.SysProcAttr
	}{
		{"of another user", "0.0.0.0:10250", "belongs to uid 65534", syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}},
		{"in a container", "0.0.0.0:10250", "from a container", syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := d.ForgetKubelet(); err != nil {
				t.Fatal(err)
			}
			w := watcher(d)
			process(t, c.addrs, c.attr)
			if err := w.look(t.Context()); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v; want %q", err, c.want)
			}
			if p, ok := vouched(t, w); ok {
				t.Errorf("the kernel vouches for %+v", p)
			}
		})
	}
	t.Run("two", func(t *testing.T) {
		if err := d.ForgetKubelet(); err != nil {
			t.Fatal(err)
		}
		w := watcher(d)
		process(t, "127.0.0.1:10250", syscall.SysProcAttr{})
		process(t, "127.0.0.2:10250", syscall.SysProcAttr{})
		if err := w.look(t.Context()); err == nil || !strings.Contains(err.Error(), "two processes") {
			t.Errorf("%v", err)
		}
		if p, ok := vouched(t, w); ok {
			t.Errorf("the kernel vouches for %+v", p)
		}
	})
}

// A kubelet that does not answer stays the one that it was.
func TestSilentKubelet(t *testing.T) {
	d, _ := open(t)
	w := watcher(d)
	_, stop := process(t, "127.0.0.1:10250", syscall.SysProcAttr{})
	if err := w.look(t.Context()); err != nil {
		t.Fatal(err)
	}
	before, _ := vouched(t, w)
	stop()
	process(t, "!127.0.0.1:10250", syscall.SysProcAttr{})
	if err := w.look(within(t, 200*time.Millisecond)); err == nil || !strings.Contains(err.Error(), "nobody has accepted") {
		t.Errorf("%v", err)
	}
	if p, ok := vouched(t, w); !ok || p != before {
		t.Errorf("the kernel vouches for %+v, %v", p, ok)
	}
	if _, ok, err := d.Acceptor(); ok || err != nil {
		t.Errorf("an answer was left: %v, %v", ok, err)
	}
}

// An agent in a container, as its DaemonSet has it, knows the kubelet of the node, whose processes it does not see.
func TestAgentInAContainer(t *testing.T) {
	d, bpffs := open(t)
	w := watcher(d)
	if err := w.introduce(t.Context()); err != nil {
		t.Fatal(err)
	}
	d.Close()
	process(t, "[::]:10250", syscall.SysProcAttr{})
	agent := exec.Command("/proc/self/exe")
	agent.Env = append(os.Environ(), fmt.Sprintf("%s=%d", watchEnv, testPort), "BPFFS="+bpffs)
	agent.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}
	if out, err := agent.CombinedOutput(); err != nil || string(out) != "<nil>\n" {
		t.Errorf("%s %v", out, err)
	}
	again, err := loader.Open(loader.Config{BPFFS: bpffs, Cgroup: os.Getenv(cgroupEnv)})
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	w.kernel = again
	if _, ok := vouched(t, w); !ok {
		t.Error("the kernel vouches for nobody")
	}
}

// Port 0 takes back what an earlier agent said.
func TestNoKubelet(t *testing.T) {
	d, _ := open(t)
	w := watcher(d)
	if err := w.introduce(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := d.SetKubelet(w.cookie, kernel.Process{Tgid: 1}); err != nil {
		t.Fatal(err)
	}
	New(0, d, slog.New(slog.DiscardHandler)).Run(t.Context())
	if p, ok := vouched(t, w); ok {
		t.Errorf("the kernel vouches for %+v", p)
	}
}

// Faults are logged when they are new.
func TestFaultsAreLoggedOnce(t *testing.T) {
	var log strings.Builder
	w := New(testPort, nil, slog.New(slog.NewTextHandler(&log, nil)))
	for _, err := range []error{errNone, errNone, errors.New("a"), errors.New("a"), nil, errors.New("a")} {
		w.note(err)
	}
	if n := strings.Count(log.String(), "\n"); n != 3 {
		t.Errorf("%d lines:\n%s", n, &log)
	}
}

func TestListenersAreDialled(t *testing.T) {
	for at, want := range map[string]string{
		"0.0.0.0:10250": "127.0.0.1:10250", "[::]:10250": "[::1]:10250", "192.0.2.1:10250": "192.0.2.1:10250", "[2001:db8::1]:10250": "[2001:db8::1]:10250",
	} {
		if got := (listener{addr: netip.MustParseAddrPort(at)}).dial().String(); got != want {
			t.Errorf("%s is dialled at %s, want %s", at, got, want)
		}
	}
}

// Only the sockets that listen are read, and of these only those of the port.
func TestListenersAreRead(t *testing.T) {
	file := "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n" +
		"   0: 0100007F:280A 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0 0 10 0\n" +
		"   1: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4712 1 0 100 0 0 10 0\n" +
		"   2: 0200007F:280A 0100007F:9C40 01 00000000:00000000 00:00000000 00000000     0        0 4713 1 0 20 4 30 10 -1\n" +
		"nonsense of a connection, which is never read\n"
	var got []listener
	err := proctcp.Read(strings.NewReader(file), listening(testPort, &got))
	if want := []listener{{netip.MustParseAddrPort("127.0.0.1:10250"), 4711}}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v; want %v", got, err, want)
	}
}
