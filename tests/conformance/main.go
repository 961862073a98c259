// Command conformance runs h2spec against the proxy: HTTP/2 with prior knowledge and over TLS, on listeners that are told
// the protocol and on ones that detect it, before an upstream that speaks HTTP/2 and one that speaks HTTP/1.1. It writes
// h2spec's own reports and a summary, and fails when a case failed that known does not name.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// limit bounds one run of h2spec: 146 cases, of which a failing one takes at most 2 s.
const limit = 6 * time.Minute

type config struct{ proxy, h2spec, reports string }

func main() {
	runtime.LockOSThread() // the proxy ends with the thread that started it: see its Pdeathsig
	var c config
	flag.StringVar(&c.proxy, "proxy", "bin/conduit-proxy", "the proxy's `binary`")
	flag.StringVar(&c.h2spec, "h2spec", "bin/h2spec", "h2spec's `binary`")
	flag.StringVar(&c.reports, "reports", "tests/conformance/reports", "`directory` for the reports")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	ok, err := c.run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
	}
	if err != nil || !ok {
		os.Exit(1)
	}
}

// run tests every variant; it reports whether all of them do as they should.
func (c *config) run(ctx context.Context) (ok bool, err error) {
	if err := os.MkdirAll(c.reports, 0o755); err != nil {
		return false, err
	}
	dir, err := os.MkdirTemp("", "conduit-conformance-")
	if err != nil {
		return false, err
	}
	defer os.RemoveAll(dir)
	backend, stop, err := serve()
	if err != nil {
		return false, err
	}
	defer stop()
	p, err := startProxy(ctx, c.proxy, dir, backend)
	if err != nil {
		return false, err
	}
	defer p.stop()
	ok = true
	var summary strings.Builder
	for i, v := range variants {
		r, err := c.h2specRun(ctx, v, p.ports[i])
		if err != nil {
			return false, fmt.Errorf("%s: %w", v.name, err)
		}
		good := r.judge(v)
		summary.WriteString(r.text)
		fmt.Print(r.text)
		ok = ok && good
	}
	return ok, os.WriteFile(filepath.Join(c.reports, "h2spec.txt"), []byte(summary.String()), 0o644)
}

// h2specRun tests one listener.
func (c *config) h2specRun(ctx context.Context, v variant, port string) (*result, error) {
	report := filepath.Join(c.reports, "h2spec-"+v.name+".xml")
	if err := os.Remove(report); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	args := []string{"--strict", "-h", "127.0.0.1", "-p", port, "-j", report}
	if v.tls {
		args = append(args, "-t", "-k")
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	out, err := exec.CommandContext(ctx, c.h2spec, args...).CombinedOutput()
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || ctx.Err() != nil) { // that cases failed, the report says
		return nil, fmt.Errorf("run h2spec: %w\n%s", errors.Join(err, ctx.Err()), out)
	}
	data, err := os.ReadFile(report)
	if err != nil {
		return nil, fmt.Errorf("h2spec made no report: %w\n%s", err, out)
	}
	return parse(data)
}
