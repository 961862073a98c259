package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"conduit.io/conduit/identity"
	"conduit.io/conduit/mesh"
	"conduit.io/conduit/tests/load/backend"
	"conduit.io/conduit/tests/load/engine"
)

// rig is what is under load: a proxy at the clients, one at the server, mutual TLS 1.3 between them, and the server.
type rig struct {
	dir            string
	client, server *proxy
	web            netip.AddrPort // HTTP, carried to the backend as HTTP/2
	old            netip.AddrPort // HTTP, carried to the backend as HTTP/1.1
	raw            netip.AddrPort // opaque TCP
	mesh           netip.AddrPort // the server proxy's own, for strangers to knock at
	loop           *engine.Loop
	backend        chan error
}

// proxy is a process.
type proxy struct {
	name  string
	cmd   *exec.Cmd
	admin netip.AddrPort
	ended chan error
}

type tlsFiles struct {
	Cert     string `json:"cert"`
	Key      string `json:"key"`
	CA       string `json:"ca"`
	ServerID string `json:"server_id,omitempty"`
}

type listener struct {
	Address          netip.AddrPort `json:"address"`
	Upstream         netip.AddrPort `json:"upstream"`
	Protocol         string         `json:"protocol"`
	UpstreamProtocol string         `json:"upstream_protocol,omitempty"`
	TLS              *tlsFiles      `json:"tls,omitempty"`
	UpstreamTLS      *tlsFiles      `json:"upstream_tls,omitempty"`
}

// start starts the backend in this process and the two proxies; stop ends what was started, also after an error.
func (r *rig) start(binary string) error {
	var err error
	if r.dir, err = os.MkdirTemp("", "conduit-soak-"); err != nil {
		return err
	}
	back, err := r.serve()
	if err != nil {
		return fmt.Errorf("backend: %w", err)
	}
	ca, err := identity.OpenCA(filepath.Join(r.dir, "ca"), "soak.local", nil)
	if err != nil {
		return err
	}
	front, err := r.issue(ca, "web")
	if err != nil {
		return err
	}
	rear, err := r.issue(ca, "db")
	if err != nil {
		return err
	}
	to := *front
	to.ServerID = mesh.Identity{TrustDomain: "soak.local", Namespace: "soak", ServiceAccount: "db"}.String()
	ports, err := freePorts(8)
	if err != nil {
		return err
	}
	r.web, r.old, r.raw, r.mesh = ports[0], ports[1], ports[2], ports[3]
	var in, out []listener
	for i, l := range []struct{ front, between, back string }{{"http2", "http2", "http2"}, {"http1", "http2", "http1"}, {"opaque", "opaque", ""}} {
		out = append(out, listener{Address: ports[i], Upstream: ports[3+i], Protocol: l.front, UpstreamTLS: &to})
		in = append(in, listener{Address: ports[3+i], Upstream: back, Protocol: l.between, UpstreamProtocol: l.back, TLS: rear})
		if l.between == "http2" {
			out[i].UpstreamProtocol = "http2"
		}
	}
	if r.server, err = r.run(binary, "server", in, ports[6]); err != nil {
		return err
	}
	r.client, err = r.run(binary, "client", out, ports[7])
	return err
}

func (r *rig) proxies() []*proxy { return []*proxy{r.client, r.server} }

// serve runs the backend.
func (r *rig) serve() (netip.AddrPort, error) {
	ln, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return netip.AddrPort{}, err
	}
	defer ln.Close()
	loop, err := engine.New()
	if err != nil {
		return netip.AddrPort{}, err
	}
	if _, err := backend.Serve(loop, ln); err != nil {
		return netip.AddrPort{}, err
	}
	r.loop, r.backend = loop, make(chan error, 1)
	go func() { r.backend <- loop.Run() }()
	return ln.Addr().(*net.TCPAddr).AddrPort(), nil
}

func (r *rig) issue(ca *identity.CA, account string) (*tlsFiles, error) {
	leaf, err := ca.Issue(mesh.Identity{TrustDomain: ca.TrustDomain(), Namespace: "soak", ServiceAccount: account})
	if err != nil {
		return nil, err
	}
	base := filepath.Join(r.dir, account)
	f := &tlsFiles{Cert: base + ".crt", Key: base + ".key", CA: base + ".ca"}
	return f, errors.Join(os.WriteFile(f.Cert, leaf.Chain, 0o600), os.WriteFile(f.Key, leaf.Key, 0o600), os.WriteFile(f.CA, ca.Roots(), 0o600))
}

// freePorts finds n addresses that nobody listens on now. They lie below the ports that the kernel gives to clients, one
// of which would else take one before the proxy does.
func freePorts(n int) (out []netip.AddrPort, err error) {
	port := 20000 + rand.IntN(10000)
	for tries := 0; len(out) < n; tries++ {
		a := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(port+tries))
		ln, err := net.Listen("tcp4", a.String())
		switch {
		case err == nil:
			defer ln.Close()
			out = append(out, a)
		case tries > 1000:
			return nil, err
		}
	}
	return out, nil
}

// run starts a proxy and waits until it is ready.
func (r *rig) run(binary, name string, listeners []listener, admin netip.AddrPort) (*proxy, error) {
	file := filepath.Join(r.dir, name+".json")
	data, err := json.Marshal(map[string]any{"listeners": listeners, "admin": admin})
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(file, data, 0o600); err != nil {
		return nil, err
	}
	p := &proxy{name: name, cmd: exec.Command(binary, "--static", file, "--log-level", "warn"), admin: admin, ended: make(chan error, 1)}
	p.cmd.Stderr = os.Stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { p.ended <- p.cmd.Wait() }()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(10 * time.Second)
	for {
		select {
		case err := <-p.ended:
			return nil, fmt.Errorf("%s proxy: ended at once: %v", name, err)
		case <-deadline:
			p.stop()
			return nil, fmt.Errorf("%s proxy: not ready", name)
		case <-tick.C:
		}
		if _, err := p.get("/readyz"); err == nil {
			return p, nil
		}
	}
}

// stop ends the process, by force if it has to be.
func (p *proxy) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.ended:
	case <-time.After(15 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.ended
	}
}

func (r *rig) stop() {
	for _, p := range r.proxies() {
		if p != nil {
			p.stop()
		}
	}
	if r.loop != nil {
		r.loop.Post(r.loop.Stop)
		<-r.backend
	}
	_ = os.RemoveAll(r.dir)
}
