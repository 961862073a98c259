package machine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// bindMount is the way to show a directory or file of the host inside: with Writable false, read-only.
func (b Bind) mount(root string) error {
	target := filepath.Join(root, b.Inside)
	info, err := os.Stat(b.Host)
	if err != nil {
		return fmt.Errorf("show in machine: %w", err)
	}
	if err := makeMountPoint(target, info.IsDir()); err != nil {
		return err
	}
	if err := mount(b.Host, target, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	if b.Writable {
		return nil
	}
	return mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
}

func makeMountPoint(path string, dir bool) error {
	if dir {
		return os.MkdirAll(path, 0o755)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	return f.Close()
}

func mount(source, target, fstype string, flags uintptr, data string) error {
	if err := os.MkdirAll(target, 0o755); err != nil && !errors.Is(err, unix.ENOTDIR) {
		return err
	}
	if err := unix.Mount(source, target, fstype, flags, data); err != nil {
		return fmt.Errorf("mount %s (%s) at %s: %w", source, fstype, target, err)
	}
	return nil
}

// makeRoot prepares the machine's root directory and makes it this mount namespace's root.
func makeRoot(c Config) error {
	root := filepath.Join(c.Dir, rootDir)
	if err := mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil { // nothing of what follows reaches the host
		return err
	}
	if err := mount(root, root, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	steps := []func(string) error{showSystem, copyEtc, mountKernel, hideSysctls, mountCgroups, makeDirs}
	for _, step := range steps {
		if err := step(root); err != nil {
			return fmt.Errorf("prepare root of machine: %w", err)
		}
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	binds := append([]Bind{{Host: "/", Inside: HostDir}, {Host: self, Inside: initBin}}, c.Binds...)
	for _, b := range binds {
		if err := b.mount(root); err != nil {
			return err
		}
	}
	return enterRoot(root)
}

func enterRoot(root string) error {
	if err := unix.Chdir(root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil { // pivot_root(2): the old root is now mounted on top of the new
		return fmt.Errorf("enter root of machine: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leave the host's root: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	// Kubelets want to pass mounts on to pods and back.
	return mount("", "/", "", unix.MS_REC|unix.MS_SHARED, "")
}

// showSystem shows the host's programs: /usr, and what is beside or a link into it.
func showSystem(root string) error {
	for _, dir := range []string{"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64"} {
		info, err := os.Lstat(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if info.Mode()&fs.ModeSymlink != 0 {
			target, err := os.Readlink(dir)
			if err == nil {
				err = os.Symlink(target, filepath.Join(root, dir))
			}
			if err != nil {
				return err
			}
			continue
		}
		if err := (Bind{Host: dir, Inside: dir}).mount(root); err != nil {
			return err
		}
	}
	return nil
}

// copyEtc copies what programs need of the host's /etc, nothing that names other computers.
func copyEtc(root string) error {
	etc := filepath.Join(root, "etc")
	for _, name := range []string{"passwd", "group", "nsswitch.conf", "protocols", "services", "ld.so.cache"} {
		data, err := os.ReadFile(filepath.Join("/etc", name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(etc, name), data, 0o644)
		}
		if err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(etc, "hosts"), []byte("127.0.0.1 localhost\n::1 localhost\n"), 0o644); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(etc, "resolv.conf"), nil, 0o644); err != nil {
		return err
	}
	alternatives := filepath.Join(etc, "alternatives") // /usr/sbin/iptables leads through it
	if err := os.MkdirAll(alternatives, 0o755); err != nil {
		return err
	}
	err := copyLinks("/etc/alternatives", alternatives)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// mountKernel mounts the kernel's file systems, for the namespaces that this process is in.
func mountKernel(root string) error {
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	for _, m := range []struct {
		source, target, fstype, options string
		flags                           uintptr
	}{
		{"proc", "proc", "proc", "", flags},
		{"/dev", "dev", "", "", unix.MS_BIND | unix.MS_REC},
		{"sysfs", "sys", "sysfs", "", flags},
		{"bpf", "sys/fs/bpf", "bpf", "mode=0700", flags},
		{"tmpfs", "run", "tmpfs", "mode=755", unix.MS_NOSUID | unix.MS_NODEV},
		{"tmpfs", "tmp", "tmpfs", "mode=1777", unix.MS_NOSUID | unix.MS_NODEV},
	} {
		if err := mount(m.source, filepath.Join(root, m.target), m.fstype, m.flags, m.options); err != nil {
			return err
		}
	}
	return nil
}

// wantedSysctls are those of the whole kernel that a kubelet sets, with the values it wants. The machine sees files
// with these values in their place: the kubelet finds nothing to change, and the host keeps its own.
var wantedSysctls = map[string]string{
	"vm/overcommit_memory":      "1",
	"vm/panic_on_oom":           "0",
	"kernel/panic":              "10",
	"kernel/panic_on_oops":      "1",
	"kernel/keys/root_maxkeys":  "1000000",
	"kernel/keys/root_maxbytes": "25000000",
}

func hideSysctls(root string) error {
	dir := filepath.Join(root, "machine.sysctls")
	for name, value := range wantedSysctls {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file, []byte(value+"\n"), 0o644); err != nil {
			return err
		}
		if err := mount(file, filepath.Join(root, "proc/sys", name), "", unix.MS_BIND, ""); err != nil {
			return err
		}
	}
	return nil
}

func makeDirs(root string) error {
	for _, dir := range []string{"etc/cni/net.d", "opt/cni/bin", "run/netns", "run/lock", "root", "var/log", "var/lib", "var/tmp"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return err
		}
	}
	return os.Symlink("/run", filepath.Join(root, "var/run"))
}
