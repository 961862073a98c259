package kube

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"conduit.io/conduit/tests/cluster/machine"
)

// baseDir has a directory for every cluster. Short, for the sockets in it; not in memory, for the containers' files.
const baseDir = "/var/tmp/conduit-cluster"

const (
	stateFile = "cluster.json"
	ownerFile = "owner" // the mark of the process that the cluster belongs to; none when it was disowned
)

// state is what another process must know of a cluster.
type state struct {
	Options  Options
	Binaries Binaries
}

// claim takes the cluster's directory for this process.
func (c *Cluster) claim() error {
	if err := os.MkdirAll(baseDir, 0o755); err != nil {
		return fmt.Errorf("start cluster: %w", err)
	}
	unlock, err := Lock(filepath.Join(baseDir, ".lock")) // Sweep must not see a directory without its owner
	if err != nil {
		return err
	}
	defer unlock()
	if err := os.Mkdir(c.dir, 0o755); errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("a cluster %q is there already (%s): choose another name, or end it with 'go run ./tests/cluster down --name %s'",
			c.opts.Name, c.dir, c.opts.Name)
	} else if err != nil {
		return fmt.Errorf("start cluster: %w", err)
	}
	mark, err := machine.ProcessMark(os.Getpid())
	if err != nil {
		return err
	}
	data, err := json.Marshal(state{c.opts, c.bins})
	if err != nil {
		return err
	}
	if err := writeFiles(c.dir, map[string][]byte{ownerFile: []byte(mark)}); err != nil { // first: a state without an owner is a cluster that was disowned
		return err
	}
	return writeFiles(c.dir, map[string][]byte{stateFile: data})
}

// Disown lets the cluster live on when this process ends.
func (c *Cluster) Disown() error {
	for _, m := range c.Machines() {
		if err := m.Disown(); err != nil {
			return err
		}
	}
	return os.Remove(filepath.Join(c.dir, ownerFile))
}

// Open finds a running cluster by its name.
func Open(name string) (*Cluster, error) {
	c := &Cluster{dir: filepath.Join(baseDir, name), nodes: map[int]*machine.Machine{}}
	data, err := os.ReadFile(filepath.Join(c.dir, stateFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no cluster %q: start it with 'go run ./tests/cluster up --name %s'", name, name)
	}
	if err != nil {
		return nil, fmt.Errorf("open cluster %s: %w", name, err)
	}
	var s state
	if err := json.Unmarshal(data, &s); err != nil {
		return nil, fmt.Errorf("open cluster %s: %w", name, err)
	}
	c.opts, c.bins, c.net = s.Options, s.Binaries, network{dual: s.Options.DualStack}
	if err := c.opts.complete(); err != nil {
		return nil, err
	}
	if c.cp, err = machine.Open(filepath.Join(c.dir, cpName)); err != nil {
		return nil, err
	}
	for i := 1; i <= c.opts.Nodes; i++ {
		if c.nodes[i], err = machine.Open(filepath.Join(c.dir, nodeName(i))); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// Down ends the cluster, and removes everything of it.
func (c *Cluster) Down() error {
	c.say("stopping")
	var wg sync.WaitGroup
	errs := make([]error, len(c.nodes)+1)
	for k, m := range c.Machines() {
		if m != nil {
			wg.Go(func() { errs[k] = m.Stop() })
		}
	}
	wg.Wait()
	return errors.Join(append(errs, Remove(c.opts.Name))...)
}

// Remove removes a cluster by its name, running or half gone. One that is not there is no error.
func Remove(name string) error {
	if !validName.MatchString(name) {
		return fmt.Errorf("remove cluster: bad name %q", name)
	}
	dir := filepath.Join(baseDir, name)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove cluster: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if e.IsDir() {
			errs = append(errs, machine.Remove(filepath.Join(dir, e.Name())))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err // what is left names the rest
	}
	return os.RemoveAll(dir)
}

// List names the clusters of this computer, with those that are half gone.
func List() ([]string, error) {
	dirs, err := filepath.Glob(filepath.Join(baseDir, "*", stateFile))
	if err != nil {
		return nil, err
	}
	for i, d := range dirs {
		dirs[i] = filepath.Base(filepath.Dir(d))
	}
	return dirs, nil
}

// Sweep removes what is left of clusters whose owners are gone. The kernel has ended them, directories and cgroups are left.
func Sweep() error {
	dirs, err := filepath.Glob(filepath.Join(baseDir, "[a-z0-9]*"))
	if err != nil || len(dirs) == 0 {
		return err
	}
	unlock, err := Lock(filepath.Join(baseDir, ".lock")) // nobody is between making a directory and writing its owner
	if err != nil {
		return err
	}
	defer unlock()
	var errs []error
	for _, dir := range dirs {
		if !abandoned(dir) {
			continue
		}
		errs = append(errs, Remove(filepath.Base(dir)))
	}
	return errors.Join(errs...)
}

// abandoned tells whether a cluster's owner is gone. One without an owner, but with a state, was disowned.
func abandoned(dir string) bool {
	owner := filepath.Join(dir, ownerFile)
	if _, err := os.Stat(owner); errors.Is(err, fs.ErrNotExist) {
		_, err := os.Stat(filepath.Join(dir, stateFile))
		return errors.Is(err, fs.ErrNotExist)
	}
	return machine.MarkedPID(owner) == 0
}
