package loader

import (
	"bufio"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// testCgroup is the cgroup that the test process lives in; "" without root. Every test attaches there with pins of its
// own: the programs of one know nothing of the others' pods.
var testCgroup string

func TestMain(m *testing.M) {
	if os.Getenv(actorEnv) != "" {
		os.Exit(act())
	}
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "NOT ROOT: the kernel tests of loader are SKIPPED")
		os.Exit(m.Run())
	}
	leave, err := enterCgroup()
	if err != nil {
		fmt.Fprintln(os.Stderr, "loader tests:", err)
		os.Exit(1)
	}
	before := openFiles()
	code := m.Run()
	if leaked := leftovers(); code == 0 && len(leaked) > 0 {
		fmt.Fprintln(os.Stderr, "left in the kernel:", strings.Join(leaked, ", "))
		code = 1
	}
	if after := openFiles(); code == 0 && len(after) > len(before)+2 { // the netpoller and the race detector keep some
		fmt.Fprintf(os.Stderr, "leaked descriptors: %d before, %d after: %v\n", len(before), len(after), after)
		code = 1
	}
	if err := leave(); err != nil {
		fmt.Fprintln(os.Stderr, "loader tests:", err)
		code = 1
	}
	os.Exit(code)
}

// enterCgroup moves the process into a child cgroup of its own.
func enterCgroup() (leave func() error, err error) {
	root, err := cgroup2Mount()
	if err != nil {
		return nil, err
	}
	self, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	home := root
	for line := range strings.Lines(string(self)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			home = filepath.Join(root, path)
		}
	}
	testCgroup = filepath.Join(root, fmt.Sprintf("cdt-loader-test-%d", os.Getpid()))
	if err := os.Mkdir(testCgroup, 0o755); err != nil {
		return nil, err
	}
	pid := []byte(strconv.Itoa(os.Getpid()))
	leave = func() error {
		if err := os.WriteFile(filepath.Join(home, "cgroup.procs"), pid, 0); err != nil {
			return err
		}
		return os.Remove(testCgroup)
	}
	if err := os.WriteFile(filepath.Join(testCgroup, "cgroup.procs"), pid, 0); err != nil {
		os.Remove(testCgroup)
		return nil, err
	}
	return leave, nil
}

func cgroup2Mount() (string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		fields := strings.Fields(sc.Text())
		for i, v := range fields {
			if v == "-" && i+1 < len(fields) && fields[i+1] == "cgroup2" {
				return fields[4], nil
			}
		}
	}
	return "", fmt.Errorf("cgroup2 is not mounted")
}

func openFiles() []string {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return nil
	}
	var names []string
	for _, e := range entries {
		name, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err == nil {
			names = append(names, name)
		}
	}
	return names
}

// leftovers are the programs still attached to the test's cgroup.
func leftovers() []string {
	dir, err := os.Open(testCgroup)
	if err != nil {
		return []string{err.Error()}
	}
	defer dir.Close()
	var left []string
	for _, h := range hooks {
		res, err := link.QueryPrograms(link.QueryOptions{Target: int(dir.Fd()), Attach: h.attach})
		if err != nil {
			return []string{err.Error()}
		}
		for _, p := range res.Programs {
			left = append(left, fmt.Sprintf("%s id %d", h.program, p.ID))
		}
	}
	return left
}

func needRoot(t testing.TB) {
	t.Helper()
	if testCgroup == "" {
		t.Skip("needs root: BPF programs are loaded into the kernel")
	}
}

var pinDirs atomic.Int64

// pinDir is a pin directory for the test; everything below it is removed at the end.
func pinDir(t testing.TB) string {
	t.Helper()
	needRoot(t)
	dir := fmt.Sprintf("%s/cdt-loader-test-%d-%d", bpffsRoot, os.Getpid(), pinDirs.Add(1))
	t.Cleanup(func() {
		if err := Remove(dir); err != nil {
			t.Errorf("Remove: %v", err)
		}
		if exists(dir) {
			t.Errorf("%s is still there", dir)
		}
	})
	return dir
}

// open opens a data path that is closed and removed at the end.
func open(t testing.TB) *Datapath {
	t.Helper()
	return openAt(t, pinDir(t))
}

func openAt(t testing.TB, dir string) *Datapath {
	t.Helper()
	d, err := Open(Config{BPFFS: dir, Cgroup: testCgroup})
	if err != nil {
		t.Fatalf("Open: %+v", err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// objects are the ids of all programs, maps and links that a data path has in the kernel.
type objects struct {
	programs []ebpf.ProgramID
	maps     []ebpf.MapID
	links    []link.ID
}

func objectsOf(t *testing.T, d *Datapath) objects {
	t.Helper()
	var o objects
	pinned, err := filepath.Glob(d.cfg.BPFFS + "/[hl]*/*")
	if err != nil || len(pinned) < len(hooks) {
		t.Fatalf("pinned links: %v, %v", pinned, err)
	}
	for _, pin := range pinned {
		l, err := link.LoadPinnedLink(pin, nil)
		if err != nil {
			t.Fatal(err)
		}
		info, err := l.Info()
		l.Close()
		if err != nil {
			t.Fatal(err)
		}
		o.links = append(o.links, info.ID)
		o.programs = append(o.programs, info.Program)
		p, err := ebpf.NewProgramFromID(info.Program)
		if err != nil {
			t.Fatal(err)
		}
		pi, err := p.Info()
		p.Close()
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(pi.Name, "cdt_") || len(pi.Name) > unix.BPF_OBJ_NAME_LEN-1 {
			t.Errorf("program name %q", pi.Name)
		}
		ids, _ := pi.MapIDs()
		o.maps = append(o.maps, ids...)
	}
	return o
}

func sortedKeys(m map[string]uint64) []string { return slices.Sorted(maps.Keys(m)) }
