package loader

import (
	"errors"
	"strings"
	"testing"
	"unsafe"

	"conduit.io/conduit/api/kernel"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

// The committed objects and the committed Go types are of one make.
func TestTypesEqualObjects(t *testing.T) {
	cgroup, err := loadCgroup()
	if err != nil {
		t.Fatal(err)
	}
	lookup, err := loadLookup()
	if err != nil {
		t.Fatal(err)
	}
	for name, size := range map[string][2]uintptr{
		"cdt_pods":      {8, unsafe.Sizeof(kernel.Pod{})},
		"cdt_tags":      {4, unsafe.Sizeof(kernel.SockTag{})},
		"cdt_listeners": {unsafe.Sizeof(kernel.ListenerKey{}), 8},
		"cdt_carry":     {unsafe.Sizeof(kernel.CarryKey{}), unsafe.Sizeof(kernel.SockTag{})},
		"cdt_counters":  {8, unsafe.Sizeof(kernel.Counters{})},
		"cdt_probes":    {8, unsafe.Sizeof(kernel.Probes{})},
		"cdt_kubelet":   {8, unsafe.Sizeof(kernel.Process{})},
		"cdt_vouched":   {unsafe.Sizeof(kernel.Tuple{}), 1},
		"cdt_witness":   {4, unsafe.Sizeof(kernel.Witness{})},
	} {
		a, b := cgroup.Maps[name], lookup.Maps[name]
		if a == nil || b == nil {
			t.Errorf("%s is not in both objects", name)
			continue
		}
		if got := [2]uintptr{uintptr(a.KeySize), uintptr(a.ValueSize)}; got != size {
			t.Errorf("%s: key and value are %v bytes in C, %v in Go", name, got, size)
		}
		if a.Type != b.Type || a.KeySize != b.KeySize || a.ValueSize != b.ValueSize || a.MaxEntries != b.MaxEntries || a.Flags != b.Flags {
			t.Errorf("%s differs between the objects", name)
		}
	}
	for _, e := range []struct {
		name, element string
		want          uint64
	}{
		{"cdt_slot", "CDT_SLOT_IN_V4", uint64(kernel.SlotInV4)},
		{"cdt_slot", "CDT_SLOT_OUT_V6", uint64(kernel.SlotOutV6)},
		{"cdt_slot", "CDT_SLOT__COUNT", kernel.SlotCount},
		{"cdt_kind", "CDT_KIND_PROXY", uint64(kernel.KindProxy)},
		{"cdt_kind", "CDT_KIND_VIRTUAL", uint64(kernel.KindVirtual)},
		{"cdt_kind", "CDT_KIND_PEER", uint64(kernel.KindPeer)},
		{"cdt_pod_flag", "CDT_POD_FLAG_LEFT", uint64(kernel.PodFlagLeft)},
		{"cdt_bypass", "CDT_BYPASS__COUNT", kernel.BypassCount},
	} {
		if got, err := enumValue(cgroup.Types, e.name, e.element); err != nil || got != e.want {
			t.Errorf("%s is %d in C (%v), %d in Go", e.element, got, err, e.want)
		}
	}
}

// Every reason has the name in Go that it has in C, up to the word for a direction.
func TestBypassNamesEqualEnum(t *testing.T) {
	cgroup, err := loadCgroup()
	if err != nil {
		t.Fatal(err)
	}
	var e *btf.Enum
	if err := cgroup.Types.TypeByName("cdt_bypass", &e); err != nil {
		t.Fatal(err)
	}
	for _, v := range e.Values {
		if v.Name == "CDT_BYPASS__COUNT" {
			continue
		}
		want := strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(v.Name, "CDT_BYPASS_")), "_", "-")
		switch want {
		case "in-open":
			want = "inbound-down-open"
		case "in-refused":
			want = "inbound-refused"
		}
		if got := kernel.Bypass(v.Value).String(); got != want {
			t.Errorf("%s is called %q, want %q", v.Name, got, want)
		}
	}
}

func TestObjectNames(t *testing.T) {
	for name, load := range map[string]func() (*ebpf.CollectionSpec, error){"cgroup": loadCgroup, "lookup": loadLookup} {
		spec, err := load()
		if err != nil {
			t.Fatal(err)
		}
		for p := range spec.Programs {
			if !strings.HasPrefix(p, "cdt_") || len(p) > 15 {
				t.Errorf("%s: program %q", name, p)
			}
		}
		for m := range spec.Maps {
			if m != ".rodata" && m != ".bss" && (!strings.HasPrefix(m, "cdt_") || len(m) > 15) {
				t.Errorf("%s: map %q", name, m)
			}
		}
	}
}

func enumValue(types *btf.Spec, name, element string) (uint64, error) {
	var e *btf.Enum
	if err := types.TypeByName(name, &e); err != nil {
		return 0, err
	}
	for _, v := range e.Values {
		if v.Name == element {
			return v.Value, nil
		}
	}
	return 0, errors.New("no such element")
}
