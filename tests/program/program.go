// Package program builds the programs that tests run.
package program

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Build builds packages of programs into a directory, which it makes, without cgo, as make does.
func Build(dir string, packages ...string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	cmd := exec.Command("go", append([]string{"build", "-o", dir + string(filepath.Separator)}, packages...)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", strings.Join(packages, " "), err, out)
	}
	return nil
}

// Main is for a TestMain: it runs tests with programs in a directory that is removed afterwards, and returns their exit code, or 1.
func Main(tests func(dir string) int, packages ...string) int {
	dir, err := os.MkdirTemp("", "conduit-program-")
	if err == nil {
		defer os.RemoveAll(dir)
		err = Build(dir, packages...)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return tests(dir)
}
