package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Remove detaches and unpins everything below bpffs, deletes the directory, and makes sure that none of the programs is
// attached any more. Nothing there is no error. It fails with ErrLocked while an agent has the directory open.
func Remove(bpffs string) error { return removeWithin(bpffs, 0) }

func removeWithin(bpffs string, timeout time.Duration) error {
	p := pins(bpffs)
	if !exists(bpffs) {
		return nil
	}
	if ok, err := onBPFFS(bpffs); err != nil || !ok {
		return errors.Join(err, fmt.Errorf("remove %s: it is not on a bpffs, so nothing of Conduit can be pinned there", bpffs))
	}
	lock, err := p.acquire(timeout, false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // somebody else just did it
	}
	if err != nil {
		return fmt.Errorf("remove %s: %w", bpffs, err)
	}
	defer lock.Close()
	if err := p.remove(); err != nil {
		return fmt.Errorf("remove %s: %w", bpffs, err)
	}
	return nil
}

// remove empties and deletes the directory, which the caller has locked.
func (p pins) remove() error {
	programs := map[ebpf.ProgramID]bool{}
	// Connect hooks first: from then on nothing is marked.
	for i := len(hooks) - 1; i >= 0; i-- {
		if err := p.removeNoted(p.hook(hooks[i].program), programs); err != nil {
			return err
		}
	}
	for _, dir := range []string{p.hooks(), p.lookups()} {
		if err := p.removeLinks(dir, programs); err != nil {
			return err
		}
	}
	maps, err := filepath.Glob(filepath.Join(string(p), mapsPrefix+"*"))
	if err != nil {
		return err
	}
	for _, dir := range maps {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	if err := p.removeDirectory(); err != nil {
		return err
	}
	return verifyDetached(programs)
}

// removeDirectory deletes the emptied directory, and those above it that only led there. A bpffs that is mounted at one
// of them was there before, and stays.
func (p pins) removeDirectory() error {
	err := os.Remove(string(p))
	if err != nil && !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("it holds something that is not Conduit's: %w", err)
	}
	for dir := filepath.Dir(string(p)); err == nil && dir != "/"; dir = filepath.Dir(dir) {
		if ok, _ := onBPFFS(dir); !ok {
			break
		}
		err = os.Remove(dir)
	}
	return nil
}

// Leftovers are the paths that Remove should have removed.
func Leftovers(bpffs string) ([]string, error) {
	entries, err := os.ReadDir(bpffs)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read pin directory: %w", err)
	}
	var dir, above unix.Stat_t
	if err := errors.Join(unix.Stat(bpffs, &dir), unix.Stat(filepath.Join(bpffs, ".."), &above)); err != nil {
		return nil, fmt.Errorf("stat pin directory: %w", err)
	}
	if dir.Dev == above.Dev {
		return []string{bpffs}, nil
	}
	var left []string
	for _, e := range entries { // of a mount: only what is Conduit's
		if name := e.Name(); name == hooksDir || name == lookupsDir || strings.HasPrefix(name, mapsPrefix) {
			left = append(left, filepath.Join(bpffs, name))
		}
	}
	return left, nil
}

func (p pins) removeLinks(dir string, programs map[ebpf.ProgramID]bool) error {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		if err := p.removeNoted(filepath.Join(dir, e.Name()), programs); err != nil {
			return err
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// removeNoted removes a link and notes its program. A link that is not there is no error.
func (p pins) removeNoted(pin string, programs map[ebpf.ProgramID]bool) error {
	l, err := link.LoadPinnedLink(pin, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", pin, err)
	}
	info, err := l.Info()
	l.Close()
	if err != nil {
		return fmt.Errorf("%s: %w", pin, err)
	}
	programs[info.Program] = true
	return removeLink(pin)
}

// removeLink detaches a pinned link, whoever else holds it open, and unpins it.
func removeLink(pin string) error {
	l, err := link.LoadPinnedLink(pin, nil)
	if err != nil {
		return err
	}
	defer l.Close()
	// A link whose cgroup or namespace is gone is detached already: ENOLINK, or success.
	if err := l.Detach(); err != nil && !errors.Is(err, unix.ENOLINK) {
		return fmt.Errorf("detach %s: %w", pin, err)
	}
	return l.Unpin()
}

// verifyDetached looks for links in the kernel that still attach one of the programs.
func verifyDetached(programs map[ebpf.ProgramID]bool) error {
	var it link.Iterator
	defer it.Close()
	for it.Next() {
		info, err := it.Link.Info()
		if err != nil || !programs[info.Program] {
			continue
		}
		cg, ns := info.Cgroup(), info.NetNs()
		if (cg != nil && cg.CgroupId != 0) || (ns != nil && ns.NetnsInode != 0) {
			return fmt.Errorf("%w: link %d still attaches program %d: see 'bpftool link show id %d'",
				ErrMismatch, info.ID, info.Program, info.ID)
		}
	}
	return it.Err()
}
