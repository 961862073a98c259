package workload

import (
	"slices"
	"strings"
	"testing"
	"time"

	"conduit.io/conduit/tests/bench/peers"
)

func TestParseH2load(t *testing.T) {
	const out = `starting benchmark...
spawning thread #0: 10 total client(s). 60000 total requests

finished in 941.40ms, 63734.21 req/s, 11.22MB/s
requests: 60000 total, 60000 started, 60000 done, 59990 succeeded, 10 failed, 4 errored, 0 timeout
status codes: 59990 2xx, 0 3xx, 0 4xx, 6 5xx
`
	o, err := parseH2load([]byte(out))
	if err != nil || o.Completed != 59990 || o.Failed != 10 || o.Seconds != 0.9414 || !strings.Contains(o.Why, "4 errored") {
		t.Errorf("%+v, %v", o, err)
	}
	if _, err := parseH2load([]byte("[ERROR] Invalid URI\n")); err == nil {
		t.Error("no result is no error")
	}
}

func TestParseLoad(t *testing.T) {
	o, err := parseLoad([]byte(`{"sent":10,"completed":8,"failed":2,"failures":{"status-503":2},"duration_s":0.5,"latency_us":{"p50":150.5,"p99":900,"p999":1000}}`))
	if err != nil || o.Completed != 8 || o.Failed != 2 || o.Seconds != 0.5 || o.Latency.P50 != 150.5 || !strings.Contains(o.Why, "2 status-503") {
		t.Errorf("%+v, %v", o, err)
	}
	if _, err := parseLoad([]byte("load: cannot connect")); err == nil {
		t.Error("no result is no error")
	}
}

func TestParseBulk(t *testing.T) {
	o, err := parseBulk([]byte(`{"bytes":3000,"seconds":1.5}` + "\n"))
	if err != nil || o.Bytes != 3000 || o.Seconds != 1.5 {
		t.Errorf("%+v, %v", o, err)
	}
	if _, err := parseBulk([]byte(`{"bytes":0,"seconds":1.5}`)); err == nil {
		t.Error("nothing moved is no error")
	}
}

func TestArguments(t *testing.T) {
	named := func(name string) *Workload {
		i := slices.IndexFunc(All, func(w *Workload) bool { return w.Name == name })
		return All[i]
	}
	for name, want := range map[string]string{
		"h2-c10-m10":  "-n 500 -c 10 -m 10 -w30 -W30 http://a:1/",
		"upload-100k": "-n 500 -c 10 -m 10 -w30 -W30 -d F http://a:1/upload",
	} {
		if got := strings.Join(named(name).h2loadArgs("a:1", "F", 500), " "); got != want {
			t.Errorf("%s: %s", name, got)
		}
	}
	for name, want := range map[string]string{
		"grpc":     "run -o json --target a:1 --protocol grpc --connections 10 --path /load.Echo/Unary --streams 10 --requests 500 --body 128 --unique",
		"h1-c50":   "run -o json --target a:1 --protocol http1 --connections 50 --path / --streams 1 --requests 500",
		"h1h2-c50": "run -o json --target a:1 --protocol http1 --connections 50 --path / --streams 1 --requests 500",
		"open-5k":  "run -o json --target a:1 --protocol h2c --connections 10 --path / --mode open --rate 5000 --duration 4s --timeout 2s",
	} {
		if got := strings.Join(named(name).loadArgs("a:1", Size{Requests: 500, Duration: 4 * time.Second}), " "); got != want {
			t.Errorf("%s: %s", name, got)
		}
	}
}

func TestNamesAreUnique(t *testing.T) {
	seen := map[string]bool{}
	for _, w := range All {
		if seen[w.Name] {
			t.Errorf("two workloads are called %s", w.Name)
		}
		seen[w.Name] = true
	}
	if got := Lanes(All); !slices.Equal(got, []peers.Lane{peers.H2, peers.H1, peers.H1H2, peers.GRPC, peers.Raw}) {
		t.Errorf("lanes %v", got)
	}
}
