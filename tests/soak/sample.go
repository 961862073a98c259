package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

// reading is the state of a proxy at a time.
type reading struct {
	RSS         float64 `json:"rss_kb"`
	Anon        float64 `json:"rss_anon_kb"`
	Goroutines  float64 `json:"goroutines"`
	Files       float64 `json:"fds"`
	Connections float64 `json:"connections"` // accepted, of any kind
	Opaque      float64 `json:"tcp_connections"`
	Streams     float64 `json:"streams"` // requests that have begun and not ended
	CPU         float64 `json:"cpu_s"`   // used until now
	Starved     float64 `json:"wait_s"`  // for which its threads were ready, and others ran
}

// sample is what is recorded every few seconds, a line of JSON.
type sample struct {
	At      time.Time          `json:"at"`
	Seconds float64            `json:"t"`
	Phase   string             `json:"phase"`
	Proxies map[string]reading `json:"proxies"`
	Sent    uint64             `json:"sent"`
	Done    uint64             `json:"completed"`
	Failed  uint64             `json:"failed"`
	Reasons map[string]uint64  `json:"failures"` // of the good requests, by kind and reason
	Misuses uint64             `json:"misuses"`
}

var client = &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

// get asks the admin server.
func (p *proxy) get(path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, "http://"+p.admin.String()+path, nil)
	if err != nil {
		return nil, err
	}
	res, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != 200 {
		err = fmt.Errorf("GET %s: %s", path, res.Status)
	}
	return body, err
}

// read takes a reading.
func (p *proxy) read() (r reading, err error) {
	select {
	case err := <-p.ended:
		p.ended <- err
		return r, fmt.Errorf("%s proxy: ended: %v", p.name, err)
	default:
	}
	text, err := p.get("/metrics")
	if err != nil {
		return r, fmt.Errorf("%s proxy: %w", p.name, err)
	}
	m := sums(text)
	r.Goroutines = m["conduit_proxy_goroutines"]
	r.Connections = m["conduit_proxy_connections_open"]
	r.Opaque = m["tcp_open_connections"]
	r.Streams = m["request_total"] - m["response_total"]
	proc := "/proc/" + strconv.Itoa(p.cmd.Process.Pid)
	status, err := os.ReadFile(proc + "/status")
	if err != nil {
		return r, err
	}
	for line := range strings.Lines(string(status)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "VmRSS:":
			r.RSS, err = strconv.ParseFloat(f[1], 64)
		case "RssAnon:":
			r.Anon, err = strconv.ParseFloat(f[1], 64)
		}
		if err != nil {
			return r, err
		}
	}
	if r.CPU, r.Starved, err = cpu(proc); err != nil {
		return r, err
	}
	fds, err := os.ReadDir(proc + "/fd")
	r.Files = float64(len(fds))
	return r, err
}

// cpu is for how many seconds the threads of a process ran, and waited for a processor.
func cpu(proc string) (ran, waited float64, err error) {
	tasks, err := os.ReadDir(proc + "/task")
	for _, t := range tasks {
		data, err := os.ReadFile(proc + "/task/" + t.Name() + "/schedstat")
		if err != nil {
			continue // it has ended
		}
		var r, w float64
		if _, err := fmt.Sscan(string(data), &r, &w); err != nil {
			return 0, 0, err
		}
		ran += r / 1e9
		waited += w / 1e9
	}
	return ran, waited, err
}

// sums adds up the series of each metric.
func sums(text []byte) map[string]float64 {
	m := map[string]float64{}
	for s := bufio.NewScanner(bytes.NewReader(text)); s.Scan(); {
		line := s.Text()
		name, _, _ := strings.Cut(line, " ")
		name, _, _ = strings.Cut(name, "{")
		v, err := strconv.ParseFloat(line[strings.LastIndexByte(line, ' ')+1:], 64)
		if name != "#" && err == nil {
			m[name] += v
		}
	}
	return m
}
