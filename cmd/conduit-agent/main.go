// Command conduit-agent is the node daemon; see package agent.
package main

import (
	"os"
	"runtime"

	"conduit.io/conduit/agent"
)

// The first thread stays with main. A goroutine that enters a pod's network namespace and cannot leave takes its thread
// with it when it ends, but the first thread cannot end: it would hold the namespace, and pass for the process's own.
func init() { runtime.LockOSThread() }

func main() {
	os.Exit(agent.Main(agent.Env{Args: os.Args[1:], Stdout: os.Stdout, Stderr: os.Stderr, Getenv: os.Getenv}))
}
