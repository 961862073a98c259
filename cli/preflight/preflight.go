// Package preflight finds out whether a machine can run a Conduit node, whether Conduit can be installed on a cluster, and whether it
// does its work there; and says what to do when not. It looks and changes nothing, but for Fix.
package preflight

import (
	"context"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"conduit.io/conduit/cli/cluster"

	"golang.org/x/sys/unix"
)

// Result is the outcome of a check.
type Result string

// The results. A warning does not fail the whole.
const (
	Success Result = "success"
	Warning Result = "warning"
	Failure Result = "error"
)

// Check is one question and its answer.
type Check struct {
	Description string `json:"description"`
	Result      Result `json:"result"`
	Error       string `json:"error,omitempty"` // what is wrong
	Hint        string `json:"hint,omitempty"`  // what to do

	mend func(ctx context.Context, c *cluster.Cluster, say func(string)) error // nil: it is for people to mend
}

// Category groups checks about one thing.
type Category struct {
	Name   string  `json:"categoryName"`
	Checks []Check `json:"checks"`
}

// Report is the outcome of all checks, in the form that check -o json writes.
type Report struct {
	Success    bool       `json:"success"`
	Fixed      []string   `json:"fixed,omitempty"` // what was done before, by check --fix
	Categories []Category `json:"categories"`
}

// System is the machine as the checks see it. Real is this one; tests make others.
type System struct {
	Root    fs.FS                                // the file system, for /proc and /sys; names without the leading slash
	UID     int                                  // effective
	Release string                               // of the kernel, as uname -r
	BinDir  string                               // where Conduit's programs are
	Find    func(path string) bool               // is there an executable file
	Version func(program string) (string, error) // of a Conduit program, asked with --version
}

// Real is the machine that this process runs on.
func Real() System {
	s := System{Root: os.DirFS("/"), UID: os.Geteuid(), Find: executable, Version: askVersion}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		s.Release = unix.ByteSliceToString(u.Release[:])
	}
	if exe, err := os.Executable(); err == nil {
		s.BinDir = filepath.Dir(exe)
	}
	return s
}

func executable(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0
}

func askVersion(program string) (string, error) {
	out, err := exec.Command(program, "--version").Output()
	return strings.TrimSpace(string(out)), err
}

// Run makes every check of a machine.
func Run(s System) Report {
	return report([]Category{
		{"privileges", []Check{s.root(), s.capabilities()}},
		{"kernel", []Check{s.kernelVersion(), s.btf(), s.lockdown()}},
		{"file-systems", []Check{s.cgroup2(), s.bpffs()}},
		{"programs", s.programs()},
	})
}

// report is the outcome of all checks. A warning does not fail it.
func report(categories []Category) Report {
	r := Report{Success: true, Categories: categories}
	for _, category := range categories {
		for _, check := range category.Checks {
			r.Success = r.Success && check.Result != Failure
		}
	}
	return r
}

func passed(description string) Check { return Check{Description: description, Result: Success} }

func failed(description, what, hint string) Check {
	return Check{Description: description, Result: Failure, Error: what, Hint: hint}
}

func warned(description, what, hint string) Check {
	return Check{Description: description, Result: Warning, Error: what, Hint: hint}
}
