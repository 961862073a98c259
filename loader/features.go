package loader

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"golang.org/x/sys/unix"
)

// Floor is the oldest Linux that Conduit supports: the first with everything that is required.
const Floor = "5.15"

// Feature is one thing that the programs need of the kernel.
type Feature struct {
	Name     string // a plural noun
	Needs    string // the Linux version that brought it, as "5.9"
	Err      error  // nil: this kernel has it
	Required bool   // without it Conduit cannot run; otherwise something is less good, see docs/kernel.md
	Config   string // the build option that it depends on
}

// probe is a Feature with the test for it.
type probe struct {
	Feature
	test func() error
}

var probes = []probe{
	{Feature{Name: "cgroup connect hooks", Needs: "4.17", Required: true, Config: "CONFIG_CGROUP_BPF"},
		func() error { return features.HaveProgramType(ebpf.CGroupSockAddr) }},
	{Feature{Name: "socket storage maps", Needs: "5.2", Required: true, Config: "CONFIG_NET"},
		func() error { return features.HaveMapType(ebpf.SkStorage) }},
	{Feature{Name: "bounded loops in programs", Needs: "5.3", Required: true, Config: "CONFIG_BPF_SYSCALL"},
		features.HaveBoundedLoops},
	{Feature{Name: "32-bit jump instructions", Needs: "5.1", Required: true, Config: "CONFIG_BPF_SYSCALL"},
		features.HaveV3ISA},
	{Feature{Name: "socket storage reads in connect hooks", Needs: "5.3", Required: true, Config: "CONFIG_CGROUP_BPF"},
		helper(ebpf.CGroupSockAddr, asm.FnSkStorageGet)},
	{Feature{Name: "namespace cookies in connect hooks", Needs: "5.7", Required: true, Config: "CONFIG_CGROUP_BPF"},
		helper(ebpf.CGroupSockAddr, asm.FnGetNetnsCookie)},
	{Feature{Name: "attachments by link", Needs: "5.7", Required: true, Config: "CONFIG_BPF_SYSCALL"},
		func() error { return command(unix.BPF_LINK_CREATE) }},
	{Feature{Name: "socket options in connect hooks", Needs: "5.8", Required: true, Config: "CONFIG_CGROUP_BPF"},
		helper(ebpf.CGroupSockAddr, asm.FnSetsockopt)},
	{Feature{Name: "getpeername hooks", Needs: "5.8", Required: true, Config: "CONFIG_CGROUP_BPF"}, haveGetpeername},
	{Feature{Name: "socket hash lookups by programs", Needs: "5.8", Required: true, Config: "CONFIG_BPF_STREAM_PARSER"},
		haveSockhashLookup},
	{Feature{Name: "sk_lookup programs", Needs: "5.9", Required: true, Config: "CONFIG_NET"},
		func() error { return features.HaveProgramType(ebpf.SkLookup) }},
	{Feature{Name: "links that can be detached", Needs: "5.9", Required: true, Config: "CONFIG_BPF_SYSCALL"},
		func() error { return command(unix.BPF_LINK_DETACH) }},
	{Feature{Name: "socket internals in sockops programs", Needs: "5.9", Required: true, Config: "CONFIG_DEBUG_INFO_BTF"},
		helper(ebpf.SockOps, asm.FnSkcToTcpSock)},
	{Feature{Name: "kernel memory reads in sockops programs", Needs: "5.10", Required: true, Config: "CONFIG_BPF_EVENTS (or runs with lockdown=confidentiality)"},
		helper(ebpf.SockOps, asm.FnProbeReadKernel)},
	{Feature{Name: "kernel type descriptions (/sys/kernel/btf/vmlinux)", Needs: "5.4", Required: true, Config: "CONFIG_DEBUG_INFO_BTF"},
		haveBTF},
	{Feature{Name: "namespace cookies of sockets (SO_NETNS_COOKIE)", Needs: "5.14", Required: true, Config: "CONFIG_NET_NS"},
		haveNetnsCookie},
	{Feature{Name: "namespace cookies in sockops programs", Needs: "5.15", Required: true, Config: "CONFIG_CGROUP_BPF"},
		helper(ebpf.SockOps, asm.FnGetNetnsCookie)},
	{Feature{Name: "namespace cookies in setsockopt hooks", Needs: "5.15", Required: true, Config: "CONFIG_CGROUP_BPF"},
		helper(ebpf.CGroupSockopt, asm.FnGetNetnsCookie)},
	{Feature{Name: "kernel memory reads in connect hooks", Needs: "5.10", Required: true, Config: "CONFIG_BPF_EVENTS (or runs with lockdown=confidentiality)"},
		helper(ebpf.CGroupSockAddr, asm.FnProbeReadKernel)},
	{Feature{Name: "names of the calling process in connect hooks", Needs: "5.10", Required: true, Config: "CONFIG_BPF_EVENTS"},
		helper(ebpf.CGroupSockAddr, asm.FnGetCurrentTask)},
	// bed89185af0d gave it to connect hooks; the helper itself is older (5.18).
	{Feature{Name: "error codes of connect hooks (bpf_set_retval)", Needs: "6.1", Config: "CONFIG_CGROUP_BPF"},
		helper(ebpf.CGroupSockAddr, asm.FnSetRetval)},
}

