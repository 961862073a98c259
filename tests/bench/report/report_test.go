package report

import (
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// measured makes a run of three peers and a control over five rounds, in which everything took twice as long in the
// last round.
func measured() *Run {
	r := &Run{
		Schema: Schema, Settings: Settings{Rounds: 5},
		Peers: []Peer{
			{Name: "direct", Title: "direct", Control: true}, {Name: "l4", Title: "L4", Hops: 1, Control: true},
			{Name: "conduit", Title: "Conduit", Hops: 1}, {Name: "conduit-mesh", Title: "Conduit, 2 hops", Hops: 2, MTLS: true},
			{Name: "haproxy", Title: "HAProxy", Hops: 1}, {Name: "caddy", Title: "Caddy", Hops: 1, Skipped: "not\ninstalled"},
		},
		Workloads: []Workload{{Name: "h2-c10-m10", Kind: "cpu"}, {Name: "open-1k", Kind: "latency"}, {Name: "bulk-up", Kind: "bulk"}},
	}
	cpu := map[string]float64{"conduit": 2, "conduit-mesh": 4, "haproxy": 6}
	p99 := map[string]float64{"direct": 200, "l4": 400, "conduit": 380, "conduit-mesh": 650}
	mbs := map[string]float64{"l4": 2000, "conduit": 1900}
	for round := range 5 {
		slow := 1.0
		if round == 4 {
			slow = 2
		}
		for _, p := range r.Peers {
			s := Sample{Peer: p.Name, Round: round, Completed: 1000, Seconds: 1}
			if us := cpu[p.Name]; us > 0 {
				s.Workload, s.CPU = "h2-c10-m10", us*slow/1000
				r.Samples = append(r.Samples, s)
			}
			if us := p99[p.Name]; us > 0 {
				s.Workload, s.Latency = "open-1k", &Latency{P50: us * slow / 2, P99: us * slow, P999: us * slow * 2}
				r.Samples = append(r.Samples, s)
				s.Latency = nil
			}
			if mb := mbs[p.Name]; mb > 0 {
				s.Workload, s.Bytes = "bulk-up", int64(mb/slow*1e6)
				r.Samples = append(r.Samples, s)
			}
		}
	}
	r.Memory = []Memory{
		{Peer: "conduit", State: "h2c", RSS: 4000}, {Peer: "conduit", State: "h2c", Connections: 1000, RSS: 5900},
		{Peer: "conduit", State: "h2c", Connections: 10000, RSS: 34000, Anon: 30000},
		{Peer: "conduit-mesh", State: "load", Rate: 5000, RSS: 6000, Anon: 2100},
	}
	r.Derive()
	return r
}

func TestFigures(t *testing.T) {
	r := measured()
	for _, tc := range []struct {
		workload, peer, metric string
		median                 float64
		void                   int
	}{
		{"h2-c10-m10", "haproxy", "cpu_us", 6, 0},
		{"h2-c10-m10", "conduit", "rps", 1000, 0},
		{"open-1k", "conduit-mesh", "p99_us", 650, 1},
		{"open-1k", "conduit-mesh", "added_p99_us", 450, 1},
		{"open-1k", "conduit-mesh", "over_l4_p99_us", 250, 1},
		{"bulk-up", "conduit", "mb_s", 1900, 0},
	} {
		f := r.figure(tc.workload, tc.peer, tc.metric)
		if f == nil || f.Median != tc.median || f.Void != tc.void {
			t.Errorf("%s of %s in %s: %+v, want %v and %d void", tc.metric, tc.peer, tc.workload, f, tc.median, tc.void)
		}
	}
	// In the slow round as well, HAProxy takes three times Conduit's time: the ratio has no spread.
	if f := r.figure("h2-c10-m10", "haproxy", "cpu_us"); f.Ratio == nil || f.Ratio.Low != 3 || f.Ratio.High != 3 {
		t.Errorf("ratio %+v", f.Ratio)
	}
	if f := r.figure("h2-c10-m10", "conduit-mesh", "cpu_us"); f.Ratio != nil {
		t.Errorf("a ratio to itself: %+v", f.Ratio)
	}
	if f := r.figure("open-1k", "l4", "over_l4_p99_us"); f != nil {
		t.Errorf("the control is compared with itself: %+v", f)
	}
}

func TestFailedSamplesDoNotCount(t *testing.T) {
	r := measured()
	for i := range r.Samples {
		if s := &r.Samples[i]; s.Peer == "haproxy" && s.Round < 2 {
			s.CPU, s.Failed = 99, 1
		}
	}
	r.Derive()
	if f := r.figure("h2-c10-m10", "haproxy", "cpu_us"); f.Median != 6 || f.N != 3 || f.Void != 2 || f.Ratio.N != 3 {
		t.Errorf("%+v", f)
	}
	for i := range r.Samples {
		r.Samples[i].Error = "all failed"
	}
	r.Derive()
	for _, g := range r.Goals {
		if g.Verdict != Unknown && !strings.Contains(g.Subject, "RSS") && !strings.Contains(g.Subject, "anonymous") && !strings.Contains(g.Subject, "memory") {
			t.Errorf("%s is %s without a sample that counts", g.Subject, g.Verdict)
		}
	}
}

func TestGoals(t *testing.T) {
	want := map[string]string{
		"CPU, h2-c10-m10, one hop: HAProxy to Conduit":                  Met,
		"CPU, h2-c10-m10, one hop: nghttpx to Conduit":                  Unknown,
		"CPU of a request, h2-c10-m10, one hop":                         Met,
		"CPU, h2-c10-m10: two hops mTLS to one plaintext HAProxy":       Met,
		"p99 added by two hops mTLS, open-1k":                           Met,
		"p99 of two hops mTLS over one L4 splice, open-1k":              Missed,
		"throughput, bulk-up, one hop: Conduit to the L4 splice":        Met,
		"throughput, bulk-up: two hops mTLS to two crypto/tls ends":     Unknown,
		"each proxy of a pair, mTLS, 5000 requests a second: RSS":       Met,
		"each proxy of a pair, mTLS, 5000 requests a second: anonymous": Missed,
		"memory of an idle connection, h2c":                             Missed,
		"RSS with 10000 idle connections, h2c":                          Missed,
	}
	got := map[string]string{}
	for _, g := range measured().Goals {
		got[g.Subject] = g.Verdict
		memory := strings.Contains(g.Subject, "RSS") || strings.Contains(g.Subject, "anonymous") || strings.Contains(g.Subject, "memory")
		if memory != (g.Ceiling > 0) || memory != (g.Most != "") {
			t.Errorf("%s has the ceiling %q, %v", g.Subject, g.Most, g.Ceiling)
		}
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("goals %v", got)
	}
}

func TestTables(t *testing.T) {
	var text, page strings.Builder
	for _, table := range measured().Tables() {
		if err := table.Text(&text); err != nil {
			t.Fatal(err)
		}
		table.Markdown(&page)
		for _, row := range table.Rows {
			if len(row) != len(table.Head) {
				t.Errorf("%s: %d cells below %d: %q", table.Title, len(row), len(table.Head), row)
			}
		}
	}
	for _, want := range []string{"6.0 (3.00×)", "+225 / +450 / +900", "1900, 1 µs", "33.2 (29.3)", "3.0, –, –", "not installed", "open-1k, all"} {
		if !strings.Contains(text.String(), want) || !strings.Contains(page.String(), want) {
			t.Errorf("%q is missing in\n%s\nor\n%s", want, text.String(), page.String())
		}
	}
}

func TestReadDerivesAnew(t *testing.T) {
	r := measured()
	r.Samples[0].Error = `a "quoted, [name]\`
	r.Derive()
	path := filepath.Join(t.TempDir(), "r.json")
	if err := r.Write(path); err != nil {
		t.Fatal(err)
	}
	got, err := Read(path)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, r) {
		t.Error("what was read differs from what was written")
	}
	if err := os.WriteFile(path, []byte(`{"schema": 99}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(path); err == nil || !strings.Contains(err.Error(), "schema 99") {
		t.Errorf("error %v", err)
	}
}

func TestSeriesWithoutVoidRounds(t *testing.T) {
	if got := (series{1, math.NaN(), 3}).without([]bool{false, false, true}).known(); len(got) != 1 || got[0] != 1 {
		t.Errorf("known %v", got)
	}
}
