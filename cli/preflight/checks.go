package preflight

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"

	"conduit.io/conduit/cli/output"
	"conduit.io/conduit/mesh"

	"golang.org/x/sys/unix"
)

// The oldest kernel that has everything: netns cookies in sockops programs came with 5.15 (commit fab60e29fcc6).
const minMajor, minMinor = 5, 15

const btfPath = "sys/kernel/btf/vmlinux"

func (s System) root() Check {
	const d = "the command runs as root"
	if s.UID != 0 {
		return failed(d, fmt.Sprintf("it runs as user %d", s.UID), "sudo conduit check")
	}
	return passed(d)
}

// capabilities are asked for by name because root in a container may lack them.
func (s System) capabilities() Check {
	const d = "it has CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON and CAP_SYS_ADMIN"
	status, err := fs.ReadFile(s.Root, "proc/self/status")
	if err != nil {
		return failed(d, err.Error(), "mount -t proc proc /proc")
	}
	have, err := effective(status)
	if err != nil {
		return failed(d, err.Error(), "conduit check on the host rather than in a container")
	}
	var missing []string
	for _, c := range []struct {
		bit  uint
		name string
	}{{unix.CAP_BPF, "CAP_BPF"}, {unix.CAP_NET_ADMIN, "CAP_NET_ADMIN"}, {unix.CAP_PERFMON, "CAP_PERFMON"}, {unix.CAP_SYS_ADMIN, "CAP_SYS_ADMIN"}} {
		if have&(1<<c.bit) == 0 {
			missing = append(missing, c.name)
		}
	}
	if len(missing) > 0 {
		return failed(d, "missing: "+strings.Join(missing, ", "), "run it as root of the host (in a container: privileged)")
	}
	return passed(d)
}

// effective reads CapEff of proc_pid_status(5).
func effective(status []byte) (uint64, error) {
	for line := range bytes.Lines(status) {
		if v, ok := bytes.CutPrefix(line, []byte("CapEff:")); ok {
			return strconv.ParseUint(string(bytes.TrimSpace(v)), 16, 64)
		}
	}
	return 0, errors.New("no CapEff in /proc/self/status")
}

func (s System) kernelVersion() Check {
	d := fmt.Sprintf("the kernel is %d.%d or newer", minMajor, minMinor)
	var major, minor int
	if _, err := fmt.Sscanf(s.Release, "%d.%d", &major, &minor); err != nil {
		return warned(d, fmt.Sprintf("cannot read the version of kernel %q", s.Release), "uname -r")
	}
	if major < minMajor || major == minMajor && minor < minMinor {
		return failed(d, "this is "+s.Release, "boot a newer kernel, or use another machine")
	}
	return passed(d + " (" + s.Release + ")")
}

func (s System) btf() Check {
	const d = "the kernel describes its types (BTF)"
	if _, err := fs.Stat(s.Root, btfPath); err != nil {
		return failed(d, "there is no /"+btfPath, "use a kernel built with CONFIG_DEBUG_INFO_BTF=y, as the distributions' are")
	}
	return passed(d)
}

// lockdown: kernel_lockdown(7) in confidentiality mode forbids BPF programs to read kernel memory.
func (s System) lockdown() Check {
	const d = "the kernel is not locked down for confidentiality"
	b, err := fs.ReadFile(s.Root, "sys/kernel/security/lockdown")
	if err == nil && bytes.Contains(b, []byte("[confidentiality]")) {
		return failed(d, "lockdown=confidentiality", "boot with lockdown=integrity or lockdown=none")
	}
	return passed(d)
}

func (s System) cgroup2() Check {
	const d = "a cgroup2 hierarchy is mounted"
	point, err := s.mounted("cgroup2")
	switch {
	case err != nil:
		return failed(d, err.Error(), "mount -t proc proc /proc")
	case point == "":
		return failed(d, "none is mounted", "mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified")
	}
	return passed(d + " (" + point + ")")
}

func (s System) bpffs() Check {
	const d = "bpffs is mounted"
	point, err := s.mounted("bpf")
	switch {
	case err != nil:
		return failed(d, err.Error(), "mount -t proc proc /proc")
	case point == "":
		return warned(d, "it is not; agents mount it themselves", "mount -t bpf bpf /sys/fs/bpf")
	}
	return passed(d + " (" + point + ")")
}

// mounted finds where a file system of the type is mounted whole, or "" (proc_pid_mountinfo(5)).
func (s System) mounted(fstype string) (string, error) {
	b, err := fs.ReadFile(s.Root, "proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	for sc := bufio.NewScanner(bytes.NewReader(b)); sc.Scan(); {
		left, right, _ := strings.Cut(sc.Text(), " - ")
		f, kind := strings.Fields(left), strings.Fields(right)
		if len(f) > 4 && f[3] == "/" && len(kind) > 0 && kind[0] == fstype {
			return f[4], nil
		}
	}
	return "", nil
}

// programs: a node needs three, of one version.
func (s System) programs() []Check {
	var out []Check
	for _, name := range []string{"conduit-agent", "conduit-proxy", "conduit-cni"} {
		path := filepath.Join(s.BinDir, name)
		d := name + " is beside this program"
		if !s.Find(path) {
			out = append(out, failed(d, "there is no "+path, "make build"))
			continue
		}
		out = append(out, passed(d))
	}
	agent := filepath.Join(s.BinDir, "conduit-agent")
	if !s.Find(agent) {
		return out
	}
	d := "this program and conduit-agent are of one version"
	switch version, err := s.Version(agent); {
	case err != nil:
		out = append(out, failed(d, "conduit-agent --version: "+err.Error(), "make build"))
	case !strings.Contains(version, mesh.Version()):
		out = append(out, warned(d, fmt.Sprintf("this is %s, that is %s", mesh.Version(), version), "make build"))
	default:
		out = append(out, passed(d))
	}
	return out
}

// ForDemo is nil when `conduit demo` can begin, else the first thing that is missing.
func ForDemo(s System) error {
	if s.UID != 0 {
		return &output.Problem{What: "conduit demo needs root",
			Cause: "it makes network namespaces and loads BPF programs; all of it is removed at the end", Next: "sudo conduit demo"}
	}
	if c := s.cgroup2(); c.Result != Success {
		return &output.Problem{What: "conduit demo needs a mounted cgroup2 hierarchy",
			Cause: "sockets are steered by BPF programs attached to it; on this machine: " + c.Error, Next: c.Hint}
	}
	if c := s.btf(); c.Result != Success {
		return &output.Problem{What: "conduit demo needs kernel type information (BTF)", Cause: c.Error, Next: c.Hint}
	}
	if c := s.kernelVersion(); c.Result == Failure {
		return &output.Problem{What: fmt.Sprintf("conduit demo needs kernel %d.%d or newer", minMajor, minMinor), Cause: c.Error, Next: c.Hint}
	}
	for _, c := range s.programs() {
		if c.Result == Failure {
			return &output.Problem{What: "conduit demo needs the programs of a node", Cause: c.Error, Next: c.Hint}
		}
	}
	return nil
}
