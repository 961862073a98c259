// Package plan is what the host and the program that runs inside the booted kernel tell each other: the host leaves a
// Plan in the initial file system, the guest answers with marked lines on its console.
package plan

// File is where the guest finds the plan, in JSON.
const File = "/plan.json"

// Plan is what the guest does, in this order.
type Plan struct {
	Modules []string // files of kernel modules, each after those that it depends on
	Runs    []Run
}

// Run is one test binary.
type Run struct {
	Name string
	Args []string // the first one is the program's file
	Env  []string
}

// Mark begins every line that the guest itself writes; what follows is one of the words below and its argument.
const Mark = "conduit-kernels: "

const (
	Booted  = "booted"   // the kernel's release
	Began   = "began"    // the Run's name
	Passed  = "passed"   // the Run's name
	Failed  = "failed"   // the Run's name, and how it ended
	Broken  = "broken"   // why the guest could not do its work, or what the kernel complained of
	Done    = "done"     // nothing: the last line of a guest that came to its end
	Console = "ttyS0"    // the console, for the kernel's command line
	Shell   = "/init"    // the guest's program
	BinDir  = "/conduit" // the Conduit binaries; the CNI plugins are in cni below
)
