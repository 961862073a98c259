// Command gen writes package kernel's types from the BTF of a compiled BPF object, so that C and Go cannot differ.
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"go/format"
	"os"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

const header = `// Code generated from bpf/types.h by loader/gen; DO NOT EDIT.

package kernel

import "structs"
`

// declaration is one type to write: its C name, its Go name, and for an enum the Go type that underlies it.
type declaration struct {
	c, goName, doc string
	underlying     string
}

var declarations = []declaration{
	{c: "cdt_addr", goName: "Addr", doc: "is an address in network order, IPv4 held v4-mapped."},
	{c: "cdt_slot", goName: "Slot", doc: "numbers a pod's listeners. It equals Slot of package api/node.", underlying: "uint32"},
	{c: "cdt_kind", goName: "Kind", doc: "is what a socket is to the mesh.", underlying: "uint16"},
	{c: "cdt_sock_tag", goName: "SockTag", doc: "is the value of map cdt_tags: 20 bytes, no padding. Port is in network order."},
	{c: "cdt_pod_flag", goName: "PodFlag", doc: "is how a pod is treated; a set of bits.", underlying: "uint32"},
	{c: "cdt_pod", goName: "Pod", doc: "is the value of map cdt_pods, keyed by network namespace cookie."},
	{c: "cdt_probes", goName: "Probes", doc: "is the value of map cdt_probes, keyed by network namespace cookie: ports in host order."},
	{c: "cdt_listener_key", goName: "ListenerKey", doc: "is the key of map cdt_listeners."},
	{c: "cdt_carry_key", goName: "CarryKey", doc: "is the key of map cdt_carry: a 4-tuple in one namespace, ports in host order."},
	{c: "cdt_process", goName: "Process", doc: "is one run of a program, and never another's."},
	{c: "cdt_tuple", goName: "Tuple", doc: "is the key of map cdt_vouched: a connection as its client sees it, ports in host order."},
	{c: "cdt_witness", goName: "Witness", doc: "is the element of map cdt_witness: a question, and its answer."},
	{c: "cdt_bypass", goName: "Bypass", doc: "is why a connection of an enrolled pod did not pass the proxy.", underlying: "uint32"},
	{c: "cdt_counters", goName: "Counters", doc: "is the value, per CPU, of map cdt_counters, keyed by network namespace cookie."},
}

func main() {
	object := flag.String("object", "", "compiled BPF object with BTF")
	out := flag.String("out", "", "Go file to write")
	flag.Parse()
	if err := run(*object, *out); err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}

func run(object, out string) error {
	spec, err := ebpf.LoadCollectionSpec(object)
	if err != nil {
		return err
	}
	if spec.Types == nil {
		return errors.New("the object has no BTF: compile it with -g")
	}
	src, err := generate(spec.Types)
	if err != nil {
		return err
	}
	return os.WriteFile(out, src, 0o644)
}

func generate(types *btf.Spec) ([]byte, error) {
	names := map[btf.Type]string{}
	found := make([]btf.Type, len(declarations))
	for i, d := range declarations {
		typ, err := find(types, d.c)
		if err != nil {
			return nil, err
		}
		found[i] = typ
		names[typ] = d.goName
	}
	// The 16-bit form in which a kind is stored.
	if kind, err := types.AnyTypeByName("cdt_kind_t"); err == nil {
		names[kind] = "Kind"
	}
	gf := &btf.GoFormatter{Names: names, Identifier: exported}
	var b bytes.Buffer
	b.WriteString(header)
	for i, d := range declarations {
		fmt.Fprintf(&b, "\n// %s %s\n", d.goName, d.doc)
		if e, ok := found[i].(*btf.Enum); ok {
			writeEnum(&b, d, e)
			continue
		}
		decl, err := gf.TypeDeclaration(d.goName, found[i])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", d.c, err)
		}
		b.WriteString(decl + "\n")
	}
	return format.Source(b.Bytes())
}

func find(types *btf.Spec, name string) (btf.Type, error) {
	all, err := types.AnyTypesByName(name)
	if err != nil {
		return nil, fmt.Errorf("%s is not in the object's BTF: %w", name, err)
	}
	for _, typ := range all { // a map may bear its value's name
		switch typ.(type) {
		case *btf.Struct, *btf.Enum:
			return typ, nil
		}
	}
	return nil, fmt.Errorf("%s is neither a struct nor an enum", name)
}

// writeEnum writes CDT_SLOT_OUT_V4 of enum cdt_slot as SlotOutV4, and CDT_SLOT__COUNT as SlotCount.
func writeEnum(b *bytes.Buffer, d declaration, e *btf.Enum) {
	fmt.Fprintf(b, "type %s %s\n\n// The values of %s.\nconst (\n", d.goName, d.underlying, d.goName)
	prefix := strings.ToUpper(d.c) + "_"
	for _, v := range e.Values {
		name := strings.TrimPrefix(v.Name, prefix)
		if name == "_COUNT" {
			fmt.Fprintf(b, "%sCount = %d // how many there are\n", d.goName, v.Value)
			continue
		}
		fmt.Fprintf(b, "%s%s %s = %d\n", d.goName, exported(strings.ToLower(name)), d.goName, v.Value)
	}
	b.WriteString(")\n")
}

// exported turns out_v4 into OutV4.
func exported(s string) string {
	var b strings.Builder
	for part := range strings.SplitSeq(s, "_") {
		if part != "" {
			b.WriteString(strings.ToUpper(part[:1]) + part[1:])
		}
	}
	return b.String()
}
