// Command conduit-proxy is the data plane of one node.
package main

import (
	"os"

	"conduit.io/conduit/proxy"
)

// version is set by the build (-ldflags "-X main.version=...").
var version = "dev"

func main() {
	os.Exit(proxy.Run(proxy.Env{Args: os.Args[1:], Stdout: os.Stdout, Stderr: os.Stderr, Version: version}))
}
