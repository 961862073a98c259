package kubelet

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"conduit.io/conduit/loader"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// What the test binary is when it is started again: the tests, in a network namespace and a cgroup of their own; a process that
// serves addresses; an agent.
const (
	cgroupEnv = "CDT_KUBELET_TEST_CGROUP"
	serveEnv  = "CDT_KUBELET_TEST_SERVE"
	watchEnv  = "CDT_KUBELET_TEST_WATCH"
)

func TestMain(m *testing.M) {
	switch {
	case os.Getenv(serveEnv) != "":
		os.Exit(serve(strings.Fields(os.Getenv(serveEnv))))
	case os.Getenv(watchEnv) != "":
		os.Exit(watch(os.Getenv(watchEnv)))
	case os.Getenv(cgroupEnv) != "" || os.Geteuid() != 0:
		os.Exit(m.Run())
	}
	code, err := apart()
	if err != nil {
		fmt.Fprintln(os.Stderr, "kubelet tests:", err)
		os.Exit(1)
	}
	os.Exit(code)
}

// apart runs the tests in a process that is alone in its network namespace and cgroup.
func apart() (int, error) {
	root := "/sys/fs/cgroup"
	if _, err := os.Stat(root + "/unified/cgroup.procs"); err == nil {
		root += "/unified"
	}
	group := filepath.Join(root, fmt.Sprintf("cdt-kubelet-test-%d", os.Getpid()))
	if err := os.Mkdir(group, 0o755); err != nil {
		return 0, err
	}
	defer os.Remove(group)
	dir, err := os.Open(group)
	if err != nil {
		return 0, err
	}
	defer dir.Close()
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), cgroupEnv+"="+group)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), nil
	}
	return 0, err
}

// serve accepts on addresses until its standard input ends. An address that begins with ! is listened on, and nothing accepted.
func serve(addrs []string) int {
	for _, addr := range addrs {
		name, mute := strings.CutPrefix(addr, "!")
		var lc net.ListenConfig
		l, err := lc.Listen(context.Background(), "tcp", name)
		if err != nil {
			fmt.Println(err)
			return 1
		}
		if mute {
			continue
		}
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				c.Close()
			}
		}()
	}
	fmt.Println("serving")
	io.Copy(io.Discard, os.Stdin)
	return 0
}

// watch is an agent that looks once. The data path is the test's: its descriptor is not this process's to open.
func watch(port string) int {
	n, err := strconv.ParseUint(port, 10, 16)
	if err == nil {
		var d *loader.Datapath
		if d, err = loader.Open(loader.Config{BPFFS: os.Getenv("BPFFS"), Cgroup: os.Getenv(cgroupEnv)}); err == nil {
			err = New(uint16(n), d, slog.New(slog.DiscardHandler)).look(context.Background())
			d.Close()
		}
	}
	fmt.Println(err)
	return 0
}

// open opens a data path in which nothing is steered, removed at the end.
func open(t *testing.T) (d *loader.Datapath, bpffs string) {
	t.Helper()
	if os.Getenv(cgroupEnv) == "" {
		t.Skip("SKIPPED: needs root: the kernel is asked")
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		t.Fatal(err)
	}
	bpffs = fmt.Sprintf("/sys/fs/bpf/cdt-kubelet-test-%d-%s", os.Getpid(), t.Name())
	d, err = loader.Open(loader.Config{BPFFS: bpffs, Cgroup: os.Getenv(cgroupEnv)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		d.Close()
		if err := loader.Remove(bpffs); err != nil {
			t.Error(err)
		}
	})
	return d, bpffs
}

// process starts one that serves addresses; stop ends it.
func process(t *testing.T, addrs string, attr syscall.SysProcAttr) (pid int, stop func()) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), serveEnv+"="+addrs)
	cmd.Stderr = os.Stderr
	attr.Pdeathsig = syscall.SIGKILL
	cmd.SysProcAttr = &attr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	stop = func() { in.Close(); cmd.Wait() }
	t.Cleanup(stop)
	said, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || said != "serving\n" {
		t.Fatalf("%s: %q, %v", addrs, said, err)
	}
	return cmd.Process.Pid, stop
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}
