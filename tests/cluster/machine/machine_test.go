package machine

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The test binary is the init, too: Start runs it under this argument's name.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && (os.Args[1] == argJoin || os.Args[1] == argRun || os.Args[1] == argExec) {
		os.Exit(Init(os.Args[1:]))
	}
	if len(os.Args) > 1 && os.Args[1] == argEcho {
		os.Exit(echo())
	}
	if dir := os.Getenv("MACHINE_TEST_OWNER"); dir != "" {
		os.Exit(ownAndWait(dir))
	}
	os.Exit(m.Run())
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: needs root (namespaces and cgroups)")
	}
}

func testConfig(dir string) Config {
	return Config{Name: "box", Dir: dir, Group: "conduit-machine-test/" + filepath.Base(filepath.Dir(dir)), Owned: true,
		Sysctls: map[string]string{"net/ipv4/ip_forward": "1"}}
}

// shortDir is a directory whose path leaves room for a socket's name, and which is not a tmpfs.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "mt")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "m")
}

func start(t *testing.T, c Config) *Machine {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	m, err := Start(self, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Stop(); err != nil {
			t.Error(err)
		}
	})
	return m
}

func run1(t *testing.T, m *Machine, script string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	out, err := m.Run(ctx, "sh", "-c", script)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

func TestMachineIsAWorldOfItsOwn(t *testing.T) {
	needRoot(t)
	hostName, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	m := start(t, testConfig(shortDir(t)))
	for script, want := range map[string]string{
		"hostname":                          "box",
		"cat /proc/1/comm":                  "machine.test",
		"cat /proc/sys/net/ipv4/ip_forward": "1",
		"cat /proc/sys/vm/overcommit_memory /proc/sys/kernel/panic_on_oops | paste -sd' '": "1 1",
		"ls /sys/class/net": "lo",
		"ls /etc/cni/net.d /sys/fs/bpf | grep -v -e : -e debug":                                                  "",
		"cat /proc/self/cgroup | cut -d: -f3 | sort -u":                                                          "/" + systemGroup,
		"touch /usr/x 2>/dev/null; echo $?":                                                                      "1",
		"touch /host/x 2>/dev/null; echo $?":                                                                     "1",
		"mount -t tmpfs x /mnt 2>/dev/null || mkdir /mnt && mount -t tmpfs x /mnt; findmnt -no PROPAGATION /mnt": "shared",
	} {
		if got := run1(t, m, script); got != want {
			t.Errorf("inside, %s: %q, want %q", script, got, want)
		}
	}
	if now, _ := os.Hostname(); now != hostName {
		t.Errorf("the host is called %q now", now)
	}
	if data, err := os.ReadFile("/proc/self/mounts"); err != nil || strings.Contains(string(data), m.cfg.Dir) {
		t.Errorf("the host sees the machine's mounts: %v\n%s", err, data)
	}
	run1(t, m, "echo hello > /var/lib/file")
	if data, err := os.ReadFile(m.Path("/var/lib/file")); err != nil || string(data) != "hello\n" {
		t.Errorf("the machine's file on the host: %q, %v", data, err)
	}
}

func TestForward(t *testing.T) {
	needRoot(t)
	c := testConfig(shortDir(t))
	c.Forward = "127.0.0.1:7007"
	m := start(t, c)
	if err := m.StartDaemon(Daemon{Name: "echo", Argv: []string{initBin, argEcho}}); err != nil {
		t.Fatal(err)
	}
	until(t, "an echo through the listener on the host", func() error {
		conn, err := net.Dial("tcp", m.Addr())
		if err != nil {
			return err
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, "over"); err != nil {
			return err
		}
		if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
			return err
		}
		got, err := io.ReadAll(conn)
		if err == nil && string(got) != "over" {
			err = errors.New("got " + strconv.Quote(string(got)))
		}
		return err
	})
}

func TestDaemons(t *testing.T) {
	needRoot(t)
	m := start(t, testConfig(shortDir(t)))
	pid := func() Status {
		t.Helper()
		list, err := m.Daemons()
		if err != nil {
			t.Fatal(err)
		}
		if len(list) != 1 {
			t.Fatalf("daemons: %+v", list)
		}
		return list[0]
	}
	if err := m.StartDaemon(Daemon{Name: "sleeper", Argv: []string{"sh", "-c", `echo "$GREETING"; exec sleep 1000`}, Env: []string{"GREETING=hi"}}); err != nil {
		t.Fatal(err)
	}
	greeted := func(times int) { // it has run that often, up to its sleep
		t.Helper()
		until(t, "the daemon has greeted", func() error {
			log, err := os.ReadFile(m.Log("sleeper"))
			if err == nil && string(log) != strings.Repeat("hi\n", times) {
				err = errors.New("log " + strconv.Quote(string(log)))
			}
			return err
		})
	}
	greeted(1)
	first := pid()
	run1(t, m, "kill -9 "+strconv.Itoa(first.PID))
	until(t, "the killed daemon is back", func() error {
		if s := pid(); s.PID == 0 || s.PID == first.PID || s.LastExit != "killed" {
			return errors.New("not yet")
		}
		return nil
	})
	greeted(2)
	if err := m.StopDaemon("sleeper"); err != nil {
		t.Fatal(err)
	}
	if s := pid(); s.PID != 0 || s.LastExit != "terminated" {
		t.Errorf("after StopDaemon: %+v", s)
	}
	if err := m.RestartDaemon("sleeper"); err != nil {
		t.Fatal(err)
	}
	if s := pid(); s.PID == 0 || s.Starts != 3 {
		t.Errorf("after RestartDaemon: %+v", s)
	}
	greeted(3)
	if err := m.StartDaemon(Daemon{Name: "nobody"}); err == nil {
		t.Error("a daemon without a command was started")
	}
	if err := m.StartDaemon(Daemon{Name: "missing", Argv: []string{"/no/such/program"}}); err == nil {
		t.Error("a program that is not there was started")
	}
}

