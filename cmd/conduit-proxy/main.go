// Command conduit-proxy is the data plane of one node.
package main

import (
	"os"

	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy"
)

func main() {
	os.Exit(proxy.Run(proxy.Env{Args: os.Args[1:], Stdout: os.Stdout, Stderr: os.Stderr, Version: mesh.Version()}))
}
