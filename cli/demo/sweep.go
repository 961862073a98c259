package demo

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"conduit.io/conduit/cli/lab"

	"golang.org/x/sys/unix"
)

// namePrefix and the process ID make a demo's name, which everything it makes carries.
const namePrefix = "cdt-demo-"

func clusterName() string { return namePrefix + strconv.Itoa(os.Getpid()) }

// sweep removes what demos left behind that could not clean up: those whose process was killed. It returns their names.
func sweep() (names []string, err error) {
	found, err := filepath.Glob(filepath.Join(lab.DefaultDir, namePrefix+"*"))
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, dir := range found {
		name := filepath.Base(dir)
		pid, err := strconv.Atoi(strings.TrimPrefix(name, namePrefix))
		if err != nil || pid == os.Getpid() || !errors.Is(unix.Kill(pid, 0), unix.ESRCH) {
			continue
		}
		if err := lab.Sweep(name, dir, lab.DefaultBPFFS); err != nil {
			errs = append(errs, fmt.Errorf("sweep: %w", err))
			continue
		}
		names = append(names, name)
	}
	return names, errors.Join(errs...)
}
