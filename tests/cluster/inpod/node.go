package inpod

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"conduit.io/conduit/cli/lab"
	"conduit.io/conduit/tests/cluster/kubetest"
	"conduit.io/conduit/tests/cluster/machine"
)

// adminAddr is where agents of a cluster answer, on their nodes.
const adminAddr = "127.0.0.1:4191"

// Node is a node of a cluster, with an agent and a proxy of Conduit's.
type Node struct {
	machine *machine.Machine
	group   string // part of the cgroups of all that runs on it
	client  *http.Client
}

// NodeOf is node i, from 1.
func NodeOf(c *kubetest.Cluster, i int) *Node {
	n := &Node{machine: c.Node(i), group: c.Name() + "/" + c.Node(i).Name() + "/"}
	transport := &http.Transport{DisableKeepAlives: true, DialContext: lab.OpenNetns(n.machine.NetNS()).DialContext}
	n.client = &http.Client{Transport: transport}
	return n
}

// Name is the node's name.
func (n *Node) Name() string { return n.machine.Name() }

// PinDir is where the agent pins its programs, in the host's file system.
func (n *Node) PinDir() string {
	return fmt.Sprintf("/proc/%d/root/sys/fs/bpf/conduit", n.machine.PID())
}

// Get asks the node's agent.
func (n *Node) Get(ctx context.Context, path string) (status int, body []byte, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+adminAddr+path, nil)
	if err != nil {
		return 0, nil, err
	}
	resp, err := n.client.Do(req)
	if err != nil {
		return 0, nil, fmt.Errorf("ask the agent of %s: %w", n.Name(), err)
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(resp.Body)
	return resp.StatusCode, body, err
}

// ProxyPID is the process ID, on the host, of the node's proxy; 0: there is none.
func (n *Node) ProxyPID() (int, error) {
	names, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		return 0, err
	}
	for _, file := range names {
		if comm, err := os.ReadFile(file); err != nil || string(comm) != "conduit-proxy\n" {
			continue // another, or one that has just ended
		}
		dir := filepath.Dir(file)
		groups, err := os.ReadFile(filepath.Join(dir, "cgroup"))
		if err == nil && strings.Contains(string(groups), n.group) {
			return strconv.Atoi(filepath.Base(dir))
		}
	}
	return 0, nil
}
