package control

import (
	"fmt"
	"io"
	"maps"
	"net/http"
	"runtime/metrics"
	"slices"
	"strings"
	"syscall"
	"time"

	"conduit.io/conduit/mesh"
)

// process writes what every program has.
func process(w io.Writer, started time.Time) {
	family := func(name, kind, help string) { fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind) }
	family("conduit_build_info", "gauge", "Always 1; the version is the label.")
	fmt.Fprintf(w, "conduit_build_info{version=%q} 1\n", mesh.Version())
	family("process_start_time_seconds", "gauge", "When the process started, seconds since 1970.")
	fmt.Fprintf(w, "process_start_time_seconds %d\n", started.Unix())
	var use syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &use) // it cannot fail
	family("process_cpu_seconds_total", "counter", "CPU time that the process has taken.")
	fmt.Fprintf(w, "process_cpu_seconds_total %.2f\n", (time.Duration(use.Utime.Nano()) + time.Duration(use.Stime.Nano())).Seconds())
	runs := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/sched/goroutines:goroutines"}}
	metrics.Read(runs)
	family("go_memstats_heap_alloc_bytes", "gauge", "Objects on the heap, garbage that has not been collected included.")
	fmt.Fprintf(w, "go_memstats_heap_alloc_bytes %d\n", runs[0].Value.Uint64())
	family("go_goroutines", "gauge", "Goroutines.")
	fmt.Fprintf(w, "go_goroutines %d\n", runs[1].Value.Uint64())
}

// metrics answers in the Prometheus text exposition format, version 0.0.4.
func (s *Server) metrics(w http.ResponseWriter, _ *http.Request) {
	var b strings.Builder
	family := func(name, kind, help string) { fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind) }
	process(&b, s.started)
	count, expiry := 0, int64(0)
	if roots, err := s.bundle.get(); err == nil {
		count, expiry = roots.count, roots.expiry.Unix()
	}
	family("conduit_trust_bundle_roots", "gauge", "Root certificates in the trust bundle; 0 when there is none to serve.")
	fmt.Fprintf(&b, "conduit_trust_bundle_roots %d\n", count)
	if count > 0 {
		family("conduit_trust_bundle_expiry_seconds", "gauge", "When the first root expires, seconds since 1970.")
		fmt.Fprintf(&b, "conduit_trust_bundle_expiry_seconds %d\n", expiry)
	}
	family("conduit_controller_requests_total", "counter", "Requests answered, by route and class of status.")
	for _, route := range slices.Sorted(maps.Keys(s.requests)) {
		_, path, _ := strings.Cut(route, " ")
		for class := range s.requests[route] {
			if n := s.requests[route][class].Load(); n > 0 {
				fmt.Fprintf(&b, "conduit_controller_requests_total{path=%q,class=\"%dxx\"} %d\n", path, class, n)
			}
		}
	}
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	fmt.Fprint(w, b.String())
}
