package loader

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A bpffs of its own may be the pin directory: it is emptied, and stays mounted.
func TestRemoveFromAMountPoint(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("bpf", dir, "bpf", 0, "mode=0700"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	d := openAt(t, dir)
	o := objectsOf(t, d)
	d.Close()
	if left, err := Leftovers(dir); err != nil || len(left) != 3 {
		t.Errorf("before Remove: %v, %v; want the three directories", left, err)
	}
	for range 2 {
		if err := Remove(dir); err != nil {
			t.Fatal(err)
		}
	}
	wait(t, "programs, maps and links to go", func() bool { return len(alive(o)) == 0 })
	if left, err := Leftovers(dir); err != nil || len(left) > 0 {
		t.Errorf("after Remove: %v, %v", left, err)
	}
}

// Directories that only led to the pin directory go with it; one that leads to another agent's stays.
func TestRemoveTakesItsWayWithIt(t *testing.T) {
	top := pinDir(t)
	one, two := filepath.Join(top, "deep", "one"), filepath.Join(top, "deep", "two")
	a, b := openAt(t, one), openAt(t, two)
	a.Close()
	if err := Remove(one); err != nil {
		t.Fatal(err)
	}
	if left, err := Leftovers(two); exists(one) || err != nil || len(left) != 1 {
		t.Fatalf("%s is there: %v; %s holds %v, %v", one, exists(one), two, left, err)
	}
	b.Close()
	if err := Remove(two); err != nil {
		t.Fatal(err)
	}
	if exists(top) {
		t.Errorf("%s is still there", top)
	}
	if _, err := os.Stat(bpffsRoot); err != nil {
		t.Error(err)
	}
}
