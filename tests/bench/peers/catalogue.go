// Package peers knows the proxies that are compared, how each is configured at its best for one core, and starts them in
// chains of one or two.
package peers

import (
	"slices"
	"strings"
)

// goEnv: every program has one thread's worth of processor; those in Go are told, too.
var goEnv = []string{"GOMAXPROCS=1"}

var http = []Lane{H2, GRPC, H1, H1H2}

// all is with Raw.
var all = append(slices.Clone(http), Raw)

// sharedH2: one listener serves gRPC and everything else that leaves as HTTP/2.
var sharedH2 = map[Lane]Lane{GRPC: H2}

var programs = []program{
	{
		name: "conduit", title: "Conduit", find: built("conduit-proxy"), version: []string{"--version"},
		conf: "conduit.json", args: func(_ Hop, conf string) []string { return []string{"--static", conf} },
		lanes: all, mesh: all, same: sharedH2,
	},
	{
		name: "haproxy", title: "HAProxy", find: installed("haproxy", "haproxy"), version: []string{"-v"},
		conf: "haproxy.cfg", args: func(_ Hop, conf string) []string { return []string{"-db", "-f", conf} },
		lanes: all, mesh: all, same: sharedH2,
	},
	{
		name: "nghttpx", title: "nghttpx", find: installed("nghttpx", "nghttp2-proxy"), version: []string{"--version"},
		conf: "nghttpx.conf", args: func(_ Hop, conf string) []string { return []string{"--conf=" + conf} },
		lanes: http, mesh: http, same: map[Lane]Lane{GRPC: H2, H1H2: H2}, apart: true,
	},
	{
		name: "nginx", title: "nginx", find: installed("nginx", "nginx-light"), version: []string{"-v"},
		conf: "nginx.conf", args: func(_ Hop, conf string) []string { return []string{"-c", conf} },
		lanes: []Lane{H2, GRPC, H1}, mesh: []Lane{H2, GRPC, H1},
	},
	{
		name: "caddy", title: "Caddy", find: built("bench/caddy"), version: []string{"version"}, env: goEnv,
		conf: "Caddyfile", args: caddyArgs, lanes: http, mesh: http, same: sharedH2,
	},
	{
		name: "caddy-debian", title: "Caddy (Debian)", find: installed("caddy", "caddy"), version: []string{"version"}, env: goEnv,
		conf: "Caddyfile", args: caddyArgs, lanes: http, same: sharedH2,
	},
	{
		name: "reverseproxy", title: "Go ReverseProxy", find: built("bench/reverseproxy"), env: goEnv,
		args: goArgs, lanes: http, mesh: http, same: sharedH2,
	},
	{
		name: "l4", title: "L4 splice", find: built("bench/relay"), env: goEnv, args: goArgs,
		lanes: all, same: map[Lane]Lane{GRPC: H2, H1: H2, H1H2: H2},
	},
	{
		name: "tls-relay", title: "crypto/tls relay", find: built("bench/relay"), env: goEnv, args: goArgs, mesh: []Lane{Raw},
	},
	{
		name: "tls-ends", title: "two crypto/tls ends", find: built("bench/bulk"), env: goEnv, args: endArgs, lanes: []Lane{Raw},
	},
}

func caddyArgs(_ Hop, conf string) []string {
	return []string{"run", "--adapter", "caddyfile", "--config", conf}
}

// goArgs are the flags that our own controls have in common.
func goArgs(h Hop, _ string) []string {
	var out []string
	for _, k := range h.Links {
		out = append(out, "--link", strings.Join([]string{k.Listen, k.Upstream, k.Out}, ","))
	}
	if h.TLSIn() {
		out = append(out, "--tls-in", strings.Join([]string{h.Certs.ServerCert, h.Certs.ServerKey, h.Certs.CA}, ","))
	}
	if h.TLSOut() {
		out = append(out, "--tls-out", strings.Join([]string{h.Certs.ClientCert, h.Certs.ClientKey, h.Certs.CA, h.Certs.ServerName}, ","))
	}
	return out
}

// endArgs make the server's end of a connection that is TLS all the way; the client's end is the generator.
func endArgs(h Hop, _ string) []string {
	c := h.Certs
	return []string{"serve", "--listen", h.Links[0].Listen, "--tls-in", strings.Join([]string{c.ServerCert, c.ServerKey, c.CA}, ",")}
}

// Def is a peer as it is measured: a program in a chain of so many.
type Def struct {
	Name  string
	Title string
	Hops  int
	Plain bool // two hops without TLS: a control
	prog  *program
}

// MTLS reports whether TLS is spoken between the hops.
func (d *Def) MTLS() bool { return d.Hops == 2 && !d.Plain }

// Control reports whether d is there to compare with, and not a proxy for HTTP.
func (d *Def) Control() bool {
	return d.prog == nil || slices.Contains([]string{"l4", "tls-relay", "tls-ends"}, d.prog.name)
}

// Serves reports whether d has lane l.
func (d *Def) Serves(l Lane) bool {
	switch {
	case d.prog == nil:
		return true
	case d.Plain:
		return slices.Contains(d.prog.lanes, l)
	}
	return slices.Contains(d.prog.supports(d.Hops), l)
}

// among are those of lanes that d serves.
func (d *Def) among(lanes []Lane) []Lane {
	var out []Lane
	for _, l := range lanes {
		if d.Serves(l) {
			out = append(out, l)
		}
	}
	return out
}

// ServesAny reports whether d has any of lanes.
func (d *Def) ServesAny(lanes []Lane) bool { return len(d.among(lanes)) > 0 }

// Names that measurements treat in a way of their own.
const (
	Direct      = "direct" // no proxy
	Conduit     = "conduit"
	ConduitMesh = "conduit-mesh" // two hops with mutual TLS
	L4          = "l4"           // one hop that copies bytes
	TLSEnds     = "tls-ends"     // no proxy either: the generator and the server speak TLS themselves, both on the proxies' core
)

// Defs are all peers, the controls first: a name with "-mesh" is two hops with mutual TLS between them.
func Defs() []*Def {
	out := []*Def{{Name: Direct, Title: "direct"}}
	for i := range programs {
		p := &programs[i]
		if p.name == "l4" {
			out = append(out, &Def{Name: "l4", Title: p.title, Hops: 1, prog: p},
				&Def{Name: "l4-2", Title: p.title + ", 2 hops", Hops: 2, Plain: true, prog: p})
		}
	}
	for i := range programs {
		p := &programs[i]
		if p.name == "l4" {
			continue
		}
		if len(p.lanes) > 0 {
			out = append(out, &Def{Name: p.name, Title: p.title, Hops: 1, prog: p})
		}
		if len(p.mesh) > 0 {
			out = append(out, &Def{Name: p.name + "-mesh", Title: p.title + ", 2 hops mTLS", Hops: 2, prog: p})
		}
	}
	return out
}

// Base are Conduit's peers built from another commit: what conduit and conduit-mesh are compared with to find a
// regression. Its binary is bench/base-proxy in the directory of binaries.
func Base(commit string) []*Def {
	p := programs[0]
	p.name, p.find = "base", built("bench/base-proxy")
	return []*Def{
		{Name: "base", Title: "Conduit at " + commit, Hops: 1, prog: &p},
		{Name: "base-mesh", Title: "Conduit at " + commit + ", 2 hops mTLS", Hops: 2, prog: &p},
	}
}
