package peers

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"conduit.io/conduit/tests/bench/rig"
)

// Starter starts peers that forward to one backend.
type Starter struct {
	Rig   *rig.Rig
	Ports *rig.Ports
	Certs Certs
	Bin   string // directory of the binaries that the Makefile builds
	// Backend answers HTTP of all versions, Sink takes bytes.
	Backend, Sink string
}

// Peer is a Def at work.
type Peer struct {
	*Def
	// Addr is where a lane's clients connect.
	Addr map[Lane]string
	// Inner is where a lane's second hop listens, with TLS; nil with one hop.
	Inner map[Lane]string
	// Processes of the first hop, or of the only one, before those of the second.
	Outer, Server []*rig.Process
}

// Processes are all of p's.
func (p *Peer) Processes() []*rig.Process {
	return append(append([]*rig.Process{}, p.Outer...), p.Server...)
}

// Stop ends p's processes.
func (p *Peer) Stop() { rig.Stop(p.Processes()...) }

// Find is an error when d's program is not there, and else its version.
func (s *Starter) Find(d *Def) (version string, err error) {
	if d.prog == nil {
		return "", nil
	}
	path, err := d.prog.find(s.Bin)
	if err != nil {
		return "", err
	}
	return d.prog.versionOf(path), nil
}

// Start starts d for those of lanes that it serves, under a name that is unique in the rig, and waits until it listens.
func (s *Starter) Start(ctx context.Context, d *Def, name string, lanes []Lane) (*Peer, error) {
	served := d.among(lanes)
	if len(served) == 0 {
		return nil, fmt.Errorf("start %s: it has none of the lanes %v", d.Name, lanes)
	}
	p := &Peer{Def: d}
	up := map[Lane]string{}
	for _, l := range served {
		up[l] = s.Backend
		if l == Raw {
			up[l] = s.Sink
		}
	}
	p.Addr = up
	if d.prog == nil {
		return p, nil
	}
	var err error
	switch {
	case d.Plain:
		if p.Inner, p.Server, err = s.hop(ctx, d.prog, name+"-2", Alone, served, up); err == nil {
			p.Addr, p.Outer, err = s.hop(ctx, d.prog, name+"-1", Alone, served, p.Inner)
		}
	case d.Hops == 2:
		if p.Inner, p.Server, err = s.hop(ctx, d.prog, name+"-server", Server, served, up); err == nil {
			p.Addr, p.Outer, err = s.hop(ctx, d.prog, name+"-client", Client, served, p.Inner)
		}
	default:
		p.Addr, p.Outer, err = s.hop(ctx, d.prog, name, Alone, served, up)
	}
	if err != nil {
		p.Stop()
		return nil, err
	}
	return p, nil
}

// hop starts the processes of one hop: one, or one for each listener.
func (s *Starter) hop(ctx context.Context, p *program, name string, role Role, lanes []Lane, up map[Lane]string) (addr map[Lane]string, procs []*rig.Process, err error) {
	path, err := p.find(s.Bin)
	if err != nil {
		return nil, nil, err
	}
	addr = map[Lane]string{}
	var links []Link
	for _, l := range p.distinct(lanes) {
		a, err := s.Ports.Addr()
		if err != nil {
			return nil, nil, err
		}
		addr[l] = a
		links = append(links, newLink(l, role, a, up[l]))
	}
	for _, l := range lanes {
		addr[l] = addr[p.canonical(l)]
	}
	groups := [][]Link{links}
	if p.apart {
		groups = nil
		for _, k := range links {
			groups = append(groups, []Link{k})
		}
	}
	for i, g := range groups {
		proc, err := s.process(ctx, p, path, fmt.Sprintf("%s.%d", name, i), Hop{Role: role, Links: g, Certs: s.Certs})
		if proc != nil {
			procs = append(procs, proc)
		}
		if err != nil {
			return addr, procs, err
		}
	}
	return addr, procs, nil
}

func (s *Starter) process(ctx context.Context, p *program, path, name string, h Hop) (*rig.Process, error) {
	h.Dir = filepath.Join(s.Rig.Dir, name)
	if err := os.Mkdir(h.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	argv, err := p.command(path, h)
	if err != nil {
		return nil, err
	}
	proc, err := s.Rig.Proxy(name, argv, p.env)
	if err != nil {
		return nil, err
	}
	var listens []string
	for _, k := range h.Links {
		listens = append(listens, k.Listen)
	}
	return proc, proc.Ready(ctx, listens...)
}
