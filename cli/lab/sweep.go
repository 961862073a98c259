package lab

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// ownerFile, in a lab's directory, names the process that has the lab.
const ownerFile = "owner"

// Sweep removes what is left of a lab whose process was killed before it could call Close: processes, namespaces,
// pins (and with them the programs), and the directory. dir and bpffs are what the lab's Config had. It refuses while
// that process lives.
func Sweep(name, dir, bpffs string) error {
	if !validName.MatchString(name) {
		return fmt.Errorf("sweep lab: bad name %q", name)
	}
	if Alive(dir) {
		return fmt.Errorf("sweep lab %s: the process that made it is still there", name)
	}
	names, err := filepath.Glob(filepath.Join(netnsDir, name+".*"))
	if err != nil {
		return err
	}
	var spaces []*Netns
	for _, path := range names {
		spaces = append(spaces, &Netns{name: filepath.Base(path)})
	}
	errs := []error{killInside(spaces)}
	pins, err := filepath.Glob(filepath.Join(bpffs, name+"-*"))
	errs = append(errs, err)
	for _, pin := range pins {
		errs = append(errs, os.RemoveAll(pin))
	}
	for _, s := range spaces {
		errs = append(errs, s.remove())
	}
	return errors.Join(append(errs, os.RemoveAll(dir))...)
}

// Alive reports whether the process that made a lab in dir still runs.
func Alive(dir string) bool {
	owner, err := os.ReadFile(filepath.Join(dir, ownerFile))
	if err != nil {
		return false
	}
	pid, _, _ := strings.Cut(string(owner), " ")
	now, err := processMark(pid)
	return err == nil && bytes.Equal(owner, now)
}

// writeOwner marks dir as this process's.
func writeOwner(dir string) error {
	mark, err := processMark(fmt.Sprint(os.Getpid()))
	if err != nil {
		return err
	}
	tmp := filepath.Join(dir, ownerFile+".new") // renamed, or a sweeper might read half of it
	if err := os.WriteFile(tmp, mark, 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(dir, ownerFile))
}

// processMark tells a process from a later one with the same ID: the ID and the start time, field 22 of
// proc_pid_stat(5). The fields before that may hold any character, up to the last parenthesis.
func processMark(pid string) ([]byte, error) {
	stat, err := os.ReadFile(filepath.Join("/proc", pid, "stat"))
	if err != nil {
		return nil, err
	}
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 20 {
		return nil, fmt.Errorf("read the start time of process %s: only %d fields", pid, len(fields))
	}
	return fmt.Appendf(nil, "%s %s", pid, fields[19]), nil
}
