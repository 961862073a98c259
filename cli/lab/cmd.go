package lab

import (
	"bytes"
	"context"
	"errors"
	"os/exec"
	"syscall"
	"time"
)

// Cmd is an exec.Cmd that starts its process inside a network namespace. The methods below replace those of
// exec.Cmd; the fields (Env, Dir, Stdin, Stdout ...) are used as usual.
type Cmd struct {
	*exec.Cmd
	ns *Netns
}

// Command prepares a process that runs inside the namespace, in its own process group. When ctx ends the group gets
// SIGKILL.
func (n *Netns) Command(ctx context.Context, name string, args ...string) *Cmd {
	c := exec.CommandContext(ctx, name, args...)
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c.Cancel = func() error { return syscall.Kill(-c.Process.Pid, syscall.SIGKILL) }
	c.WaitDelay = 2 * time.Second // a grandchild that keeps the pipes open must not block Wait
	return &Cmd{Cmd: c, ns: n}
}

// Start is exec.Cmd.Start.
func (c *Cmd) Start() error { return c.ns.InNetns(c.Cmd.Start) }

// Run is exec.Cmd.Run.
func (c *Cmd) Run() error {
	if err := c.Start(); err != nil {
		return err
	}
	return c.Wait()
}

// Output is exec.Cmd.Output, without collecting standard error in the ExitError.
func (c *Cmd) Output() ([]byte, error) {
	if c.Stdout != nil {
		return nil, errors.New("lab: Stdout already set")
	}
	var out bytes.Buffer
	c.Stdout = &out
	err := c.Run()
	return out.Bytes(), err
}

// CombinedOutput is exec.Cmd.CombinedOutput.
func (c *Cmd) CombinedOutput() ([]byte, error) {
	if c.Stdout != nil || c.Stderr != nil {
		return nil, errors.New("lab: Stdout or Stderr already set")
	}
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	err := c.Run()
	return out.Bytes(), err
}
