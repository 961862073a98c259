package tests

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "conduit.io/conduit/"

type pkg struct {
	ImportPath string
	Standard   bool
	Imports    []string
	Deps       []string
}

// list runs go list on patterns from the module's root.
func list(t *testing.T, args ...string) []pkg {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Standard,Imports,Deps"}, args...)...)
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("go list: %v\n%s", err, exit.Stderr)
		}
		t.Fatalf("go list: %v", err)
	}
	var pkgs []pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
	if len(pkgs) == 0 {
		t.Fatal("go list named no package")
	}
	return pkgs
}

func under(path, dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }

// layers orders the house: a package imports only from later rows. Packages of one row never import each other's trees.
var layers = [][]string{
	{"cmd"},
	{"agent", "proxy", "control", "cni", "cli"},
	{"loader", "identity", "deploy"},
	{"api", "mesh"},
}

func layerOf(path string) (row int, dir string) {
	rest, ok := strings.CutPrefix(path, module)
	if !ok {
		return -1, ""
	}
	for row, dirs := range layers {
		for _, dir := range dirs {
			if under(rest, dir) {
				return row, dir
			}
		}
	}
	return -1, rest
}

func TestImportsPointOneWay(t *testing.T) {
	checked := 0
	for _, p := range list(t, "./...") {
		row, dir := layerOf(p.ImportPath)
		if row < 0 {
			continue // tests, bpf generators: they may import anything
		}
		for _, imp := range p.Imports {
			r, d := layerOf(imp)
			if d == "" {
				continue
			}
			checked++
			switch {
			case r < 0:
				t.Errorf("%s imports %s: product code imports nothing from outside the house", p.ImportPath, imp)
			case r < row:
				t.Errorf("%s imports %s: imports point down, from %s to what it is built on", p.ImportPath, imp, dir)
			case r == row && d != dir && dir != "api" && dir != "mesh":
				t.Errorf("%s imports %s: siblings meet over api, they never import each other", p.ImportPath, imp)
			case dir == "mesh" && d != "mesh":
				t.Errorf("%s imports %s: mesh is the leaf vocabulary", p.ImportPath, imp)
			}
		}
	}
	if checked < 20 {
		t.Fatalf("only %d imports were checked: the layers no longer match the tree", checked)
	}
}

// forbidden names what a package tree must not reach, itself or through others, and why.
var forbidden = []struct{ from, to, why string }{
	{"cmd/conduit-cni", "k8s.io", "the plugin starts for every pod: it asks the agent, it does not talk to Kubernetes"},
	{"cmd/conduit-cni", "github.com/cilium/ebpf", "only the agent touches the kernel's programs"},
	{"cmd/conduit-cni", "net/http", "the plugin starts for every pod, and would be a third larger"},
	{"cmd/conduit", "github.com/cilium/ebpf", "the CLI looks through the agent, not into the kernel"},
	{"cmd/conduit-controller", "github.com/cilium/ebpf", "the control plane has no node"},
	{"cmd/conduit-agent", "google.golang.org/grpc", "the agent's memory budget is 40 MB"},
}

func TestForbiddenDependencies(t *testing.T) {
	for _, f := range forbidden {
		for _, p := range list(t, "./"+f.from) {
			for _, dep := range p.Deps {
				if under(dep, f.to) {
					t.Errorf("%s links %s: %s", f.from, dep, f.why)
				}
			}
		}
	}
}

func TestOnlyLoaderImportsEBPF(t *testing.T) {
	users := 0
	for _, p := range list(t, "./...") {
		if !slices.ContainsFunc(p.Imports, func(i string) bool { return under(i, "github.com/cilium/ebpf") }) {
			continue
		}
		rest := strings.TrimPrefix(p.ImportPath, module)
		if !under(rest, "loader") && !under(rest, "bpf") && !under(rest, "tests") {
			t.Errorf("%s imports cilium/ebpf: only loader knows how programs are loaded", p.ImportPath)
		}
		users++
	}
	if users == 0 {
		t.Fatal("nobody imports cilium/ebpf: the test looks at the wrong tree")
	}
}

// proxyLinks is the closed list of what conduit-proxy may link beside the standard library: its resident memory is
// mostly program text, and everything it links parses bytes of strangers.
var proxyLinks = []string{
	"golang.org/x/net/http2/hpack",
	"golang.org/x/sys/unix",
	"google.golang.org/protobuf/encoding/protowire",
	"google.golang.org/protobuf/internal/errors",
	"google.golang.org/protobuf/internal/detrand",
	module + "mesh", module + "api", module + "proxy",
}

// proxyStdForbidden are the parts of the standard library that conduit-proxy must not link.
var proxyStdForbidden = map[string]string{
	"net/http":      "costs 1 MB of resident memory and is a second HTTP stack",
	"text/template": "pulls in reflection over everything",
	"os/exec":       "the proxy starts nothing",
	"plugin":        "the proxy loads nothing",
}

func TestProxyLinksOnlyItsList(t *testing.T) {
	deps := list(t, "-deps", "./cmd/conduit-proxy")
	for _, p := range deps {
		if p.Standard || under(p.ImportPath, module+"cmd/conduit-proxy") {
			for bad, why := range proxyStdForbidden {
				if p.ImportPath == bad {
					t.Errorf("conduit-proxy links %s: %s", bad, why)
				}
			}
			continue
		}
		if !slices.ContainsFunc(proxyLinks, func(ok string) bool { return under(p.ImportPath, ok) }) {
			t.Errorf("conduit-proxy links %s, which is not on its list", p.ImportPath)
		}
	}
}
