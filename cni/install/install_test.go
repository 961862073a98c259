package install

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/containernetworking/cni/libcni"
)

const (
	bridgeConf = "{\n\t\"cniVersion\": \"0.4.0\",\n\t\"name\": \"single\", \"type\": \"bridge\", \"mtu\": 1.4e3, \"ipam\": {\"type\": \"host-local\", \"subnet\": \"10.1.0.0/24\"}\n}\n"
	bridgeList = "{\n  \"cniVersion\": \"1.0.0\",\n  \"name\": \"listed\",\n  \"plugins\": [\n    {\"type\": \"bridge\", \"big\": 12345678901234567890, \"b\": 1, \"a\": 2}\n  ],\n  \"foreign\": \"\\u003ckept\\u003e\"\n}\n"
)

func installer(t *testing.T) Installer {
	t.Helper()
	dir := t.TempDir()
	in := Installer{ConfDir: filepath.Join(dir, "net.d"), BinDir: filepath.Join(dir, "bin"), Plugin: filepath.Join(dir, "plugin"), AgentSocket: "/run/conduit/cni.sock"}
	if err := os.Mkdir(in.ConfDir, 0o755); err != nil {
		t.Fatal(err)
	}
	put(t, in.Plugin, "the program")
	return in
}

func put(t *testing.T, file, content string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(content), 0o640); err != nil {
		t.Fatal(err)
	}
}

func (in Installer) conf(name string) string { return filepath.Join(in.ConfDir, name) }

