package testnet

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// object is a BPF program, map or link in the kernel. IDs are handed out in turn and not reused for a long time.
type object struct {
	kind string // program, map, link
	id   uint32
}

// NoteBPF remembers the BPF objects that are pinned by the lab's nodes, and the programs behind their links, so that
// the test fails if one of them outlives the lab. It runs by itself when the test ends; a test that uninstalls an
// agent calls it before.
func (n *Net) NoteBPF() {
	for _, node := range n.Nodes() {
		filepath.WalkDir(node.PinDir(), func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				for _, o := range pinned(path) {
					n.seen[o] = true
				}
			}
			return nil
		})
	}
}

// Noted is how many BPF objects NoteBPF has seen.
func (n *Net) Noted() int { return len(n.seen) }

// LeakedBPF waits until none of the noted objects exists any more (the kernel frees them in the background), and
// returns those that still do.
func (n *Net) LeakedBPF(timeout time.Duration) []string {
	deadline := time.Now().Add(timeout)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		var left []string
		for o := range n.seen {
			if o.exists() {
				left = append(left, fmt.Sprintf("%s %d", o.kind, o.id))
			}
		}
		if len(left) == 0 || time.Now().After(deadline) {
			return left
		}
		<-tick.C
	}
}

// Offsets in the kernel's info structures, from include/uapi/linux/bpf.h. Tests look at the kernel by themselves, rather than through
// the loader whose work they check.
const (
	programInfoIDAt   = 4 // bpf_prog_info: type, id
	mapInfoIDAt       = 4 // bpf_map_info: type, id
	linkInfoIDAt      = 4 // bpf_link_info: type, id, prog_id
	linkInfoProgramAt = 8
)

func (o object) exists() bool {
	cmd := map[string]uintptr{"program": unix.BPF_PROG_GET_FD_BY_ID, "map": unix.BPF_MAP_GET_FD_BY_ID, "link": unix.BPF_LINK_GET_FD_BY_ID}[o.kind]
	attr := struct{ id, next, flags, pad uint32 }{id: o.id}
	fd, errno := bpf(cmd, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	if errno != 0 {
		return errno != unix.ENOENT
	}
	unix.Close(int(fd))
	return true
}

// pinned says what a file in bpffs stands for; nothing if it cannot be opened.
func pinned(path string) []object {
	name, err := unix.BytePtrFromString(path)
	if err != nil {
		return nil
	}
	info := new([256]byte)
	// The kernel gets addresses inside a struct, where Go's escape analysis does not see them.
	var pin runtime.Pinner
	pin.Pin(name)
	pin.Pin(info)
	defer pin.Unpin()
	get := struct {
		path      uint64
		fd, flags uint32
	}{path: uint64(uintptr(unsafe.Pointer(name)))}
	fd, errno := bpf(unix.BPF_OBJ_GET, unsafe.Pointer(&get), unsafe.Sizeof(get))
	if errno != 0 {
		return nil
	}
	defer unix.Close(int(fd))
	ask := struct {
		fd, size uint32
		info     uint64
	}{fd: uint32(fd), size: uint32(len(info)), info: uint64(uintptr(unsafe.Pointer(info)))}
	if _, errno := bpf(unix.BPF_OBJ_GET_INFO_BY_FD, unsafe.Pointer(&ask), unsafe.Sizeof(ask)); errno != 0 {
		return nil
	}
	at := func(offset int) uint32 { return *(*uint32)(unsafe.Pointer(&info[offset])) }
	switch target(int(fd)) {
	case "anon_inode:bpf-prog":
		return []object{{"program", at(programInfoIDAt)}}
	case "anon_inode:bpf-map":
		return []object{{"map", at(mapInfoIDAt)}}
	case "anon_inode:bpf_link", "anon_inode:bpf-link":
		return []object{{"link", at(linkInfoIDAt)}, {"program", at(linkInfoProgramAt)}}
	}
	return nil
}

func target(fd int) string {
	buf := make([]byte, 64)
	n, err := unix.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd), buf)
	if err != nil {
		return ""
	}
	return string(buf[:n])
}

func bpf(cmd uintptr, attr unsafe.Pointer, size uintptr) (uintptr, unix.Errno) {
	fd, _, errno := unix.Syscall(unix.SYS_BPF, cmd, uintptr(attr), size)
	return fd, errno
}
