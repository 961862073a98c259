package proxy

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestMapSingly: a page of a file that is touched comes alone.
func TestMapSingly(t *testing.T) {
	exe, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer exe.Close()
	page := os.Getpagesize()
	m, err := unix.Mmap(int(exe.Fd()), 0, 256*page, unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(m)
	from := uintptr(unsafe.Pointer(&m[0]))
	spans := []span{{from, from + uintptr(len(m))}}
	fd, err := mapSingly(spans)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPERM) {
		t.Skipf("this kernel cannot watch files for writes asynchronously: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	sum := m[20*page] + m[200*page]
	if got := residentAt(t, from); got != 2*page {
		t.Errorf("%d bytes are resident after two pages were touched (%d)", got, sum)
	}
	drop(spans)
	if got := residentAt(t, from); got != 0 {
		t.Errorf("%d bytes are resident after drop", got)
	}
}

// residentAt is how much of the mapping at an address is resident, by /proc/self/smaps.
func residentAt(t *testing.T, addr uintptr) int {
	t.Helper()
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	here := false
	for sc := bufio.NewScanner(f); sc.Scan(); {
		line := sc.Text()
		if strings.HasPrefix(line, fmt.Sprintf("%x-", addr)) {
			here = true
		}
		kb := 0
		if _, err := fmt.Sscanf(line, "Rss: %d kB", &kb); here && err == nil {
			return kb << 10
		}
	}
	t.Fatalf("no mapping at %x", addr)
	return 0
}

// TestProgramIsFound: what is to be dropped are the mappings of this very program.
func TestProgramIsFound(t *testing.T) {
	spans, err := program()
	if err != nil {
		t.Fatal(err)
	}
	code := reflect.ValueOf(TestProgramIsFound).Pointer()
	for _, s := range spans {
		if s.from <= code && code < s.to {
			return
		}
	}
	t.Errorf("none of %v holds the address %x of a function", spans, code)
}