// tree is every file of the configuration directory: mode, link and content.
func (in Installer) tree(t *testing.T) string {
	t.Helper()
	var text strings.Builder
	err := filepath.WalkDir(in.ConfDir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if target, err := os.Readlink(path); err == nil {
			fmt.Fprintf(&text, "%s -> %s\n", d.Name(), target)
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		data, err := os.ReadFile(path)
		fmt.Fprintf(&text, "%s %v\n%s\n", d.Name(), info.Mode(), data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return text.String()
}

// runtimePlugins is what a container runtime runs: the plugins of the first configuration, as libcni reads it.
func (in Installer) runtimePlugins(t *testing.T) []string {
	t.Helper()
	file, err := first(in.ConfDir)
	if err != nil {
		t.Fatal(err)
	}
	var list *libcni.NetworkConfigList
	if filepath.Ext(file) == listExt {
		list, err = libcni.ConfListFromFile(file)
	} else {
		var conf *libcni.PluginConfig
		// A runtime reads single configurations by these two, deprecated as they are.
		if conf, err = libcni.ConfFromFile(file); err == nil { //nolint:staticcheck // see above
			list, err = libcni.ConfListFromConf(conf) //nolint:staticcheck // see above
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	var types []string
	for _, p := range list.Plugins {
		types = append(types, p.Network.Type)
	}
	return types
}

func mustInstall(t *testing.T, in Installer, wantFile string, wantPlugins ...string) {
	t.Helper()
	st, err := in.Install()
	if err != nil || filepath.Base(st.File) != wantFile || !st.Changed {
		t.Fatalf("Install: %+v, %v; want %s changed", st, err, wantFile)
	}
	if got := in.runtimePlugins(t); !slices.Equal(got, wantPlugins) {
		t.Fatalf("the runtime runs %v, want %v", got, wantPlugins)
	}
	tree := in.tree(t)
	st, err = in.Install()
	if err != nil || st.Changed || in.tree(t) != tree {
		t.Fatalf("Install again: %+v, %v", st, err)
	}
}

func mustUninstall(t *testing.T, in Installer, want string) {
	t.Helper()
	if _, err := in.Uninstall(); err != nil {
		t.Fatal(err)
	}
	if got := in.tree(t); got != want {
		t.Errorf("after Uninstall:\n%s\nwant\n%s", got, want)
	}
	if changed, err := in.Uninstall(); err != nil || len(changed) > 0 {
		t.Errorf("Uninstall again: %v, %v", changed, err)
	}
	if _, err := os.Stat(filepath.Join(in.BinDir, PluginType)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the program is left: %v", err)
	}
}

func TestListInAndOut(t *testing.T) {
	in := installer(t)
	put(t, in.conf("20-other.conflist"), bridgeList)
	put(t, in.conf("10-net.conflist"), bridgeList)
	put(t, in.conf("00-readme.txt"), "not a configuration")
	if err := os.Chmod(in.conf("10-net.conflist"), 0o604); err != nil {
		t.Fatal(err)
	}
	before := in.tree(t)
	mustInstall(t, in, "10-net.conflist", "bridge", "conduit-cni")
	info, err := os.Stat(in.conf("10-net.conflist"))
	if err != nil || info.Mode().Perm() != 0o604 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if plugin, err := os.Stat(filepath.Join(in.BinDir, PluginType)); err != nil || plugin.Mode().Perm() != 0o755 {
		t.Errorf("the program: %v, %v", plugin, err)
	}
	mustUninstall(t, in, before)
}

func TestSingleConfigurationInAndOut(t *testing.T) {
	for _, ext := range []string{".conf", ".json"} {
		in := installer(t)
		put(t, in.conf("10-net"+ext), bridgeConf)
		before := in.tree(t)
		mustInstall(t, in, "10-net.conflist", "bridge", "conduit-cni")
		if kept, err := os.ReadFile(in.conf("10-net" + ext + SavedSuffix)); err != nil || string(kept) != bridgeConf {
			t.Errorf("the original is not kept: %q, %v", kept, err)
		}
		mustUninstall(t, in, before)
	}
}

// A primary plugin that is upgraded writes its configuration anew: that is in use, with our entry.
func TestPrimaryWritesAnew(t *testing.T) {
	in := installer(t)
	put(t, in.conf("10-net.conf"), bridgeConf)
	mustInstall(t, in, "10-net.conflist", "bridge", "conduit-cni")
	newer := strings.Replace(bridgeConf, "bridge", "ptp", 1)
	put(t, in.conf("10-net.conf"), newer)
	mustInstall(t, in, "10-net.conflist", "ptp", "conduit-cni")
	put(t, in.conf("05-first.conflist"), bridgeList)
	mustInstall(t, in, "05-first.conflist", "bridge", "conduit-cni")
	mustUninstall(t, in, "05-first.conflist -rw-r-----\n"+bridgeList+"\n10-net.conf -rw-r-----\n"+newer+"\n")
}

func TestPrimaryWritesAnewBeforeUninstall(t *testing.T) {
	in := installer(t)
	put(t, in.conf("10-net.conf"), bridgeConf)
	mustInstall(t, in, "10-net.conflist", "bridge", "conduit-cni")
	put(t, in.conf("10-net.conf"), bridgeConf)
	mustUninstall(t, in, "10-net.conf -rw-r-----\n"+bridgeConf+"\n")
}

// Another program has chained itself into our list: what it has added stays.
func TestForeignChangeOfOurListIsKept(t *testing.T) {
	in := installer(t)
	put(t, in.conf("10-net.conf"), bridgeConf)
	mustInstall(t, in, "10-net.conflist", "bridge", "conduit-cni")
	list, err := os.ReadFile(in.conf("10-net.conflist"))
	if err != nil {
		t.Fatal(err)
	}
	put(t, in.conf("10-net.conflist"), strings.Replace(string(list), "\n  ]", `, {"type":"tuning"}]`, 1))
	if _, err := in.Uninstall(); err != nil {
		t.Fatal(err)
	}
	if got := in.runtimePlugins(t); !slices.Equal(got, []string{"bridge", "tuning"}) {
		t.Errorf("the runtime runs %v", got)
	}
	if strings.Contains(in.tree(t), "conduit") {
		t.Errorf("left:\n%s", in.tree(t))
	}
}

func TestBadConfigurationIsLeftAlone(t *testing.T) {
	for name, content := range map[string]string{
		"10-net.conflist": `{"cniVersion":"1.0.0","plugins":[{"type":"bridge"}`,
		"10-net.conf":     `{"name":"n","type":"bridge"}`,
	} {
		in := installer(t)
		put(t, in.conf(name), content)
		put(t, in.conf("20-good.conflist"), bridgeList)
		before := in.tree(t)
		_, err := in.Install()
		if !errors.Is(err, errConfig) || !strings.Contains(err.Error(), in.conf(name)) {
			t.Errorf("error %v: does not name %s", err, name)
		}
		if in.tree(t) != before {
			t.Errorf("%s: changed to\n%s", name, in.tree(t))
		}
		mustUninstall(t, in, before)
	}
}

func TestForeignListBesideASingleConfiguration(t *testing.T) {
	in := installer(t)
	put(t, in.conf("10-net.conf"), bridgeConf)
	put(t, in.conf("10-net.conflist"), bridgeList)
	before := in.tree(t)
	if _, err := in.Install(); !errors.Is(err, errConfig) || !strings.Contains(err.Error(), "is there already") {
		t.Errorf("error %v", err)
	}
	if in.tree(t) != before {
		t.Errorf("changed to\n%s", in.tree(t))
	}
}

func TestNoConfigurationYet(t *testing.T) {
	in := installer(t)
	if _, err := in.Install(); !errors.Is(err, ErrNoConfig) {
		t.Errorf("an empty directory: %v", err)
	}
	if err := os.Remove(in.ConfDir); err != nil {
		t.Fatal(err)
	}
	if _, err := in.Install(); !errors.Is(err, ErrNoConfig) {
		t.Errorf("no directory: %v", err)
	}
	if _, err := in.Uninstall(); err != nil {
		t.Errorf("Uninstall without a directory: %v", err)
	}
}

// A link stays a link, and what it leads to is changed and restored.
func TestLinkedConfiguration(t *testing.T) {
	for name, content := range map[string]string{"10-net.conflist": bridgeList, "10-net.conf": bridgeConf} {
		in := installer(t)
		real := filepath.Join(t.TempDir(), "real")
		put(t, real, content)
		if err := os.Symlink(real, in.conf(name)); err != nil {
			t.Fatal(err)
		}
		before := in.tree(t)
		mustInstall(t, in, "10-net.conflist", "bridge", "conduit-cni")
		mustUninstall(t, in, before)
		if data, err := os.ReadFile(real); err != nil || string(data) != content {
			t.Errorf("the link's target: %q, %v", data, err)
		}
	}
}

func TestReadOnlyDirectory(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: needs root (a read-only mount)")
	}
	in := installer(t)
	put(t, in.conf("10-net.conflist"), bridgeList)
	if err := syscall.Mount(in.ConfDir, in.ConfDir, "", syscall.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	defer syscall.Unmount(in.ConfDir, syscall.MNT_DETACH) //nolint:errcheck // the test ends
	if err := syscall.Mount("", in.ConfDir, "", syscall.MS_BIND|syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	before := in.tree(t)
	if _, err := in.Install(); !errors.Is(err, syscall.EROFS) {
		t.Errorf("error %v", err)
	}
	if in.tree(t) != before {
		t.Error("changed")
	}
}

// A change that another program makes between our reading and our writing is never lost.
func TestChangeBetweenReadAndReplace(t *testing.T) {
	in := installer(t)
	file := in.conf("10-net.conflist")
	put(t, file, bridgeList)
	data, info, err := readConfig(file)
	if err != nil {
		t.Fatal(err)
	}
	theirs := strings.Replace(bridgeList, "listed", "theirs", 1)
	put(t, file, theirs)
	if err := replace(file, data, []byte("{}"), info); !errors.Is(err, errChanged) {
		t.Errorf("error %v", err)
	}
	if now, err := os.ReadFile(file); err != nil || string(now) != theirs {
		t.Errorf("the file is %q, %v", now, err)
	}
	if left, _ := filepath.Glob(in.conf(".*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// Several installers, and a primary plugin that writes its file atomically all the time: its last word counts, with one
// entry of ours.
func TestConcurrentWriters(t *testing.T) {
	in := installer(t)
	file := in.conf("10-net.conflist")
	version := func(n int) string { return strings.Replace(bridgeList, "listed", fmt.Sprintf("version%d", n), 1) }
	put(t, file, version(0))
	const writes = 100
	var wg sync.WaitGroup
	wg.Go(func() {
		for n := 1; n <= writes; n++ {
			if err := os.WriteFile(file+".primary", []byte(version(n)), 0o640); err != nil {
				t.Error(err)
			}
			if err := os.Rename(file+".primary", file); err != nil {
				t.Error(err)
			}
		}
	})
	for range 2 {
		wg.Go(func() {
			for range writes / 2 {
				if _, err := in.Install(); err != nil && !errors.Is(err, errChanged) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if _, err := in.Install(); err != nil {
		t.Fatal(err)
	}
	mustUninstall(t, in, "10-net.conflist -rw-r-----\n"+version(writes)+"\n")
}

// TestNewestIsGivenBack: what the other program writes between the two exchanges is not lost for what it wrote before.
func TestNewestIsGivenBack(t *testing.T) {
	for name, inPlace := range map[string]string{"it has not written again": "ours", "it has": "newest"} {
		path := filepath.Join(t.TempDir(), "10-net.conflist")
		put(t, path, inPlace)
		put(t, path+".taken", "theirs")
		if err := giveBack(path+".taken", path, []byte("ours")); err != nil {
			t.Fatal(err)
		}
		want := inPlace
		if want == "ours" {
			want = "theirs"
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != want {
			t.Errorf("%s: %q is in place, %v; want %q", name, got, err, want)
		}
	}
}

// TestSameContent: files of any length, alike, and different at any place.
func TestSameContent(t *testing.T) {
	dir := t.TempDir()
	put := func(name string, data []byte) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, size := range []int{0, 1, 32<<10 - 1, 32 << 10, 32<<10 + 1, 100 << 10} {
		data := bytes.Repeat([]byte("0123456789"), size/10+1)[:size]
		a := put("a", data)
		if same, err := sameContent(a, put("b", data)); err != nil || !same {
			t.Errorf("%d bytes, alike: %v, %v", size, same, err)
		}
		if same, err := sameContent(a, put("b", append(bytes.Clone(data), 'x'))); err != nil || same {
			t.Errorf("%d bytes, and one more: %v, %v", size, same, err)
		}
		if same, err := sameContent(put("b", append(bytes.Clone(data), 'x')), a); err != nil || same {
			t.Errorf("one more than %d bytes: %v, %v", size, same, err)
		}
		if size > 0 {
			other := bytes.Clone(data)
			other[size-1]++
			if same, err := sameContent(a, put("b", other)); err != nil || same {
				t.Errorf("%d bytes, the last one another: %v, %v", size, same, err)
			}
		}
	}
	if _, err := sameContent(filepath.Join(dir, "a"), filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of no file: %v", err)
	}
}

// TestLookingIsCheap: to look whether all is in place, as a node does for as long as it runs, takes no memory of the program's size.
func TestLookingIsCheap(t *testing.T) {
	in := installer(t)
	put(t, in.conf("10-net.conflist"), bridgeList)
	if err := os.WriteFile(in.Plugin, make([]byte, 4<<20), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := in.Install(); err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if st, err := in.Install(); err != nil || st.Changed {
		t.Fatalf("%+v, %v", st, err)
	}
	runtime.ReadMemStats(&after)
	if took := after.TotalAlloc - before.TotalAlloc; took > 1<<20 {
		t.Errorf("it took %d bytes", took)
	}
}
