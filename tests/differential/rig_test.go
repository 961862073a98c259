package differential

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"conduit.io/conduit/identity"
	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/loop"
	"conduit.io/conduit/proxy/static"
)

// config is a JSON object of a proxy's configuration.
type config map[string]any

// proxy is a static proxy in this process.
type proxy struct {
	*static.Server
	addrs []string // of its listeners, in order
}

// addresses is a log handler that notes where a proxy listens, and passes on what is worth reading.
type addresses struct {
	slog.Handler
	found []string
}

func (*addresses) Enabled(context.Context, slog.Level) bool { return true }

func (a *addresses) Handle(ctx context.Context, r slog.Record) error {
	if r.Message == "listening" {
		r.Attrs(func(x slog.Attr) bool {
			if x.Key == "address" {
				a.found = append(a.found, x.Value.String())
			}
			return true
		})
	}
	if !a.Handler.Enabled(ctx, r.Level) {
		return nil
	}
	return a.Handler.Handle(ctx, r)
}

// startProxy runs a static proxy on a loop of its own until the end of the test.
func startProxy(t testing.TB, listeners ...config) *proxy {
	t.Helper()
	data, err := json.Marshal(config{"listeners": listeners})
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := static.Parse(data)
	if err != nil {
		t.Fatal(err)
	}
	l, err := loop.New()
	if err != nil {
		t.Fatal(err)
	}
	go l.Run(context.Background())
	t.Cleanup(func() { l.Stop(); <-l.Done() })
	level := slog.LevelWarn
	if os.Getenv("CONDUIT_TEST_DEBUG") != "" {
		level = slog.LevelDebug
	}
	log := &addresses{Handler: slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})}
	s, err := static.Start(l, cfg, slog.New(log))
	if err != nil {
		t.Fatal(err)
	}
	return &proxy{Server: s, addrs: log.found}
}

// issue writes a certificate and its key for a service account, and gives them as a proxy's configuration.
func issue(t testing.TB, ca *identity.CA, account string) config {
	t.Helper()
	leaf, err := ca.Issue(mesh.Identity{TrustDomain: ca.TrustDomain(), Namespace: "app", ServiceAccount: account})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	c := config{}
	for name, data := range map[string][]byte{"cert": leaf.Chain, "key": leaf.Key, "ca": ca.Roots()} {
		path := filepath.Join(dir, name+".pem")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		c[name] = path
	}
	return c
}

// path is a way from a client to a server.
type path struct {
	in, out string // http1 or http2: what the client and the server speak
	hops    int    // proxies between them
	addr    string // what the client dials
}

func (p path) String() string { return fmt.Sprintf("%s to %s, %d hops", p.in, p.out, p.hops) }

// paths are every pair of protocols through one proxy, and through two with mutual TLS between them.
func paths(t testing.TB, h1, h2 string) []path {
	t.Helper()
	ca, err := identity.OpenCA(t.TempDir(), "test", nil)
	if err != nil {
		t.Fatal(err)
	}
	server, client := issue(t, ca, "server"), issue(t, ca, "client")
	client["server_id"] = "spiffe://test/ns/app/sa/server"
	up := map[string]string{"http1": h1, "http2": h2}
	var out []path
	var far, near []config
	protocols := []string{"http1", "http2"}
	for _, o := range protocols {
		far = append(far, config{"address": "127.0.0.1:0", "upstream": up[o], "protocol": "http2", "upstream_protocol": o, "tls": server})
	}
	links := startProxy(t, far...)
	for _, in := range protocols {
		for i, o := range protocols {
			near = append(near, config{"address": "127.0.0.1:0", "upstream": up[o], "protocol": in, "upstream_protocol": o},
				config{"address": "127.0.0.1:0", "upstream": links.addrs[i], "protocol": in, "upstream_tls": client})
			out = append(out, path{in: in, out: o, hops: 1}, path{in: in, out: o, hops: 2})
		}
	}
	for i, addr := range startProxy(t, near...).addrs {
		out[i].addr = addr
	}
	return out
}