func TestStopLeavesNothing(t *testing.T) {
	needRoot(t)
	dir := shortDir(t)
	before := mountsAndGroups(t)
	m := start(t, testConfig(dir))
	if err := m.StartDaemon(Daemon{Name: "parent", Argv: []string{"sh", "-c", "setsid sleep 1000 & setsid sleep 1000"}}); err != nil {
		t.Fatal(err)
	}
	run1(t, m, "mkdir -p /sys/fs/cgroup/pids/deep/deeper /sys/fs/cgroup/deep/deeper 2>/dev/null; true")
	ns, err := os.Readlink(m.NetNS())
	if err != nil {
		t.Fatal(err)
	}
	if left := processesIn(t, ns); len(left) < 2 {
		t.Fatalf("processes inside: %v, the test looks at the wrong ones", left)
	}
	if err := m.Stop(); err != nil {
		t.Fatal(err)
	}
	if left := processesIn(t, ns); len(left) > 0 {
		t.Errorf("processes left: %v", left)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory is left: %v", err)
	}
	if after := mountsAndGroups(t); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	if _, err := Open(dir); err == nil {
		t.Error("a stopped machine was opened")
	}
}

func TestStartThatFailsLeavesNothing(t *testing.T) {
	needRoot(t)
	dir := shortDir(t)
	before := mountsAndGroups(t)
	c := testConfig(dir)
	c.Binds = []Bind{{Host: "/no/such/file", Inside: "/x"}}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Start(self, c); err == nil || !strings.Contains(err.Error(), "/no/such/file") {
		t.Fatalf("error %v: does not say what is wrong", err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory is left: %v", err)
	}
	if after := mountsAndGroups(t); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

func TestMachineDiesWithItsOwner(t *testing.T) {
	needRoot(t)
	dir := shortDir(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	owner := exec.Command(self)
	owner.Env = append(os.Environ(), "MACHINE_TEST_OWNER="+dir)
	owner.Stderr = os.Stderr
	out, err := owner.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := owner.Start(); err != nil {
		t.Fatal(err)
	}
	if word, err := io.ReadAll(io.LimitReader(out, 2)); err != nil || string(word) != "up" {
		t.Fatalf("the owner says %q, %v", word, err)
	}
	m, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := owner.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	owner.Wait()
	until(t, "the machine is gone", func() error {
		if err := unix.Kill(m.PID(), 0); err == nil && MarkedPID(filepath.Join(dir, markFile)) != 0 {
			return errors.New("it lives")
		}
		return nil
	})
	if err := Remove(dir); err != nil {
		t.Fatal(err)
	}
	if groups := mountsAndGroups(t); strings.Contains(groups, m.cfg.Group) {
		t.Errorf("cgroups are left:\n%s", groups)
	}
}

const argEcho = "echo"

// echo is a server that sends back what it gets.
func echo() int {
	l, err := net.Listen("tcp", "127.0.0.1:7007")
	if err != nil {
		os.Stderr.WriteString(err.Error())
		return 1
	}
	for {
		conn, err := l.Accept()
		if err != nil {
			return 1
		}
		go func() {
			defer conn.Close()
			io.Copy(conn, conn)
		}()
	}
}

// ownAndWait is a process that owns a machine and does not end by itself.
func ownAndWait(dir string) int {
	self, err := os.Executable()
	if err == nil {
		os.Unsetenv("MACHINE_TEST_OWNER")
		_, err = Start(self, testConfig(dir))
	}
	if err != nil {
		os.Stderr.WriteString(err.Error())
		return 1
	}
	os.Stdout.WriteString("up")
	select {}
}

func mountsAndGroups(t *testing.T) string {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	groups, err := exec.Command("find", cgroupFS, "-type", "d", "-path", "*conduit-machine-test*").Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(mounts) + string(groups)
}

func processesIn(t *testing.T, ns string) []string {
	t.Helper()
	links, err := filepath.Glob("/proc/[0-9]*/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	var in []string
	for _, link := range links {
		if have, err := os.Readlink(link); err == nil && have == ns {
			in = append(in, link)
		}
	}
	return in
}

func until(t *testing.T, what string, ok func() error) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited 20 s for this: %s: %v", what, err)
		}
		<-tick.C
	}
}
