package manifest

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	maxFile = 16 << 20
	// racy is how long after its modification a file may change again without its times telling.
	racy = 2 * time.Second
)

// Source holds what the manifests in one directory say. It is safe for concurrent use.
type Source struct {
	dir string
	log *slog.Logger

	mu      sync.Mutex
	files   map[string]*file // by base name
	dirErr  error
	orphans []Fault // Namespaces that were removed under their Pods
	current *Objects
	gen     uint64
}

// file is one manifest with its history.
type file struct {
	stamp  stamp
	sum    [sha256.Size]byte
	parsed []*object // what it says now; meaningless when syntax is not empty
	syntax []Fault   // what is wrong with it by itself
	good   []*object // what is in force of it
	faults []Fault   // why good is not parsed; empty when it is
	told   string    // the faults that were logged last
}

// stamp tells whether a file may have changed.
type stamp struct {
	size  int64
	mtime time.Time
	info  os.FileInfo
	read  time.Time
}

// Open reads dir for the first time. Bad manifests are logged and counted, they are no error; a directory that cannot
// be read is one.
func Open(dir string, log *slog.Logger) (*Source, error) {
	s := &Source{dir: dir, log: log, files: map[string]*file{}, current: collectObjects(nil)}
	if _, err := os.ReadDir(dir); err != nil {
		return nil, fmt.Errorf("read manifests: %w (make the directory, and put Namespace, Pod and Service manifests into it)", err)
	}
	s.Scan()
	return s, nil
}

// Objects is the snapshot in force, and its generation, which grows when it changes.
func (s *Source) Objects() (*Objects, uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current, s.gen
}

// Faults is everything wrong now, by file and line.
func (s *Source) Faults() []Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Fault
	if s.dirErr != nil {
		out = append(out, Fault{File: s.dir, Message: s.dirErr.Error()})
	}
	for _, name := range s.names() {
		out = append(out, s.files[name].faults...)
	}
	return append(out, s.orphans...)
}

// Scan reads what has changed in the directory, and reports whether the snapshot in force did.
func (s *Source) Scan() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		// A directory that went away says nothing about the pods: what it said stays in force.
		if s.dirErr == nil {
			s.log.Error("manifest directory cannot be read; the last snapshot stays in force", "dir", s.dir, "error", err)
		}
		s.dirErr = err
		return false
	}
	s.dirErr = nil
	seen := map[string]bool{}
	changed := false
	for _, e := range entries {
		if !isManifest(e.Name()) {
			continue
		}
		seen[e.Name()] = true
		changed = s.read(e.Name(), seen) || changed
	}
	for name := range s.files {
		if !seen[name] {
			delete(s.files, name)
			changed = true
		}
	}
	if changed {
		s.resolve()
	}
	return changed
}

func isManifest(name string) bool {
	if strings.HasPrefix(name, ".") {
		return false // editors' and atomic writers' temporary files, and ..data of a mounted ConfigMap
	}
	switch filepath.Ext(name) {
	case ".yaml", ".yml", ".json":
		return true
	}
	return false
}

// read takes in one file if it changed. A file that vanished meanwhile is taken out of seen.
func (s *Source) read(name string, seen map[string]bool) (changed bool) {
	path := filepath.Join(s.dir, name)
	f := s.files[name]
	info, err := os.Stat(path) // follows links
	if err == nil && info.IsDir() || errors.Is(err, fs.ErrNotExist) {
		delete(seen, name)
		return false
	}
	if f != nil && err == nil && f.stamp.same(info) {
		return false
	}
	if f == nil {
		f = &file{}
		s.files[name] = f
	}
	now := time.Now()
	var data []byte
	if err == nil && info.Size() > maxFile {
		err = fmt.Errorf("the file is larger than %d MiB", maxFile>>20)
	}
	if err == nil {
		data, err = os.ReadFile(path)
	}
	if err != nil {
		f.stamp = stamp{}
		f.sum = [sha256.Size]byte{}
		f.syntax = []Fault{{File: path, Message: err.Error()}}
		return true
	}
	f.stamp = stamp{size: info.Size(), mtime: info.ModTime(), info: info, read: now}
	sum := sha256.Sum256(data)
	if sum == f.sum {
		return false
	}
	f.sum = sum
	f.parsed, f.syntax = parseFile(path, data)
	return true
}

