package testnet_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"conduit.io/conduit/cli/lab"
	"conduit.io/conduit/tests/testnet"
)

// abandonEnv turns the test binary into a process that makes a lab of that name and waits to be killed.
const abandonEnv = "CONDUIT_TEST_ABANDON"

func abandon(name string) int {
	pid, err := func() (int, error) {
		l, err := lab.New(lab.Config{Name: name, Dir: abandonDir(name)})
		if err != nil {
			return 0, err
		}
		ns, err := l.NewNetns("left")
		if err != nil {
			return 0, err
		}
		node, err := l.AddNode("one", lab.NodeConfig{})
		if err != nil {
			return 0, err
		}
		sleeper := ns.Command(context.Background(), "sleep", "600")
		if err := errors.Join(sleeper.Start(), os.Mkdir(node.PinDir(), 0o700)); err != nil {
			return 0, err
		}
		return sleeper.Process.Pid, nil
	}()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println(pid)
	io.Copy(io.Discard, os.Stdin) // for ever: the other end is the test's
	return 0
}

func abandonDir(name string) string { return filepath.Join(os.TempDir(), name) }

// TestSweep kills a process that has a lab, and removes the lab from another.
func TestSweep(t *testing.T) {
	name := testnet.New(t, testnet.Config{}).Name() + "x" // skips without root
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), abandonEnv+"="+name)
	cmd.Stderr = os.Stderr
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("the process with the lab: %v", err)
	}
	sleeper := "/proc/" + strings.TrimSpace(line)
	dir := abandonDir(name)
	if _, err := os.Stat(sleeper); err != nil || !lab.Alive(dir) {
		t.Fatalf("no process in the lab (%v), or its owner is not alive", err)
	}
	if err := lab.Sweep(name, dir, lab.DefaultBPFFS); err == nil {
		t.Error("a lab was swept from under its owner")
	}
	cmd.Process.Kill()
	cmd.Wait()
	if err := lab.Sweep(name, dir, lab.DefaultBPFFS); err != nil {
		t.Fatal(err)
	}
	if got := namespaces(t, name); len(got) != 0 {
		t.Errorf("namespaces left: %v", got)
	}
	for _, path := range []string{dir, filepath.Join(lab.DefaultBPFFS, name+"-one"), sleeper + "/ns/net"} {
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%s is left", path)
		}
	}
}
