// Command conduit-proxy is the data plane of one node.
package main

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy"
)

// init gives the process its name, as ps and pgrep show it: an agent may have started it through a descriptor, and then the
// kernel calls it by that. PR_SET_NAME names the calling thread; initialization runs on the first one, which counts.
func init() {
	name := append([]byte("conduit-proxy"), 0)
	_ = unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&name[0])), 0, 0, 0)
}

func main() {
	os.Exit(proxy.Run(proxy.Env{Args: os.Args[1:], Stdout: os.Stdout, Stderr: os.Stderr, Version: mesh.Version()}))
}
