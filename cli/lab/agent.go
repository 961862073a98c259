package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// AgentConfig says how to start a node's agent. The zero value is good.
type AgentConfig struct {
	TrustDomain  string        // --trust-domain; empty for the agent's default
	CADir        string        // --ca-dir; empty for the lab's own, which all its agents share
	Args         []string      // more flags, last
	Env          []string      // more environment, NAME=VALUE
	ReadyTimeout time.Duration // default 30 s
}

const (
	stopTimeout      = 15 * time.Second
	uninstallTimeout = 30 * time.Second
	pollInterval     = 25 * time.Millisecond
	logTail          = 20 // lines of the agent's log in an error
)

// agentProc is a running agent; done is closed when it has ended.
type agentProc struct {
	cmd  *Cmd
	done chan struct{}
}

// StartAgent starts conduit-agent in the node's namespace and returns when it answers /readyz with 200. When it does
// not get there it is stopped, and the error has the end of its log. The agent outlives ctx.
func (n *Node) StartAgent(ctx context.Context, cfg AgentConfig) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.agent != nil && !n.agent.ended() {
		return fmt.Errorf("start agent on %s: one runs already, pid %d", n.name, n.agent.cmd.Process.Pid)
	}
	if cfg.ReadyTimeout == 0 {
		cfg.ReadyTimeout = 30 * time.Second
	}
	// A stale address would make a dead agent's port look like the new one's.
	if err := os.Remove(n.adminAddrFile()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("start agent on %s: %w", n.name, err)
	}
	p, err := n.spawnAgent(cfg)
	if err != nil {
		return fmt.Errorf("start agent on %s: %w", n.name, err)
	}
	n.agent, n.installed = p, &cfg
	ctx, cancel := context.WithTimeout(ctx, cfg.ReadyTimeout)
	defer cancel()
	if err := n.waitReady(ctx, p); err != nil {
		p.cmd.Process.Kill()
		<-p.done
		return fmt.Errorf("start agent on %s: %w; its log %s ends:\n%s", n.name, err, n.AgentLog(), tail(n.AgentLog(), logTail))
	}
	n.lab.log.Info("agent ready", "node", n.name, "pid", p.cmd.Process.Pid)
	return nil
}

func (n *Node) agentArgs(cfg AgentConfig) []string {
	caDir := cfg.CADir
	if caDir == "" {
		caDir = filepath.Join(n.lab.cfg.Dir, "ca")
	}
	args := []string{"--standalone", "--manifests", n.ManifestDir(), "--run-dir", n.RunDir(), "--bpffs", n.PinDir(),
		"--cgroup", n.lab.cfg.Cgroup, "--ca-dir", caDir, "--node-name", n.name}
	if cfg.TrustDomain != "" {
		args = append(args, "--trust-domain", cfg.TrustDomain)
	}
	return append(args, cfg.Args...)
}

