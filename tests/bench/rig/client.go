package rig

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Client is a program on the generator's core that does what it is told, line by line: it answers each line with one.
type Client struct {
	proc *Process
	in   io.WriteCloser
	out  *bufio.Scanner
}

// Client starts argv. Close ends it.
func (r *Rig) Client(name string, argv []string) (*Client, error) {
	log, err := os.Create(filepath.Join(r.Dir, name+".log"))
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	defer log.Close()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stderr, cmd.Dir = log, r.Dir
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p, err := r.watch(r.Cores.Load[0], name, log.Name(), cmd)
	if err != nil {
		return nil, err
	}
	return &Client{proc: p, in: in, out: bufio.NewScanner(out)}, nil
}

// Ask sends a line and returns the answer. When ctx ends first, the client is ended.
func (c *Client) Ask(ctx context.Context, line string) (string, error) {
	stop := context.AfterFunc(ctx, func() { Stop(c.proc) })
	defer stop()
	if _, err := fmt.Fprintln(c.in, line); err != nil {
		return "", c.proc.fault(err)
	}
	if !c.out.Scan() {
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		<-c.proc.gone
		return "", c.proc.fault(errGone)
	}
	return strings.TrimSpace(c.out.Text()), nil
}

// Close ends the program, and with it what it holds.
func (c *Client) Close() {
	c.in.Close()
	Stop(c.proc)
}
