package loader

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// A kernel as new as a feature needs has it: the versions in the table are held against the kernels that tests run on.
func TestProbe(t *testing.T) {
	needRoot(t)
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	release := unix.ByteSliceToString(u.Release[:])
	for _, f := range Probe() {
		switch {
		case f.Err == nil:
		case !errors.Is(f.Err, ebpf.ErrNotSupported):
			t.Errorf("%s: the probe itself failed: %v", f.Name, f.Err)
		case atLeast(release, f.Needs):
			t.Errorf("%s: missing in %s, though said to be in %s: %v", f.Name, release, f.Needs, f.Err)
		}
		if f.Required && !atLeast(Floor, f.Needs) {
			t.Errorf("%s: required, but newer (%s) than the floor", f.Name, f.Needs)
		}
		if f.Name == "" || f.Config == "" {
			t.Errorf("incomplete: %+v", f)
		}
	}
	if err := Require(); err != nil {
		t.Error(err)
	}
}

func TestRequireSaysWhatIsMissing(t *testing.T) {
	missing := func(name string, err error) []Feature {
		var all []Feature
		for _, p := range probes {
			f := p.Feature
			if f.Name == name {
				f.Err = err
			}
			all = append(all, f)
		}
		return all
	}
	for _, c := range []struct {
		name, release string
		features      []Feature
		want          string
	}{
		{"all there", "5.15.0", missing("", nil), ""},
		{"too old", "5.4.0", missing("sk_lookup programs", ebpf.ErrNotSupported),
			"kernel 5.4.0: sk_lookup programs are missing: needs Linux 5.9 or newer (Conduit's floor is 5.15)"},
		{"built without", "6.1.0-13-cloud-amd64", missing("getpeername hooks", ebpf.ErrNotSupported),
			"kernel 6.1.0-13-cloud-amd64: getpeername hooks are missing, although Linux 5.8 has them: this kernel was built without CONFIG_CGROUP_BPF"},
		{"optional", "5.15.0", missing("error codes of connect hooks (bpf_set_retval)", ebpf.ErrNotSupported), ""},
		{"not root", "6.1.0", missing("cgroup connect hooks", unix.EPERM), "run as root"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := require(c.release, c.features)
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
	if !slices.ContainsFunc(probes, func(p probe) bool { return p.Name == "sk_lookup programs" }) {
		t.Error("the table lacks sk_lookup")
	}
}

func TestAtLeast(t *testing.T) {
	for _, c := range []struct {
		release, version string
		want             bool
	}{
		{"5.15.0-91-generic", "5.15", true}, {"5.4.0", "5.15", false}, {"6.1", "5.15", true},
		{"4.19.1", "5.3", false}, {"6.18.44-fc-v657", "6.1", true}, {"5.9-rc3", "5.9", true}, {"7", "6.1", true},
	} {
		if got := atLeast(c.release, c.version); got != c.want {
			t.Errorf("atLeast(%q, %q) = %v", c.release, c.version, got)
		}
	}
}
