package metrics

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// maxBody bounds what is read of one answer: series are bounded, so this is never reached by an agent.
const maxBody = 64 << 20

// Source reads one agent's metrics. It is safe for concurrent use.
type Source struct {
	Addr   string // as the user gave it
	client *http.Client
}

// NewSource makes a Source for an admin endpoint: host:port, http://host:port, or unix:PATH.
func NewSource(addr string) *Source {
	s := &Source{Addr: addr}
	dialer := &net.Dialer{Timeout: 2 * time.Second}
	s.client = &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		Proxy: nil, // an agent is never behind the user's web proxy
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			if path, ok := strings.CutPrefix(addr, "unix:"); ok {
				network, address = "unix", path
			}
			return dialer.DialContext(ctx, network, address)
		},
	}}
	return s
}

// Scrape reads the samples of now.
func (s *Source) Scrape(ctx context.Context) ([]Sample, error) {
	host := strings.TrimSuffix(strings.TrimPrefix(s.Addr, "http://"), "/")
	if strings.HasPrefix(host, "unix:") {
		host = "agent"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+host+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	res, err := s.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("GET /metrics: %s", res.Status)
	}
	return Parse(io.LimitReader(res.Body, maxBody))
}

// Close drops idle connections.
func (s *Source) Close() { s.client.CloseIdleConnections() }

// Window reads every source, waits for d, reads again, and returns what happened between; with d zero, what happened
// since each agent started. It also returns the length of the window as it was measured.
func Window(ctx context.Context, sources []*Source, d time.Duration) ([]Sample, time.Duration, error) {
	first, err := scrapeAll(ctx, sources)
	if err != nil || d == 0 {
		return flatten(first), 0, err
	}
	start := time.Now()
	select {
	case <-ctx.Done():
		return nil, 0, ctx.Err()
	case <-time.After(d):
	}
	second, err := scrapeAll(ctx, sources)
	if err != nil {
		return nil, 0, err
	}
	for i := range second {
		second[i] = Since(first[i], second[i])
	}
	return flatten(second), time.Since(start), nil
}

func scrapeAll(ctx context.Context, sources []*Source) ([][]Sample, error) {
	out := make([][]Sample, len(sources))
	for i, s := range sources {
		samples, err := s.Scrape(ctx)
		if err != nil {
			return nil, fmt.Errorf("read metrics of %s: %w", s.Addr, err)
		}
		out[i] = samples
	}
	return out, nil
}

func flatten(all [][]Sample) []Sample {
	var out []Sample
	for _, s := range all {
		out = append(out, s...)
	}
	return out
}