// same reports whether the file is certainly the one that was read.
func (t stamp) same(info os.FileInfo) bool {
	return t.info != nil && os.SameFile(t.info, info) && t.size == info.Size() && t.mtime.Equal(info.ModTime()) &&
		t.read.Sub(t.mtime) > racy
}

func (s *Source) names() []string {
	names := make([]string, 0, len(s.files))
	for n := range s.files {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// resolve decides what is in force of each file. Files whose content is in force already go first, so that a new file
// cannot take an object away from them; a file that is bad, or defines what another one has, keeps its last content.
func (s *Source) resolve() {
	names := s.names()
	slices.SortStableFunc(names, func(a, b string) int { return rank(s.files[a]) - rank(s.files[b]) })
	claimed := map[objectKey]string{} // where it is defined
	var all []*object
	for _, name := range names {
		f := s.files[name]
		path := filepath.Join(s.dir, name)
		f.faults = f.syntax
		if len(f.faults) == 0 {
			f.faults = clashes(path, f.parsed, claimed)
		}
		if len(f.faults) == 0 {
			f.good = f.parsed
		}
		kept := f.good[:0:0]
		for _, o := range f.good {
			if _, taken := claimed[o.key()]; !taken {
				claimed[o.key()] = fmt.Sprintf("%s:%d", path, o.line)
				kept = append(kept, o)
			}
		}
		f.good = kept
		all = append(all, kept...)
		s.tell(path, f)
	}
	next := collectObjects(all)
	s.keepNamespaces(next)
	s.current = next
	s.gen++
}

// keepNamespaces keeps a Namespace that was removed while Pods are in it, as a cluster would: without its label they
// would leave the mesh, and speak in the clear.
func (s *Source) keepNamespaces(next *Objects) {
	before := s.orphans
	s.orphans = nil
	for name := range next.Pods {
		ns := s.current.Namespaces[name.Namespace]
		if ns == nil || next.Namespaces[name.Namespace] != nil {
			continue
		}
		next.Namespaces[name.Namespace] = ns
		s.orphans = append(s.orphans, Fault{File: s.dir, Message: fmt.Sprintf(
			"Namespace %s was removed, but Pod %s is still in it; what the Namespace said stays in force", name.Namespace, name)})
	}
	for _, f := range s.orphans {
		if !slices.Contains(before, f) {
			s.log.Error("manifest refused; what the file said before stays in force", "fault", f.String())
		}
	}
}

func rank(f *file) int {
	if len(f.syntax) > 0 || slices.Equal(f.parsed, f.good) {
		return 0
	}
	return 1
}

func clashes(path string, objects []*object, claimed map[objectKey]string) (faults []Fault) {
	for _, o := range objects {
		if where, taken := claimed[o.key()]; taken {
			faults = append(faults, Fault{File: path, Line: o.line, Message: fmt.Sprintf(
				"%s is defined in %s already; remove one of the two", o, where)})
		}
	}
	return faults
}

// tell logs a file's faults once per change, and that they are gone.
func (s *Source) tell(path string, f *file) {
	lines := make([]string, len(f.faults))
	for i, fault := range f.faults {
		lines[i] = fault.String()
	}
	now := strings.Join(lines, "\n")
	if now == f.told {
		return
	}
	if now == "" {
		s.log.Info("manifest is good again", "file", path)
	}
	for _, l := range lines {
		s.log.Error("manifest refused; what the file said before stays in force", "fault", l)
	}
	f.told = now
}
