// Package leak fails the tests of a package that leave descriptors or goroutines behind.
package leak

import (
	"fmt"
	"os"
	"runtime"
	"runtime/pprof"
	"testing"
	"time"
)

// Main runs the tests of m and returns the exit code: 1 also when, ten seconds after they have passed, the process has
// more descriptors or goroutines than before. What lives on by design must be there before the call.
func Main(m *testing.M) int {
	r, w, _ := os.Pipe() // makes the runtime open its own poller first
	r.Close()
	w.Close()
	fds, gos := Files(), runtime.NumGoroutine()
	code := m.Run()
	deadline := time.Now().Add(10 * time.Second)
	for code == 0 && (Files() > fds || runtime.NumGoroutine() > gos) {
		if time.Now().After(deadline) {
			fmt.Fprintf(os.Stderr, "leak: %d descriptors (%d before), %d goroutines (%d before)\n", Files(), fds, runtime.NumGoroutine(), gos)
			_ = pprof.Lookup("goroutine").WriteTo(os.Stderr, 1)
			code = 1
		}
		runtime.Gosched()
	}
	return code
}

// Files is how many descriptors the process has open.
func Files() int {
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		panic(err)
	}
	return len(d)
}
