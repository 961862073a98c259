package sock

import (
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"conduit.io/conduit/api/kernel"

	"golang.org/x/sys/unix"
)

// TagMap is the BPF socket storage by which the kernel's programs tell the proxy's own sockets from the pods'.
type TagMap struct {
	fd int
}

// NewTagMap keeps a duplicate of f, a descriptor of a BPF_MAP_TYPE_SK_STORAGE map; f stays the caller's.
func NewTagMap(f *os.File) (*TagMap, error) {
	fd, err := dupFile(f)
	if err != nil {
		return nil, fmt.Errorf("open socket-tag map: %w", err)
	}
	return &TagMap{fd: fd}, nil
}

// Close gives the map back; it must not be in use.
func (m *TagMap) Close() error { return unix.Close(m.fd) }

// put stores tag at the socket fd (bpf(2), BPF_MAP_UPDATE_ELEM; the key is the descriptor).
func (m *TagMap) put(fd int, tag *kernel.SockTag) error {
	key := uint32(fd)
	attr := struct {
		fd    uint32
		_     uint32
		key   uint64
		value uint64
		flags uint64
	}{fd: uint32(m.fd), key: uint64(uintptr(unsafe.Pointer(&key))), value: uint64(uintptr(unsafe.Pointer(tag)))}
	// The kernel follows the addresses inside attr, which the collector does not see: nothing may move meanwhile.
	var pin runtime.Pinner
	pin.Pin(&key)
	pin.Pin(tag)
	_, _, e := unix.RawSyscall(unix.SYS_BPF, unix.BPF_MAP_UPDATE_ELEM, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	pin.Unpin()
	if e != 0 {
		return e
	}
	return nil
}
