package testnet

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"conduit.io/conduit/cli/lab"
)

// TestLeakedBPF makes a map outlive its pin, as a forgotten descriptor would, and expects it to be noticed.
func TestLeakedBPF(t *testing.T) {
	n := New(t, Config{})
	node := n.Node("one", lab.NodeConfig{})
	if err := os.Mkdir(node.PinDir(), 0o700); err != nil {
		t.Fatal(err)
	}
	fd := pinArray(t, filepath.Join(node.PinDir(), "leak"))
	n.NoteBPF()
	if n.Noted() != 1 {
		t.Fatalf("%d objects noted, want the map", n.Noted())
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(node.PinDir()); !os.IsNotExist(err) {
		t.Errorf("pin directory after Close: %v", err)
	}
	if left := n.LeakedBPF(100 * time.Millisecond); len(left) != 1 || !strings.HasPrefix(left[0], "map ") {
		t.Errorf("leaked: %v, want the map", left)
	}
	unix.Close(fd)
	if left := n.LeakedBPF(10 * time.Second); len(left) != 0 {
		t.Errorf("leaked after the last reference has gone: %v", left)
	}
}

// pinArray makes a BPF array map and pins it; the caller must close it.
func pinArray(t *testing.T, path string) int {
	t.Helper()
	create := struct{ kind, key, value, entries, flags, pad uint32 }{kind: unix.BPF_MAP_TYPE_ARRAY, key: 4, value: 4, entries: 1}
	fd, errno := bpf(unix.BPF_MAP_CREATE, unsafe.Pointer(&create), unsafe.Sizeof(create))
	if errno != 0 {
		t.Fatalf("create map: %v", errno)
	}
	name, err := unix.BytePtrFromString(path)
	if err != nil {
		t.Fatal(err)
	}
	var pin runtime.Pinner
	pin.Pin(name)
	defer pin.Unpin()
	obj := struct {
		path      uint64
		fd, flags uint32
	}{path: uint64(uintptr(unsafe.Pointer(name))), fd: uint32(fd)}
	if _, errno := bpf(unix.BPF_OBJ_PIN, unsafe.Pointer(&obj), unsafe.Sizeof(obj)); errno != 0 {
		t.Fatalf("pin map: %v", errno)
	}
	return int(fd)
}