func (n *Node) spawnAgent(cfg AgentConfig) (*agentProc, error) {
	logFile, err := os.OpenFile(n.AgentLog(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer logFile.Close()
	bin := filepath.Join(n.lab.cfg.BinDir, "conduit-agent")
	c := n.Command(context.Background(), bin, n.agentArgs(cfg)...)
	c.Stdout, c.Stderr = logFile, logFile
	c.Env = append(os.Environ(), cfg.Env...)
	if err := c.Start(); err != nil {
		return nil, err
	}
	p := &agentProc{cmd: c, done: make(chan struct{})}
	go func() {
		c.Wait()
		close(p.done)
	}()
	return p, nil
}

func (p *agentProc) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// waitReady polls /readyz until it says 200, the agent ends, or ctx does.
func (n *Node) waitReady(ctx context.Context, p *agentProc) error {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	last := errors.New("no answer yet")
	for {
		status, body, err := n.Get(ctx, "/readyz")
		switch {
		case err == nil && status == http.StatusOK:
			return nil
		case err != nil && ctx.Err() == nil:
			last = err
		case err == nil:
			last = fmt.Errorf("/readyz answers %d: %s", status, strings.TrimSpace(string(body)))
		}
		select {
		case <-p.done:
			return fmt.Errorf("the agent ended (%s)", p.cmd.ProcessState)
		case <-ctx.Done():
			return fmt.Errorf("it is not ready: %w (%w)", last, ctx.Err())
		case <-tick.C:
		}
	}
}

// StopAgent sends SIGTERM and waits for the agent's end. Its pods stay wired and its proxy goes on.
func (n *Node) StopAgent() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.stopAgent()
}

func (n *Node) stopAgent() error {
	p := n.agent
	if p == nil || p.ended() {
		return nil
	}
	p.cmd.Process.Signal(syscall.SIGTERM)
	timeout := time.NewTimer(stopTimeout)
	defer timeout.Stop()
	select {
	case <-p.done:
		return nil
	case <-timeout.C:
	}
	p.cmd.Process.Kill()
	<-p.done
	return fmt.Errorf("stop agent on %s: still there %v after SIGTERM, killed; its log ends:\n%s", n.name, stopTimeout, tail(n.AgentLog(), logTail))
}

// KillAgent kills the agent (SIGKILL) and waits for its end.
func (n *Node) KillAgent() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.agent == nil || n.agent.ended() {
		return fmt.Errorf("kill agent on %s: none runs", n.name)
	}
	n.agent.cmd.Process.Kill()
	<-n.agent.done
	return nil
}

// AgentPID is the running agent's process ID, or 0.
func (n *Node) AgentPID() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.agent == nil || n.agent.ended() {
		return 0
	}
	return n.agent.cmd.Process.Pid
}

// Uninstall stops the agent and removes everything it installed on the node, proxy included, by
// `conduit-agent --uninstall`. The node can start an agent again afterwards.
func (n *Node) Uninstall(ctx context.Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	err := n.stopAgent()
	if n.installed == nil {
		return err
	}
	args := append(n.agentArgs(*n.installed), "--uninstall")
	ctx, cancel := context.WithTimeout(ctx, uninstallTimeout)
	defer cancel()
	out, uerr := n.Command(ctx, filepath.Join(n.lab.cfg.BinDir, "conduit-agent"), args...).CombinedOutput()
	if uerr != nil {
		return errors.Join(err, fmt.Errorf("uninstall agent on %s: %w: %s", n.name, uerr, strings.TrimSpace(string(out))))
	}
	n.installed = nil
	if _, serr := os.Stat(n.PinDir()); serr == nil {
		err = errors.Join(err, fmt.Errorf("uninstall agent on %s: it succeeded, but %s is still there", n.name, n.PinDir()))
	}
	return err
}

// uninstall is Uninstall, and removes the pins itself when the agent did not.
func (n *Node) uninstall() error {
	err := n.Uninstall(context.Background())
	return errors.Join(err, os.RemoveAll(n.PinDir()))
}

func (n *Node) adminAddrFile() string { return filepath.Join(n.RunDir(), "admin.addr") }

// AdminAddr is the address of the agent's admin endpoint, in the node's namespace.
func (n *Node) AdminAddr() (string, error) {
	b, err := os.ReadFile(n.adminAddrFile())
	if err != nil {
		return "", fmt.Errorf("read admin address of %s: %w", n.name, err)
	}
	return strings.TrimSpace(string(b)), nil
}

// HTTPClient makes requests from inside the node's namespace; hosts must be literal addresses.
func (n *Node) HTTPClient() *http.Client { return httpClient(n.Netns) }

func httpClient(ns *Netns) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return ns.DialContext(ctx, network, addr)
		},
		DisableKeepAlives: true,
	}}
}

// Get reads a path (such as /metrics) of the agent's admin endpoint.
func (n *Node) Get(ctx context.Context, path string) (status int, body []byte, err error) {
	addr, err := n.AdminAddr()
	if err != nil {
		return 0, nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+path, nil)
	if err != nil {
		return 0, nil, err
	}
	resp, err := n.HTTPClient().Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(resp.Body)
	return resp.StatusCode, body, err
}

// tail returns the last lines of a file, for error messages.
func tail(path string, lines int) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
