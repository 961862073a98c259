// Package static runs the proxy without eBPF, agent or pods, from one JSON file: a plain reverse proxy, for benchmarks
// and conformance tests.
package static

import (
	"crypto/tls"
	"fmt"
	"net/netip"
	"os"

	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/meter"
	"conduit.io/conduit/proxy/mtls"
	"conduit.io/conduit/proxy/trip"
)

// Config is the file.
type Config struct {
	Listeners []Listener
	Admin     netip.AddrPort // not valid: no admin server
}

// Listener is an address to listen on and where its connections go.
type Listener struct {
	Address  netip.AddrPort
	Upstream netip.AddrPort
	Protocol mesh.Protocol // Detect by default
	// UpstreamProtocol is HTTP1 or HTTP2, or Detect for "auto": what the client speaks, or, with upstream_tls, what
	// the server chooses.
	UpstreamProtocol mesh.Protocol
	TLS              *tls.Config // terminate TLS; with a CA, demand a client certificate of it
	UpstreamTLS      *tls.Config
	Limits           trip.Limits
	// Certificates are those of ours that end.
	Certificates []meter.Certificate
	// Mutual: both ends present certificates, on the client's side or the upstream's.
	Mutual bool
}

// Load reads and checks the file at path. An error names the field at fault.
func Load(path string) (*Config, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	c, err := Parse(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// Parse checks data, and reads the files that it names.
func Parse(data []byte) (*Config, error) {
	d := decoder{}
	top := d.object("", data, "listeners", "admin")
	c := &Config{Admin: d.addrPort("admin", top["admin"], false)}
	list := d.array("listeners", top["listeners"])
	if d.err == nil && len(list) == 0 {
		d.fail("listeners", "at least one listener is needed")
	}
	for i, raw := range list {
		c.Listeners = append(c.Listeners, d.listener(fmt.Sprintf("listeners[%d]", i), raw))
	}
	if d.err == nil {
		d.circles(c.Listeners)
	}
	if d.err != nil {
		return nil, d.err
	}
	return c, nil
}

func (d *decoder) listener(path string, raw []byte) Listener {
	o := d.object(path, raw, "address", "upstream", "protocol", "upstream_protocol", "tls", "upstream_tls", "timeout", "idle_timeout")
	l := Listener{
		Address:  d.addrPort(path+".address", o["address"], true),
		Upstream: d.addrPort(path+".upstream", o["upstream"], true),
		Protocol: mesh.Protocol(d.choice(path+".protocol", o["protocol"], "detect", "http1", "http2", "opaque")),
	}
	l.Limits = trip.Limits{Request: d.duration(path+".timeout", o["timeout"]), Idle: d.duration(path+".idle_timeout", o["idle_timeout"])}
	if d.err == nil && l.Upstream.Port() == 0 {
		d.fail(path+".upstream", "%q has port 0, to which nothing can be sent", l.Upstream)
	}
	switch d.choice(path+".upstream_protocol", o["upstream_protocol"], "auto", "http1", "http2") {
	case "http1":
		l.UpstreamProtocol = mesh.HTTP1
	case "http2":
		l.UpstreamProtocol = mesh.HTTP2
	default:
		l.UpstreamProtocol = mesh.Detect
	}
	if l.Protocol == mesh.Opaque {
		d.opaque(path, &l)
	}
	if raw := o["tls"]; raw != nil {
		l.TLS = d.serverTLS(path+".tls", raw, l.Protocol)
		l.Mutual = l.TLS != nil && l.TLS.ClientAuth != tls.NoClientCert
		l.watch(path+".tls", l.TLS)
	}
	if raw := o["upstream_tls"]; raw != nil {
		l.UpstreamTLS = d.clientTLS(path+".upstream_tls", raw, &l)
		l.watch(path+".upstream_tls", l.UpstreamTLS)
	}
	return l
}

// opaque refuses what is said of HTTP where bytes are passed on as they come.
func (d *decoder) opaque(path string, l *Listener) {
	switch {
	case l.Limits.Request != 0:
		d.fail(path+".timeout", "bounds requests, and protocol opaque has none; say idle_timeout, or another protocol")
	case l.UpstreamProtocol != mesh.Detect:
		d.fail(path+".upstream_protocol", "is of HTTP, and protocol opaque passes on bytes as they come; leave it out, or say another protocol")
	}
}

// watch notes when the certificate that c presents ends.
func (l *Listener) watch(path string, c *tls.Config) {
	if end := mtls.Ends(c); !end.IsZero() {
		l.Certificates = append(l.Certificates, meter.Certificate{Name: path, End: end})
	}
}

func (d *decoder) serverTLS(path string, raw []byte, p mesh.Protocol) *tls.Config {
	o := d.object(path, raw, "cert", "key", "ca")
	f := mtls.Files{Cert: d.file(path+".cert", o["cert"]), Key: d.file(path+".key", o["key"]), CA: d.file(path+".ca", o["ca"])}
	switch p {
	case mesh.Detect:
		f.ALPN = []string{"h2", "http/1.1"}
	case mesh.HTTP1:
		f.ALPN = []string{"http/1.1"}
	case mesh.HTTP2:
		f.ALPN = []string{"h2"}
	}
	if f.CA != "" && p != mesh.Opaque && p != mesh.HTTP1 {
		f.ALPN = append([]string{mesh.ALPNConduit}, f.ALPN...) // only who has proved an identity may be a proxy
	}
	switch {
	case d.err != nil:
		return nil
	case f.Cert == "":
		d.fail(path+".cert", "is missing; a server needs a certificate")
		return nil
	case f.Key == "":
		d.fail(path+".key", "is missing; a certificate needs its key")
		return nil
	}
	c, err := f.Server()
	if err != nil {
		d.fail(path, "%v", err)
	}
	return c
}

func (d *decoder) clientTLS(path string, raw []byte, l *Listener) *tls.Config {
	o := d.object(path, raw, "cert", "key", "ca", "server_id")
	f := mtls.Files{
		Cert: d.file(path+".cert", o["cert"]), Key: d.file(path+".key", o["key"]), CA: d.file(path+".ca", o["ca"]),
		ServerID: d.text(path+".server_id", o["server_id"]),
	}
	switch {
	case d.err != nil:
		return nil
	case f.Cert != "" && f.Key == "":
		d.fail(path+".key", "is missing; a certificate needs its key")
		return nil
	case f.Cert == "" && f.Key != "":
		d.fail(path+".cert", "is missing; a key needs its certificate")
		return nil
	case f.CA == "":
		d.fail(path+".ca", "is missing; it is needed to verify the server")
		return nil
	}
	if _, err := mesh.ParseIdentity(f.ServerID); f.ServerID != "" && err != nil {
		d.fail(path+".server_id", "%v", err)
		return nil
	}
	if f.ServerID != "" && f.Cert == "" {
		d.fail(path+".server_id", "names another proxy, which demands a certificate of its clients; cert and key are missing")
		return nil
	}
	c, err := f.Client()
	if err != nil {
		d.fail(path, "%v", err)
		return nil
	}
	l.Mutual = l.Mutual || f.Cert != ""
	// Offered, not demanded: a server without ALPN gets what is configured.
	switch {
	case l.Protocol == mesh.Opaque || l.UpstreamProtocol == mesh.HTTP1:
	case l.UpstreamProtocol == mesh.HTTP2:
		c.NextProtos = []string{"h2"}
	default:
		c.NextProtos = []string{"h2", "http/1.1"}
	}
	if f.Cert != "" && len(c.NextProtos) > 0 {
		c.NextProtos = append([]string{mesh.ALPNConduit}, c.NextProtos...)
	}
	return c
}
