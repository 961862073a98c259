// Package report makes of the samples of a benchmark what people and programs read: figures with their confidence
// intervals, whether the goals are met, tables, and the page in docs/.
package report

import (
	"encoding/json"
	"fmt"
	"os"
	"time"

	"conduit.io/conduit/tests/bench/rig"
	"conduit.io/conduit/tests/bench/stats"
)

// Schema is the version of the JSON.
const Schema = 1

// Run is a benchmark, and what is written as JSON. Figures and Goals are made from the rest by Derive; everything else
// is as it was measured.
type Run struct {
	Schema    int         `json:"schema"`
	Started   time.Time   `json:"started"`
	Seconds   float64     `json:"seconds"` // how long it took
	Commit    string      `json:"commit"`
	Machine   rig.Machine `json:"machine"`
	Settings  Settings    `json:"settings"`
	Peers     []Peer      `json:"peers"`
	Workloads []Workload  `json:"workloads"`
	Samples   []Sample    `json:"samples"`
	Memory    []Memory    `json:"memory"`
	Figures   []Figure    `json:"figures"`
	Goals     []Goal      `json:"goals"`
}

// Settings are how much was measured.
type Settings struct {
	Rounds         int     `json:"rounds"`    // that were whole
	SampleSeconds  float64 `json:"sample_s"`  // of a closed loop, about; of a bulk transfer
	LatencySeconds float64 `json:"latency_s"` // of an open loop
	SettleSeconds  float64 `json:"settle_s"`  // from the last idle connection to the measurement of memory
	RealTime       bool    `json:"realtime"`  // proxies, generator and backend went before everything else on the machine
	Full           bool    `json:"full"`      // every peer and workload, and the memory
}

// Peer is what was measured.
type Peer struct {
	Name    string `json:"name"`
	Title   string `json:"title"`
	Version string `json:"version"`
	Hops    int    `json:"hops"`
	MTLS    bool   `json:"mtls"`    // between the hops
	Control bool   `json:"control"` // no proxy for HTTP: there to compare with
	Skipped string `json:"skipped"` // why it was left out; empty when it was not
}

// Workload is with what.
type Workload struct {
	Name      string `json:"name"`
	Title     string `json:"title"`
	Kind      string `json:"kind"` // "cpu", "latency" or "bulk"
	Generator string `json:"generator"`
}

// Sample is one run of a workload against a peer.
type Sample struct {
	Workload  string   `json:"workload"`
	Peer      string   `json:"peer"`
	Round     int      `json:"round"` // from 0
	Completed int      `json:"completed"`
	Failed    int      `json:"failed"`
	Seconds   float64  `json:"seconds"`
	CPU       float64  `json:"cpu_s"` // processor time of all the peer's processes, s
	Bytes     int64    `json:"bytes,omitempty"`
	Latency   *Latency `json:"latency_us,omitempty"`
	RSS       int      `json:"rss_kb"` // of all the peer's processes, afterwards
	Anon      int      `json:"anon_kb"`
	Error     string   `json:"error,omitempty"` // why it does not count
}

// Latency are percentiles in µs, from when a request was to start.
type Latency struct {
	P50  float64 `json:"p50"`
	P99  float64 `json:"p99"`
	P999 float64 `json:"p999"`
}

// Memory is what a peer's processes keep in a state. Under load with two hops it is that of the hop that has more.
type Memory struct {
	Peer string `json:"peer"`
	// State is "h2c", "http1" or "mtls": so many idle connections, each of which had one request; of mtls, the processes are
	// those of the second hop. Or it is "load": requests at a rate.
	State       string `json:"state"`
	Connections int    `json:"connections"`
	Rate        int    `json:"rate,omitempty"`
	RSS         int    `json:"rss_kb"`
	Anon        int    `json:"anon_kb"`
	Error       string `json:"error,omitempty"`
}

// Figure is what the samples of a peer in a workload come to.
type Figure struct {
	Workload string `json:"workload"`
	Peer     string `json:"peer"`
	Metric   string `json:"metric"` // cpu_us, rps, p50_us, p99_us, p999_us, added_p50_us ..., over_l4_p50_us ..., mb_s
	stats.Interval
	// Ratio is to Conduit with as many hops, of the same rounds; only of cpu_us and mb_s.
	Ratio *stats.Interval `json:"ratio,omitempty"`
	Void  int             `json:"void"` // rounds that do not count
}

// Goal is a promise and what came of it.
type Goal struct {
	Subject  string `json:"subject"`
	Goal     string `json:"goal"`
	Measured string `json:"measured"`
	Verdict  string `json:"verdict"` // "met", "missed", or "not measured"
	// Value is compared with Limit: at least, or at most.
	Value   stats.Interval `json:"value"`
	Limit   float64        `json:"limit"`
	AtLeast bool           `json:"at_least"`
	// Ceiling, if not 0, is what Value must not exceed whether the goal is met or not, and Most is how that reads.
	Ceiling float64 `json:"ceiling,omitempty"`
	Most    string  `json:"most,omitempty"`
}

// Write writes r as JSON to path, each sample on a line.
func (r *Run) Write(path string) error {
	b, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode the report: %w", err)
	}
	if err := os.WriteFile(path, lines(b), 0o644); err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	return nil
}

// lines breaks JSON after each member of the outermost object, and of the arrays in it.
func lines(b []byte) []byte {
	out := make([]byte, 0, len(b)+len(b)/64)
	depth, text, escaped := 0, false, false
	for _, c := range b {
		if c == '"' && !escaped {
			text = !text
		}
		escaped = text && c == '\\' && !escaped
		if text {
			out = append(out, c)
			continue
		}
		switch c {
		case '{', '[':
			depth++
		case '}', ']':
			depth--
		}
		out = append(out, c)
		if c == ',' && depth <= 2 || c == '[' && depth == 2 {
			out = append(out, '\n')
		}
	}
	return append(out, '\n')
}

// Read reads what Write wrote, and derives the figures and goals anew.
func Read(path string) (*Run, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read a report: %w", err)
	}
	r := &Run{}
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("read a report: %s: %w", path, err)
	}
	if r.Schema != Schema {
		return nil, fmt.Errorf("read a report: %s has schema %d, this program knows %d", path, r.Schema, Schema)
	}
	r.Derive()
	return r, nil
}
