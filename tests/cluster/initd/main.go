// Command initd is the init of a machine; see package machine.
package main

import (
	"os"

	"conduit.io/conduit/tests/cluster/machine"
)

func main() { os.Exit(machine.Init(os.Args[1:])) }
