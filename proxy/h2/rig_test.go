package h2_test

import (
	"strings"
	"testing"

	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/exchange"
	"conduit.io/conduit/proxy/exchange/exchangetest"
	"conduit.io/conduit/proxy/flow/flowtest"
	"conduit.io/conduit/proxy/h2"

	"golang.org/x/net/http2"
)

// rig is client - h2 proxy - server, with x/net Framers at the ends.
type rig struct {
	n        *flowtest.Net
	h        *exchangetest.Handler
	pool     *exchange.Pool
	client   *exchangetest.H2
	app      *exchangetest.H2
	down, up *flowtest.Conn // the proxy's ends
	sv       *h2.Server
	cl       *h2.Client
	closed   int
	reasons  []mesh.Reason
	abuses   []mesh.Abuse
	changes  []bool
}

func newRig(internal bool) *rig {
	r := &rig{n: flowtest.New(), h: &exchangetest.Handler{}, pool: exchange.NewPool()}
	var a *flowtest.Conn
	a, r.down = r.n.Pair()
	r.cl, r.up, r.app = r.newClient(internal, func(ended bool) { r.changes = append(r.changes, ended) })
	r.h.Up = func(*exchange.Stream) exchange.Upstream { return r.cl }
	r.sv = h2.NewServer(r.down, r.h, exchange.ServerOptions{Clock: r.n, Pool: r.pool, Internal: internal,
		OnClose: func(error) { r.closed++ },
		OnViolation: func(v exchange.Violation) {
			r.reasons, r.abuses = append(r.reasons, v.Reason), append(r.abuses, v.Abuse)
		}})
	r.client = exchangetest.NewH2(a, true)
	r.client.Settings()
	r.app.Settings()
	r.n.Run()
	return r
}

func (r *rig) newClient(internal bool, change func(bool)) (*h2.Client, *flowtest.Conn, *exchangetest.H2) {
	up, b := r.n.Pair()
	cl := h2.NewClient(up, exchange.ClientOptions{Clock: r.n, Pool: r.pool, Internal: internal,
		OnChange:    func(_ exchange.Upstream, ended bool, _ error) { change(ended) },
		OnViolation: func(v exchange.Violation) { r.abuses = append(r.abuses, v.Abuse) }})
	return cl, up, exchangetest.NewH2(b, false)
}

var getReq = []string{":method", "GET", ":scheme", "http", ":path", "/", ":authority", "h"}
var postReq = []string{":method", "POST", ":scheme", "http", ":path", "/p", ":authority", "h"}

func with(base []string, kv ...string) []string { return append(append([]string(nil), base...), kv...) }

func (r *rig) goAway(t *testing.T) (http2.ErrCode, bool) {
	t.Helper()
	f := r.client.Find(http2.FrameGoAway, 0)
	if len(f) == 0 {
		return 0, false
	}
	return f[len(f)-1].Code, true
}

func (r *rig) check(t *testing.T) {
	t.Helper()
	if len(r.client.Errs) > 0 || len(r.app.Errs) > 0 {
		t.Errorf("framing errors: client %v, app %v", r.client.Errs, r.app.Errs)
	}
}

func flat(f exchangetest.Frame) string {
	var b strings.Builder
	for _, x := range f.Fields {
		b.WriteString(x.Name + "=" + x.Value + ";")
	}
	return b.String()
}
