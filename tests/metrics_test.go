package tests

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"conduit.io/conduit/agent/admin"
	"conduit.io/conduit/agent/enrol"
	"conduit.io/conduit/api/kernel"
	"conduit.io/conduit/cli/metrics"
	"conduit.io/conduit/control"
	"conduit.io/conduit/control/discovery"
	authority "conduit.io/conduit/control/identity"
	"conduit.io/conduit/control/kube"
	"conduit.io/conduit/control/lead"
	"conduit.io/conduit/control/nodes"
	"conduit.io/conduit/control/server"
	"conduit.io/conduit/identity"
	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/exchange"
	"conduit.io/conduit/proxy/loop"
	"conduit.io/conduit/proxy/meter"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

const metricsPage = "../docs/metrics.md"

// metric is what both a page and a program say of a name: its type, and its labels, sorted.
type metric struct{ kind, labels string }

// TestMetricsPage compares docs/metrics.md with what the programs write, both ways.
func TestMetricsPage(t *testing.T) {
	data, err := os.ReadFile(metricsPage)
	if err != nil {
		t.Fatal(err)
	}
	page := pageMetrics(t, string(data))
	programs := map[string]string{"Agent": agentText(), "Proxy": proxyText(), "Controller": controllerText(t)}
	for section, text := range programs {
		got := textMetrics(t, text)
		want := page[section]
		for _, name := range slices.Sorted(maps.Keys(got)) {
			if w, ok := want[name]; !ok {
				t.Errorf("%s: %q has no row for %s, a %s with labels %q", metricsPage, section, name, got[name].kind, got[name].labels)
			} else if w != got[name] {
				t.Errorf("%s: %q says of %s: %+v; it is %+v", metricsPage, section, name, w, got[name])
			}
		}
		for _, name := range slices.Sorted(maps.Keys(want)) {
			if _, ok := got[name]; !ok {
				t.Errorf("%s: %q has a row for %s, which nobody writes", metricsPage, section, name)
			}
		}
		checkValues(t, section, text, string(data))
	}
	for section := range page {
		if _, ok := programs[section]; !ok {
			t.Errorf("%s: the metrics of %q are compared with nothing", metricsPage, section)
		}
	}
}

// row is a line of a table of metrics: name, type, labels.
var row = regexp.MustCompile("^\\| `([a-z0-9_]+)` \\| ([a-z]+) \\| ([^|]*)\\|[^|]*\\|[^|]*\\|$")

// pageMetrics reads the tables that begin with a column "Metric", by the section (##) that they are in.
func pageMetrics(t *testing.T, page string) map[string]map[string]metric {
	t.Helper()
	out := map[string]map[string]metric{}
	section, inTable := "", false
	for line := range strings.Lines(page) {
		line = strings.TrimSpace(line)
		if s, ok := strings.CutPrefix(line, "## "); ok {
			section = s
		}
		switch {
		case strings.HasPrefix(line, "| Metric |"):
			inTable = true
			continue
		case !strings.HasPrefix(line, "|"):
			inTable = false
		}
		if !inTable || strings.HasPrefix(line, "|---") {
			continue
		}
		m := row.FindStringSubmatch(line)
		if m == nil {
			t.Errorf("%s: not a row of a metric: %s", metricsPage, line)
			continue
		}
		if out[section] == nil {
			out[section] = map[string]metric{}
		}
		if _, twice := out[section][m[1]]; twice {
			t.Errorf("%s: %q has two rows for %s", metricsPage, section, m[1])
		}
		labels := strings.FieldsFunc(m[3], func(r rune) bool { return strings.ContainsRune(" ,`", r) })
		out[section][m[1]] = metric{m[2], sorted(labels)}
	}
	return out
}

func sorted(labels []string) string { return strings.Join(slices.Sorted(slices.Values(labels)), ",") }

// textMetrics reads an exposition. Every family must have a sample, or its labels would go unseen.
func textMetrics(t *testing.T, text string) map[string]metric {
	t.Helper()
	kinds, labels := map[string]string{}, map[string]string{}
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) == 4 && f[1] == "TYPE" {
			kinds[f[2]] = f[3]
		}
	}
	for _, s := range samples(t, text) {
		name := s.Name
		for _, suffix := range []string{"_bucket", "_sum", "_count"} {
			if base, ok := strings.CutSuffix(name, suffix); ok && kinds[base] == "histogram" {
				name = base
			}
		}
		if kinds[name] == "" {
			t.Errorf("%s is written without a type", name)
		}
		l := sorted(slices.Collect(maps.Keys(s.Labels)))
		if old, ok := labels[name]; ok && old != l && kinds[name] != "histogram" {
			t.Errorf("%s is written with labels %q and %q", name, old, l)
		}
		if len(l) >= len(labels[name]) { // a histogram's buckets have one more than its sum
			labels[name] = l
		}
	}
	out := map[string]metric{}
	for name, kind := range kinds {
		if _, ok := labels[name]; !ok {
			t.Errorf("the test makes no sample of %s", name)
		}
		out[name] = metric{kind, labels[name]}
	}
	return out
}

// checkValues checks that the page names the values of the labels that have few.
func checkValues(t *testing.T, section, text, page string) {
	t.Helper()
	few := []string{"direction", "protocol", "tls", "classification", "reason", "state", "path", "kind", "class", "route", "part"}
	for _, s := range samples(t, text) {
		for _, l := range few {
			if v := s.Labels[l]; v != "" && !strings.Contains(page, "`"+v+"`") {
				t.Errorf("%s: %s has %s=%q, which %s does not name", section, s.Name, l, v, metricsPage)
			}
		}
	}
}

