package workload

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"time"

	"conduit.io/conduit/tests/load/drive"
)

// Outcome is what a generator says.
type Outcome struct {
	Completed int // requests with the answer that was due
	Failed    int
	Why       string // of the failures, if the generator says it
	Seconds   float64
	Bytes     int64          // of Bulk
	Latency   *drive.Latency // of Latency
}

var (
	h2loadRequests = regexp.MustCompile(`(?m)^requests: (\d+) total, \d+ started, (\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout`)
	h2loadTook     = regexp.MustCompile(`(?m)^finished in ([0-9.]+)(us|ms|s|m)`)
)

func parseH2load(out []byte) (*Outcome, error) {
	r, took := h2loadRequests.FindSubmatch(out), h2loadTook.FindSubmatch(out)
	if r == nil || took == nil {
		return nil, fmt.Errorf("h2load printed no result: %q", out[:min(len(out), 200)])
	}
	count := func(i int) int { n, _ := strconv.Atoi(string(r[i])); return n }
	d, err := time.ParseDuration(string(took[1]) + string(took[2]))
	if err != nil {
		return nil, fmt.Errorf("h2load's time: %w", err)
	}
	o := &Outcome{Completed: count(3), Failed: count(1) - count(3), Seconds: d.Seconds()}
	if o.Failed > 0 {
		o.Why = string(r[0])
	}
	return o, nil
}

func parseLoad(out []byte) (*Outcome, error) {
	var r drive.Result
	if err := json.Unmarshal(out, &r); err != nil {
		return nil, fmt.Errorf("load's result: %w", err)
	}
	o := &Outcome{Completed: int(r.Completed), Failed: int(r.Failed), Seconds: r.Seconds, Latency: &r.Latency}
	for why, n := range r.Failures {
		o.Why += fmt.Sprintf("%d %s ", n, why)
	}
	return o, nil
}

func parseBulk(out []byte) (*Outcome, error) {
	var r struct {
		Bytes   int64   `json:"bytes"`
		Seconds float64 `json:"seconds"`
	}
	if err := json.Unmarshal(bytes.TrimSpace(out), &r); err != nil {
		return nil, fmt.Errorf("bulk's result: %w", err)
	}
	if r.Bytes == 0 || r.Seconds <= 0 {
		return nil, errors.New("bulk moved nothing")
	}
	return &Outcome{Completed: 1, Seconds: r.Seconds, Bytes: r.Bytes}, nil
}
