package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"conduit.io/conduit/tests/kernels/plan"
)

// write makes the initial file system of a guest.
func (t *tree) write(path string, k kernel) (err error) {
	out, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	buffered := bufio.NewWriterSize(out, 1<<20)
	a := newArchive(buffered)
	for _, f := range t.files {
		if err := a.copy(f); err != nil {
			return err
		}
	}
	modules, err := k.resolve(wanted)
	if err != nil {
		return err
	}
	p := plan.Plan{Runs: t.runs}
	for _, m := range modules {
		to := "/modules/" + m.name + ".ko"
		if err := a.file(to, m.elf); err != nil {
			return err
		}
		p.Modules = append(p.Modules, to)
	}
	text, err := json.Marshal(p)
	if err != nil {
		return err
	}
	if err := a.file(plan.File, text); err != nil {
		return err
	}
	if err := a.end(); err != nil {
		return err
	}
	return buffered.Flush()
}

// archive writes the format "newc" of cpio (cpio(5)), as the kernel reads it
// (Documentation/driver-api/early-userspace/buffer-format.rst).
type archive struct {
	w     io.Writer
	inode int
	dirs  map[string]bool
}

func newArchive(w io.Writer) *archive { return &archive{w: w, dirs: map[string]bool{"/": true}} }

const (
	modeFile = 0o100755
	modeDir  = 0o040755
)

func (a *archive) copy(f file) error {
	content, err := os.ReadFile(f.from)
	if err != nil {
		return err
	}
	return a.file(f.to, content)
}

// file adds a file, and the directories above it. path is absolute.
func (a *archive) file(path string, content []byte) error {
	if err := a.dir(filepath.Dir(path)); err != nil {
		return err
	}
	return a.entry(path, modeFile, content)
}

func (a *archive) dir(path string) error {
	if a.dirs[path] {
		return nil
	}
	a.dirs[path] = true
	if err := a.dir(filepath.Dir(path)); err != nil {
		return err
	}
	return a.entry(path, modeDir, nil)
}

func (a *archive) entry(path string, mode int, content []byte) error {
	a.inode++
	return a.raw(path[1:], a.inode, mode, content)
}

func (a *archive) end() error { return a.raw("TRAILER!!!", 0, 0, nil) }

// raw writes a header of thirteen numbers in hexadecimal, the name and the content, the last two up to a multiple of four.
func (a *archive) raw(name string, inode, mode int, content []byte) error {
	const headerSize = 110
	header := "070701"
	for _, n := range []int{inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0} {
		header += fmt.Sprintf("%08X", n)
	}
	header += name + "\x00" + padding(headerSize+len(name)+1)
	for _, b := range [][]byte{[]byte(header), content, []byte(padding(len(content)))} {
		if _, err := a.w.Write(b); err != nil {
			return err
		}
	}
	return nil
}

func padding(n int) string { return "\x00\x00\x00"[:(4-n%4)%4] }
