package apiserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// ErrMissing is wrapped when a program is not there.
var ErrMissing = errors.New("run 'make kubernetes', which builds it")

func find(name string) (string, error) {
	variable := "TEST_ASSET_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
	if p := os.Getenv(variable); p != "" {
		return p, nil
	}
	cache := os.Getenv("CONDUIT_CLUSTER_CACHE")
	if dir, err := os.UserCacheDir(); cache == "" && err == nil {
		cache = filepath.Join(dir, "conduit-cluster")
	}
	if built, _ := filepath.Glob(filepath.Join(cache, "kubernetes-*", name)); len(built) > 0 {
		return slices.Max(built), nil
	}
	p, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("needs %s: %w, or set %s", name, ErrMissing, variable)
	}
	return p, nil
}

// process is a program that was started; done is closed when it has ended.
type process struct {
	cmd  *exec.Cmd
	done chan struct{}
}

func (p *process) end() {
	if p == nil {
		return
	}
	_ = p.cmd.Process.Kill() // it may have ended
	<-p.done
}

func run(log, program string, args ...string) (*process, error) {
	f, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	p := &process{cmd: exec.CommandContext(context.Background(), program, args...), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = f, f
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		_ = p.cmd.Wait() // killed: its status says so
		close(p.done)
	}()
	return p, nil
}

// tail is the end of a log.
func tail(path string) string {
	b, _ := os.ReadFile(path)
	lines := bytes.Split(b, []byte("\n"))
	return string(bytes.Join(lines[max(0, len(lines)-20):], []byte("\n")))
}
