// Command conduit-cni is Conduit's chained CNI plugin; see package cni.
package main

import "conduit.io/conduit/cni"

func main() { cni.Main() }