func samples(t *testing.T, text string) []metrics.Sample {
	t.Helper()
	all, err := metrics.Parse(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func agentText() string {
	bypassed := map[string]uint64{}
	for b := range kernel.Bypass(kernel.BypassCount) {
		bypassed[b.String()] = 1
	}
	pods := []enrol.PodStatus{{Namespace: "shop", Name: "web", Counters: enrol.Counters{Bypassed: bypassed}}}
	return (&admin.Node{Build: "v1", Name: "n1", Pods: pods}).Metrics()
}

// proxyText is what both a node's proxy and a static one write: they have no other writer.
func proxyText() string {
	set, process := meter.NewSet(100), &meter.Process{Certificates: []meter.Certificate{{Name: "listeners[0].tls"}}}
	book := meter.NewBook(batch{})
	for _, k := range []meter.Key{
		{Direction: meter.Outbound, Protocol: meter.HTTP1, TLS: meter.MTLS},
		{Direction: meter.Inbound, Protocol: meter.HTTP2, TLS: meter.Local},
		{Direction: meter.Inbound, Protocol: meter.GRPC, TLS: meter.None},
		{Direction: meter.Outbound, Protocol: meter.TCP, TLS: meter.None},
	} {
		k.Src, k.Dst = "shop/web", "shop/db"
		c := set.Conns(k, 0)
		k.Route = meter.DefaultRoute
		r := set.Requests(k, 0)
		c.Accepted(0)
		span := &meter.Span{}
		span.Dialled(1)
		book.Sent(span)
		end := func(o meter.Outcome) {
			book.Ended(r, span, &exchange.Stream{Start: 1, ReqEnd: 6, FirstByte: 8, End: 9}, o)
		}
		r.Linked(3, 2, 1)
		for class := range 6 {
			end(meter.NewOutcome(class < 5, class*100, "", ""))
		}
		for code := range 18 {
			end(meter.NewOutcome(false, 200, strconv.Itoa(code), ""))
		}
		for _, reason := range meshReasons {
			end(meter.NewOutcome(false, 0, "", reason))
			c.Closed(0, reason)
			process.HandshakeFailed(reason)
			process.ConnectionFailed(reason)
		}
	}
	for _, kind := range abuses {
		process.Abused(kind)
	}
	book.Flush() // the first call only puts it off
	book.Flush()
	var b bytes.Buffer
	meter.Write(&b, process, set.Read(func(f func()) error { f(); return nil }))
	return b.String()
}

// batch is a loop in the middle of one.
type batch struct{}

func (batch) Now() int64         { return 5 }
func (batch) Time() int64        { return 5 }
func (batch) AtEnd(loop.Flusher) {}

// meshReasons are all of package mesh, and one that no counter is for.
var meshReasons = []mesh.Reason{
	mesh.ReasonNoEndpoints, mesh.ReasonConnect, mesh.ReasonConnectTimeout, mesh.ReasonTLS, mesh.ReasonPeerIdentity,
	mesh.ReasonPlaintext, mesh.ReasonUpstreamReset, mesh.ReasonUpstreamProto, mesh.ReasonDownstreamReset,
	mesh.ReasonBadRequest, mesh.ReasonTooLarge, mesh.ReasonOverload, mesh.ReasonDraining, mesh.ReasonNotMeshTarget,
	mesh.ReasonNoCertificate, mesh.ReasonTimeout, "unheard-of",
}

// abuses are all of package mesh.
var abuses = []mesh.Abuse{
	mesh.AbuseResets, mesh.AbuseContinuation, mesh.AbusePing, mesh.AbuseSettings, mesh.AbusePriority, mesh.AbuseFrames,
	mesh.AbuseEmpty, mesh.AbuseWindow, mesh.AbuseTinyWindow, mesh.AbuseLargeHead, mesh.AbuseSlowHead, mesh.AbuseSlowBody,
	mesh.AbuseUnread,
}

// controllerText is /metrics of a controller that has roots and has answered every path.
func controllerText(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if _, err := identity.OpenCA(dir, "cluster.local", time.Now); err != nil {
		t.Fatal(err)
	}
	s, err := control.New(control.Config{CADir: dir})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("controller: %v", err)
		}
	}()
	text := ""
	for _, path := range []string{"/healthz", "/readyz", "/version", "/v1/trust-bundle", "/metrics", "/metrics"} {
		text = fetch(t, "http://"+l.Addr().String()+path)
	}
	client, err := kubernetes.NewForConfig(&rest.Config{Host: "127.0.0.1:1"}) // nobody is asked
	if err != nil {
		t.Fatal(err)
	}
	authority, err := authority.New(authority.Config{Client: client})
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	authority.WriteMetrics(&out)
	clusterText(t, &out, authority)
	return text + out.String()
}

func fetch(t *testing.T, url string) string {
	t.Helper()
	res, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v\n%s", url, res.Status, err, body)
	}
	return string(body)
}

// clusterText is what a controller on Kubernetes writes besides, before anything has happened.
func clusterText(t *testing.T, out io.Writer, ids *authority.Service) {
	t.Helper()
	x := discovery.New()
	streams := discovery.NewServer(x, discovery.Config{})
	streams.Metrics().Write(out)
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // nobody is asked
	watcher, err := kube.Watch(ctx, &rest.Config{Host: "127.0.0.1:1"}, x, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	watcher.Wait()
	watcher.Write(out)
	registry := nodes.NewRegistry(time.Now, nil)
	registry.Write(out)
	nodes.NewWriter(nil, nil, registry, x, nil).Write(out)
	lead.New(lead.Config{}).Write(out)
	api, err := server.New(server.Config{TLS: ids.TLSConfig(), Discovery: streams, Identity: ids, Nodes: nodes.NewServer(registry, nil)})
	if err != nil {
		t.Fatal(err)
	}
	api.Write(out)
}
