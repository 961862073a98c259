// Command conduit-cni is Conduit's chained CNI plugin; see package cni. With arguments it installs itself on a node; see
// package install.
package main

import (
	"os"

	"conduit.io/conduit/cni"
	"conduit.io/conduit/cni/install"
)

func main() {
	if len(os.Args) > 1 {
		os.Exit(install.Main(os.Args[1:], os.Stdout, os.Stderr))
	}
	cni.Main()
}
