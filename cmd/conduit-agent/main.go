// Command conduit-agent is the node daemon; see package agent.
package main

import (
	"os"

	"conduit.io/conduit/agent"
)

func main() {
	os.Exit(agent.Main(agent.Env{Args: os.Args[1:], Stdout: os.Stdout, Stderr: os.Stderr}))
}
