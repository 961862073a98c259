package lab

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
)

// Config says what to build a Lab from.
type Config struct {
	// Name is the prefix of everything the lab makes; it must be unique on the machine. 1 to 20 characters of
	// [a-z0-9-].
	Name string
	// Dir holds run directories, manifests, certificates and logs; empty means /run/conduit-lab/NAME. It must not
	// exist, or be empty, and its path must be short: Unix sockets live below it. Close removes it.
	Dir string
	// PluginPath lists the directories with the CNI plugins bridge, ptp and host-local.
	PluginPath []string
	// BinDir has conduit-agent, conduit-proxy and conduit-cni. It may be empty in a lab without agents.
	BinDir string
	// BPFFS is a bpffs mount point, by default /sys/fs/bpf; it is mounted if it is not.
	BPFFS string
	// Cgroup is the cgroup2 directory that agents attach to; empty means the root of the hierarchy.
	Cgroup string
	// Log receives what the lab does; nil discards it.
	Log *slog.Logger
}

// Lab is a set of nodes and pods. Close it when done.
type Lab struct {
	cfg Config
	log *slog.Logger
	sw  *fabric

	mu        sync.Mutex
	nodes     []*Node
	pods      []*Pod
	spaces    []*Netns // made by NewNetns
	manifests map[string]manifest
	closed    bool
}

// DefaultDir holds the directories of labs that do not name their own.
const DefaultDir = "/run/conduit-lab"

var validName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,18}[a-z0-9])?$`)

// New makes an empty lab: its directory and the switch. On error nothing is left.
func New(cfg Config) (*Lab, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	l := &Lab{cfg: cfg, log: cfg.Log, manifests: map[string]manifest{}}
	if err := makeEmptyDir(cfg.Dir); err != nil {
		return nil, err
	}
	if err := writeOwner(cfg.Dir); err != nil {
		return nil, errors.Join(fmt.Errorf("make lab directory: %w", err), os.RemoveAll(cfg.Dir))
	}
	mounted, err := EnsureBPFFS(cfg.BPFFS)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(cfg.Dir))
	}
	if mounted {
		l.log.Info("mounted bpffs; it stays mounted", "path", cfg.BPFFS)
	}
	if l.sw, err = newFabric(cfg.Name); err != nil {
		return nil, errors.Join(err, os.RemoveAll(cfg.Dir))
	}
	return l, nil
}

func (c *Config) complete() error {
	if os.Geteuid() != 0 {
		return errors.New("a lab needs root: it makes network namespaces (run it with sudo)")
	}
	if !validName.MatchString(c.Name) {
		return fmt.Errorf("lab name %q: want 1 to 20 characters of a-z, 0-9 and -", c.Name)
	}
	if c.Dir == "" {
		c.Dir = filepath.Join(DefaultDir, c.Name)
	}
	if c.BPFFS == "" {
		c.BPFFS = DefaultBPFFS
	}
	if c.Cgroup == "" {
		root, err := CgroupRoot()
		if err != nil {
			return err
		}
		c.Cgroup = root
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return nil
}

func makeEmptyDir(dir string) error {
	entries, err := os.ReadDir(dir)
	if err == nil && len(entries) > 0 {
		return fmt.Errorf("lab directory %s is not empty (a lab of that name runs, or was killed: see `ip netns` and remove it)", dir)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make lab directory: %w", err)
	}
	return nil
}

// Name is the lab's prefix.
func (l *Lab) Name() string { return l.cfg.Name }

// Dir is the lab's directory.
func (l *Lab) Dir() string { return l.cfg.Dir }

// Cgroup is the cgroup2 directory that the lab's agents attach to.
func (l *Lab) Cgroup() string { return l.cfg.Cgroup }

// Switch is the namespace that all traffic between nodes crosses, for captures.
func (l *Lab) Switch() *Netns { return l.sw.ns }

// Nodes lists the nodes in the order in which they were added.
func (l *Lab) Nodes() []*Node {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]*Node(nil), l.nodes...)
}

// Pods lists the pods that are there.
func (l *Lab) Pods() []*Pod {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]*Pod(nil), l.pods...)
}

// NewNetns makes a namespace that no plugin has wired yet, as a runtime has it just before ADD; only its loopback is
// up. Close removes it.
func (l *Lab) NewNetns(name string) (*Netns, error) {
	ns, err := createNetns(l.cfg.Name + ".netns." + name)
	if err != nil {
		return nil, err
	}
	if err := ns.InNetns(func() error { return linkUp("lo") }); err != nil {
		return nil, errors.Join(err, ns.remove())
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.spaces = append(l.spaces, ns)
	return ns, nil
}

// Close removes everything the lab made and verifies it; what could not be removed is in the error. It is
// idempotent, and works on a lab that failed half-way.
func (l *Lab) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	nodes, pods, spaces := l.nodes, l.pods, l.spaces
	l.nodes, l.pods, l.spaces = nil, nil, nil
	l.mu.Unlock()

	errs := make([]error, len(nodes))
	var wg sync.WaitGroup
	for i, n := range nodes {
		wg.Go(func() { errs[i] = n.uninstall() })
	}
	wg.Wait()
	for _, p := range pods {
		spaces = append(spaces, p.Netns)
	}
	for _, n := range nodes {
		spaces = append(spaces, n.Netns)
	}
	spaces = append(spaces, l.sw.ns)
	errs = append(errs, killInside(spaces))
	for _, s := range spaces {
		errs = append(errs, s.remove())
	}
	errs = append(errs, os.RemoveAll(l.cfg.Dir), l.verifyGone(nodes))
	os.Remove(DefaultDir) // succeeds when the last lab goes
	return errors.Join(errs...)
}

// verifyGone looks for namespaces that carry the lab's name, and for its nodes' pins.
func (l *Lab) verifyGone(nodes []*Node) error {
	left, err := filepath.Glob(filepath.Join(netnsDir, l.cfg.Name+".*"))
	if err != nil {
		return fmt.Errorf("verify removal: %w", err)
	}
	for _, n := range nodes {
		if _, err := os.Lstat(n.PinDir()); !errors.Is(err, os.ErrNotExist) {
			left = append(left, n.PinDir())
		}
	}
	if len(left) > 0 {
		return fmt.Errorf("lab %s is closed but left behind: %s", l.cfg.Name, strings.Join(left, ", "))
	}
	return nil
}
