package workload

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"conduit.io/conduit/tests/bench/peers"
	"conduit.io/conduit/tests/bench/rig"
)

// Tools are the generators.
type Tools struct {
	Rig    *rig.Rig
	H2load string // path; empty when it is not installed: then Load stands in
	Load   string
	Bulk   string
	Hold   string      // holds idle connections
	Certs  peers.Certs // for TLSEnds
	body   string
}

// FindTools looks for the generators; ours are in bin.
func FindTools(r *rig.Rig, bin string, certs peers.Certs) (*Tools, error) {
	bin, err := filepath.Abs(filepath.Join(bin, "bench"))
	if err != nil {
		return nil, err
	}
	t := &Tools{Rig: r, Load: filepath.Join(bin, "load"), Bulk: filepath.Join(bin, "bulk"), Hold: filepath.Join(bin, "hold"), Certs: certs, body: filepath.Join(r.Dir, "body")}
	for _, p := range []string{t.Load, t.Bulk, t.Hold} {
		if _, err := os.Stat(p); err != nil {
			return nil, fmt.Errorf("%w (make bench-tools builds it)", err)
		}
	}
	if p, err := exec.LookPath(h2load); err == nil {
		t.H2load = p
	}
	longest := 0
	for _, w := range All {
		if w.Tool == h2load {
			longest = max(longest, w.Body)
		}
	}
	return t, os.WriteFile(t.body, []byte(strings.Repeat("conduit ", longest/8)), 0o600)
}

// Generator is what generates w: its Tool, unless that is not installed.
func (t *Tools) Generator(w *Workload) string {
	if w.Tool == h2load && t.H2load == "" {
		return load
	}
	return w.Tool
}

// Run generates so much of w against a peer. An error is the generator's; failed requests are in the outcome.
func (t *Tools) Run(ctx context.Context, w *Workload, p *peers.Peer, s Size) (*Outcome, error) {
	addr := p.Addr[w.Lane]
	switch t.Generator(w) {
	case h2load:
		out, err := t.Rig.Generate(ctx, append([]string{t.H2load}, w.h2loadArgs(addr, t.body, s.Requests)...))
		if err != nil {
			return nil, err
		}
		return parseH2load(out)
	case load:
		// Its exit status is 1 when a request failed, which its result tells in detail.
		out, err := t.Rig.Generate(ctx, append([]string{t.Load}, w.loadArgs(addr, s)...))
		if o, bad := parseLoad(out); bad == nil {
			return o, nil
		}
		return nil, err
	default:
		return t.bulk(ctx, w, p, s)
	}
}

func (t *Tools) bulk(ctx context.Context, w *Workload, p *peers.Peer, s Size) (*Outcome, error) {
	argv := []string{t.Bulk, "run", "--target", p.Addr[w.Lane], "--duration", s.Duration.String()}
	if w.Down {
		argv = append(argv, "--down")
	}
	core := t.Rig.Cores.Load[0]
	if p.Name == peers.TLSEnds {
		core = t.Rig.Cores.Proxy
		c := t.Certs
		argv = append(argv, "--tls-out", strings.Join([]string{c.ClientCert, c.ClientKey, c.CA, c.ServerName}, ","))
	}
	out, err := t.Rig.Run(ctx, core, argv)
	if err != nil {
		return nil, err
	}
	return parseBulk(out)
}
