package main

import (
	"bytes"
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// wanted are the modules that Debian does not build into its kernels and that the tests use.
var wanted = []string{"dummy", "veth", "bridge"}

// module is a kernel module, not compressed.
type module struct {
	name string
	elf  []byte
}

// resolve finds the modules and those that they depend on, in the order in which they are loaded.
func (k kernel) resolve(names []string) ([]module, error) {
	r := resolver{files: map[string]string{}, builtin: map[string]bool{}, done: map[string]bool{}}
	err := filepath.WalkDir(k.modules, func(path string, e fs.DirEntry, err error) error {
		if name := moduleName(path); err == nil && name != "" && !e.IsDir() {
			r.files[name] = path
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	list, err := os.ReadFile(filepath.Join(k.modules, "modules.builtin"))
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(list)) {
		r.builtin[moduleName(strings.TrimSpace(line))] = true
	}
	for _, name := range names {
		if err := r.add(name); err != nil {
			return nil, err
		}
	}
	return r.order, nil
}

type resolver struct {
	files   map[string]string
	builtin map[string]bool
	done    map[string]bool
	order   []module
}

func (r *resolver) add(name string) error {
	if r.done[name] || r.builtin[name] {
		return nil
	}
	r.done[name] = true
	path, ok := r.files[name]
	if !ok {
		return fmt.Errorf("the kernel has no module %s", name)
	}
	content, err := readModule(path)
	if err != nil {
		return err
	}
	needs, err := depends(content)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	for _, n := range needs {
		if err := r.add(n); err != nil {
			return fmt.Errorf("%s needs: %w", name, err)
		}
	}
	r.order = append(r.order, module{name, content})
	return nil
}

// moduleName is "" if path is not a module's. The kernel takes - and _ for the same.
func moduleName(path string) string {
	name, rest, ok := strings.Cut(filepath.Base(path), ".ko")
	if !ok || rest != "" && rest != ".xz" {
		return ""
	}
	return strings.ReplaceAll(name, "-", "_")
}

func readModule(path string) ([]byte, error) {
	if !strings.HasSuffix(path, ".xz") {
		return os.ReadFile(path)
	}
	out, err := exec.Command("xz", "-dc", path).Output()
	if err != nil {
		return nil, fmt.Errorf("xz -dc %s: %w", path, err)
	}
	return out, nil
}

// depends reads the names of the modules that a module uses: the package has no modules.dep, which is made when it is
// installed.
func depends(content []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(content))
	if err != nil {
		return nil, err
	}
	section := f.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("no .modinfo")
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	for field := range strings.SplitSeq(string(info), "\x00") {
		if names, ok := strings.CutPrefix(field, "depends="); ok {
			return list(strings.ReplaceAll(names, "-", "_")), nil
		}
	}
	return nil, nil
}
