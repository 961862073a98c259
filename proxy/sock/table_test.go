package sock

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// tableSize is how many descriptors the kernel has room for (proc_pid_status(5), FDSize).
func tableSize(t *testing.T) int {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "FDSize:")
	var n int
	if _, err := fmt.Sscan(rest, &n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestGrowTable(t *testing.T) {
	want := 4 * tableSize(t)
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	low := unix.Rlimit{Cur: uint64(want), Max: limit.Max}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &low); err != nil {
		t.Fatal(err)
	}
	defer unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)
	for _, n := range []int{want / 2, want, 100 * want} { // the last one is more than it may have
		if err := GrowTable(n); err != nil {
			t.Fatal(err)
		}
		if got := tableSize(t); got < min(n, want) {
			t.Errorf("there is room for %d descriptors, want %d", got, min(n, want))
		}
	}
}