// probed runs every probe, once per process.
var probed = sync.OnceValue(func() []Feature {
	all := make([]Feature, len(probes))
	for i, p := range probes {
		all[i] = p.Feature
		all[i].Err = p.test()
	}
	return all
})

// Probe asks the kernel for every feature, one by one. It needs root.
func Probe() []Feature { return append([]Feature(nil), probed()...) }

// Require is nil when the kernel has everything that is required; otherwise the error says what is missing and which
// Linux has it.
func Require() error {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return fmt.Errorf("uname: %w", err)
	}
	return require(unix.ByteSliceToString(u.Release[:]), probed())
}

func require(release string, all []Feature) error {
	for _, f := range all {
		switch {
		case f.Err == nil || !f.Required:
		case errors.Is(f.Err, unix.EPERM):
			return fmt.Errorf("loading BPF programs is not permitted: run as root (needs CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON and CAP_SYS_ADMIN): %w", f.Err)
		case !errors.Is(f.Err, ebpf.ErrNotSupported):
			return fmt.Errorf("kernel %s: probing for %s: %w", release, f.Name, f.Err)
		case atLeast(release, f.Needs):
			return fmt.Errorf("kernel %s: %s are missing, although Linux %s has them: this kernel was built without %s", release, f.Name, f.Needs, f.Config)
		default:
			return fmt.Errorf("kernel %s: %s are missing: needs Linux %s or newer (Conduit's floor is %s)", release, f.Name, f.Needs, Floor)
		}
	}
	return nil
}

// atLeast reports whether a release such as "5.15.0-91-generic" is version or newer.
func atLeast(release, version string) bool {
	var have, want [2]int
	fmt.Sscanf(release, "%d.%d", &have[0], &have[1]) // what is not there stays 0
	fmt.Sscanf(version, "%d.%d", &want[0], &want[1])
	return have[0] > want[0] || have[0] == want[0] && have[1] >= want[1]
}

// haveRetval is the value of the programs' constant cdt_have_retval.
func haveRetval() uint8 {
	if features.HaveProgramHelper(ebpf.CGroupSockAddr, asm.FnSetRetval) == nil {
		return 1
	}
	return 0
}

func helper(t ebpf.ProgramType, fn asm.BuiltinFunc) func() error {
	return func() error { return features.HaveProgramHelper(t, fn) }
}

// command calls bpf(2) with a descriptor that cannot be: a kernel that knows the command says EBADF.
func command(cmd int) error {
	attr := [16]uint32{^uint32(0)}
	_, _, errno := unix.Syscall(unix.SYS_BPF, uintptr(cmd), uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	switch errno {
	case unix.EBADF:
		return nil
	case unix.EINVAL:
		return ebpf.ErrNotSupported
	default:
		return errno
	}
}

// haveGetpeername loads a program that does nothing; the attach type is what is asked for.
func haveGetpeername() error {
	return loadable(&ebpf.ProgramSpec{
		Type: ebpf.CGroupSockAddr, AttachType: ebpf.AttachCgroupInet4GetPeername, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()},
	})
}

func haveSockhashLookup() error {
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: "cdt_probe", Type: ebpf.SockHash, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		return err
	}
	defer m.Close()
	return loadable(&ebpf.ProgramSpec{
		Type: ebpf.CGroupSockAddr, AttachType: ebpf.AttachCGroupInet4Connect, License: "GPL",
		Instructions: asm.Instructions{
			asm.StoreImm(asm.RFP, -4, 0, asm.Word),
			asm.Mov.Reg(asm.R2, asm.RFP),
			asm.Add.Imm(asm.R2, -4),
			asm.LoadMapPtr(asm.R1, m.FD()),
			asm.FnMapLookupElem.Call(),
			asm.JEq.Imm(asm.R0, 0, "none"),
			asm.Mov.Reg(asm.R1, asm.R0),
			asm.FnSkRelease.Call(),
			asm.Mov.Imm(asm.R0, 1).WithSymbol("none"),
			asm.Return(),
		},
	})
}

// loadable reports whether the verifier takes a program; EINVAL and EACCES are its answers to what it does not know.
func loadable(spec *ebpf.ProgramSpec) error {
	spec.Name = "cdt_probe"
	p, err := ebpf.NewProgram(spec)
	if err == nil {
		return p.Close()
	}
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EACCES) {
		return fmt.Errorf("%w: %w", ebpf.ErrNotSupported, err)
	}
	return err
}

func haveBTF() error {
	if _, err := os.Stat("/sys/kernel/btf/vmlinux"); err != nil {
		return fmt.Errorf("%w: %w", ebpf.ErrNotSupported, err)
	}
	return nil
}

func haveNetnsCookie() error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if _, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE); errors.Is(err, unix.ENOPROTOOPT) {
		return ebpf.ErrNotSupported
	} else if err != nil {
		return err
	}
	return nil
}
