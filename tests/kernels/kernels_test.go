package main

import (
	"bytes"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"conduit.io/conduit/tests/kernels/plan"
)

func TestNewest(t *testing.T) {
	names := []string{
		"linux-image-6.1.0-9-cloud-amd64", "linux-image-6.1.0-56-cloud-amd64", "linux-image-6.1.0-47-cloud-amd64",
		"linux-image-6.1.0-57-cloud-amd64-dbg", "linux-image-6.1.0-58-cloud-amd64-unsigned", "linux-image-6.1.0-60-amd64",
		"linux-image-6.12-cloud-amd64", "linux-image-6.12.99+deb12-cloud-amd64", "linux-image-6.12.117+deb12-cloud-amd64",
		"linux-image-6.17.8+deb13+1-cloud-amd64", "linux-image-cloud-amd64", "xlinux-image-6.1.0-99-cloud-amd64",
	}
	for series, want := range map[string]string{
		"6.1":  "linux-image-6.1.0-56-cloud-amd64",
		"6.12": "linux-image-6.12.117+deb12-cloud-amd64",
		"6.17": "linux-image-6.17.8+deb13+1-cloud-amd64",
		"6":    "", "5.15": "", "6x1": "",
	} {
		if got := newest(series, names); got != want {
			t.Errorf("%s: %q, want %q", series, got, want)
		}
	}
}

// cpio must read what the archive says, whatever the lengths are.
func TestArchive(t *testing.T) {
	if _, err := exec.LookPath("cpio"); err != nil {
		t.Skip("SKIPPED: needs cpio to read what is written")
	}
	var b bytes.Buffer
	a := newArchive(&b)
	files := map[string]string{}
	for i := range 9 {
		files["/d/e/"+strings.Repeat("n", i+1)] = strings.Repeat("c", i)
	}
	want := []string{"d", "d/e"}
	for path, content := range files {
		if err := a.file(path, []byte(content)); err != nil {
			t.Fatal(err)
		}
		want = append(want, path[1:])
	}
	if err := a.end(); err != nil {
		t.Fatal(err)
	}
	for path, content := range files {
		cmd := exec.Command("cpio", "-i", "--quiet", "--to-stdout", path[1:])
		cmd.Stdin = bytes.NewReader(b.Bytes())
		if out, err := cmd.Output(); err != nil || string(out) != content {
			t.Errorf("%s: %q, %v; want %q", path, out, err, content)
		}
	}
	cmd := exec.Command("cpio", "-t", "--quiet")
	cmd.Stdin = &b
	out, err := cmd.Output()
	got := strings.Fields(string(out))
	slices.Sort(got)
	slices.Sort(want)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("the archive holds %v (%v), want %v", got, err, want)
	}
}

func TestModuleName(t *testing.T) {
	for path, want := range map[string]string{
		"kernel/net/tls/tls.ko": "tls", "/x/nf-a_b.ko.xz": "nf_a_b", "modules.builtin": "", "a.ko.zst": "", "dir.kor": "",
	} {
		if got := moduleName(path); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
}

func TestResult(t *testing.T) {
	const (
		booted = plan.Mark + plan.Booted + " 6.1.0\r\n"
		began  = plan.Mark + plan.Began + " loader\r\n"
		passed = "[ 1.2] noise " + plan.Mark + plan.Passed + " loader\r\n"
		done   = plan.Mark + plan.Done
		good   = "--- PASS: TestA (0.1s)\r\n    --- PASS: TestA/b (0.1s)\r\n"
		bad    = "    --- FAIL: TestC/d (0.2s)\r\n"
		skip   = "--- SKIP: TestE (0.2s)\r\n"
	)
	for _, c := range []struct{ name, console, want string }{
		{"good", booted + began + good + skip + passed + done, ""},
		{"a test failed", booted + began + good + bad + passed + done, "tests failed"},
		{"a suite failed", booted + began + good + plan.Mark + plan.Failed + " loader exit status 2\n" + done, "loader exit status 2"},
		{"no boot", "SeaBIOS\n", "did not boot"},
		{"cut off", booted + began + good, "ended before its tests did (begun: loader)"},
		{"panic", booted + began + good + "[ 3.1] Kernel panic - not syncing: Fatal\n", "Kernel panic"},
		{"a warning of the kernel", booted + began + good + passed + plan.Mark + plan.Broken + " tainted\n" + done, "tainted"},
		{"nothing but skips", booted + began + skip + passed + done, "no test passed"},
		{"a suite is missing", booted + done, "0 of 1 suites ran"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newResult("k", 1, io.Discard)
			if err := r.read(strings.NewReader(c.console)); err != nil {
				t.Fatal(err)
			}
			err := r.err()
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
			if ok := strings.HasPrefix(r.String(), "ok "); ok != (err == nil) {
				t.Errorf("%q although %v", r, err)
			}
		})
	}
}

func TestChoose(t *testing.T) {
	got, err := choose([]string{"podnet", "mesh"}, "^TestX$")
	if err != nil || len(got) != 2 || got[0].name != "podnet" || got[1].tests != "^TestX$" {
		t.Errorf("%+v, %v", got, err)
	}
	for _, names := range [][]string{nil, {"loader", "lodaer"}} {
		if got, err := choose(names, ""); err == nil {
			t.Errorf("%v: %+v, want an error", names, got)
		}
	}
}
