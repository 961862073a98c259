package admin

import (
	"log/slog"
	"net"
	"os"
	"strings"
	"testing"

	"conduit.io/conduit/agent/enrol"
)

func TestNoFamilyIsDeclaredTwice(t *testing.T) {
	own := "# HELP conduit_up x\n# TYPE conduit_up gauge\nconduit_up 1\n"
	stats := "# HELP request_total y\n# TYPE request_total counter\nrequest_total{a=\"b\"} 2\n" + own +
		"# HELP z z\n# TYPE z counter\nz 3\n"
	got := without(stats, families(own))
	want := "# HELP request_total y\n# TYPE request_total counter\nrequest_total{a=\"b\"} 2\n# HELP z z\n# TYPE z counter\nz 3\n"
	if got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

func TestSocketCounters(t *testing.T) {
	pod := func(name string, steered uint64, bypassed map[string]uint64) enrol.PodStatus {
		return enrol.PodStatus{Namespace: "shop", Name: name, Counters: enrol.Counters{Created: 10, Steered: steered, Bypassed: bypassed}}
	}
	p := &page{}
	p.sockets([]enrol.PodStatus{
		pod("web", 3, map[string]uint64{"refused": 1, "proxy": 2}),
		pod("api", 1, map[string]uint64{"refused": 0}),
		pod("web", 4, map[string]uint64{"refused": 5}), // a second sandbox of the same pod
		pod("plain", 0, map[string]uint64{}),
	})
	var series []string
	for line := range strings.Lines(p.String()) {
		if !strings.HasPrefix(line, "#") {
			series = append(series, strings.TrimSpace(line))
		}
	}
	want := `conduit_sockets_created_total{pod="shop/api"} 10
conduit_sockets_created_total{pod="shop/web"} 20
conduit_sockets_steered_total{pod="shop/api"} 1
conduit_sockets_steered_total{pod="shop/web"} 7
conduit_sockets_bypassed_total{pod="shop/api",reason="refused"} 0
conduit_sockets_bypassed_total{pod="shop/web",reason="proxy"} 2
conduit_sockets_bypassed_total{pod="shop/web",reason="refused"} 6`
	if got := strings.Join(series, "\n"); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

func TestLabelsAreEscaped(t *testing.T) {
	p := &page{}
	p.sample("x", 1, "l", "a\"b\\c\nd")
	if got, want := p.String(), "x{l=\"a\\\"b\\\\c\\nd\"} 1\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestListen(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	if _, err := Listen(Config{Addr: taken.Addr().String(), RunDir: t.TempDir(), Log: log}); err == nil || !strings.Contains(err.Error(), "--admin") {
		t.Errorf("an address that was asked for and is taken: %v", err)
	}
	// The default may be taken or not on this machine: hold it if nobody does.
	if l, err := net.Listen("tcp", DefaultAddr); err == nil {
		defer l.Close()
	}
	dir := t.TempDir()
	s, err := Listen(Config{RunDir: dir, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	defer s.l.Close()
	data, err := os.ReadFile(AddrFile(dir))
	if err != nil || strings.TrimSpace(string(data)) != s.Addr() || s.Addr() == DefaultAddr {
		t.Errorf("%s holds %q, %v; serving on %s", AddrFile(dir), data, err, s.Addr())
	}
}
