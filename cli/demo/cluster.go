package demo

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"conduit.io/conduit/cli/demoapp"
	"conduit.io/conduit/cli/lab"
)

// cluster is what the demo builds. Its parts may be missing when building failed: close copes.
type cluster struct {
	lab       *lab.Lab
	meshed    bool
	nodes     [2]*lab.Node
	pods      []*lab.Pod // as placements
	processes []*process // as placements
}

// newCluster makes the directory, the switch and the nodes. The name is unique as long as this process lives.
func newCluster(binDir, pluginDir string, meshed bool) (*cluster, error) {
	l, err := lab.New(lab.Config{Name: clusterName(), PluginPath: []string{pluginDir},
		BinDir: binDir, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, err
	}
	c := &cluster{lab: l, meshed: meshed}
	for i, name := range nodeNames {
		if c.nodes[i], err = l.AddNode(name, lab.NodeConfig{Mesh: meshed, CNIVersion: cniVersion}); err != nil {
			return nil, errors.Join(err, c.close())
		}
	}
	return c, nil
}

// agents are the nodes whose figures can be read.
func (c *cluster) agents() []*lab.Node {
	if !c.meshed {
		return nil
	}
	return c.nodes[:]
}

func (c *cluster) startAgents(ctx context.Context) error {
	if err := writeObjects(c.lab); err != nil {
		return err
	}
	return atOnce(len(c.nodes), func(i int) error { return c.nodes[i].StartAgent(ctx, lab.AgentConfig{}) })
}

func (c *cluster) addPods(ctx context.Context) error {
	c.pods = make([]*lab.Pod, len(placements))
	return atOnce(len(c.nodes), func(node int) error {
		for i, p := range placements {
			if p.node != node {
				continue
			}
			pod, err := c.nodes[node].AddPod(ctx, namespace, p.name(), p.options())
			if err != nil {
				return err
			}
			c.pods[i] = pod
		}
		return nil
	})
}

// startProcesses starts the application: program is the command that becomes one of its processes.
func (c *cluster) startProcesses(ctx context.Context, program []string, rate float64) error {
	for i, place := range placements {
		targets := map[string]string{}
		for _, role := range calls[place.role] {
			targets[role] = c.target(role)
		}
		p, err := startProcess(ctx, program, place, c.pods[i], targets, rate, c.lab.Dir())
		if p != nil {
			c.processes = append(c.processes, p)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// target is a role's Service; without a mesh nothing serves that, and it is the last of the role's pods.
func (c *cluster) target(role string) string {
	if c.meshed {
		return address(role)
	}
	addr := ""
	for i, p := range placements {
		if p.role == role {
			addr = fmt.Sprintf("%s:%d", c.pods[i].IP(lab.IPv4), appPort)
		}
	}
	return addr
}

// loadgen is the process that makes the load.
func (c *cluster) loadgen() *process {
	for _, p := range c.processes {
		if p.place.role == demoapp.Loadgen {
			return p
		}
	}
	return nil
}

// close removes everything.
func (c *cluster) close() error {
	for _, p := range c.processes {
		p.end()
	}
	return c.lab.Close()
}

// atOnce runs f for 0..n-1 concurrently and waits.
func atOnce(n int, f func(i int) error) error {
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { errs[i] = f(i) })
	}
	wg.Wait()
	return errors.Join(errs...)
}
