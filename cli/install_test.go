package cli

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// documents are the objects of a stream of YAML.
func documents(t *testing.T, text string) []map[string]any {
	t.Helper()
	var all []map[string]any
	for doc := range strings.SplitSeq(text, "---\n") {
		var o map[string]any
		if err := yaml.UnmarshalStrict([]byte(doc), &o); err != nil {
			t.Fatalf("%v in\n%s", err, doc)
		}
		if o != nil {
			all = append(all, o)
		}
	}
	return all
}

func names(objects []map[string]any) []string {
	var all []string
	for _, o := range objects {
		metadata, _ := o["metadata"].(map[string]any)
		all = append(all, o["kind"].(string)+" "+metadata["name"].(string))
	}
	return all
}

// Values come from --ha, files and --set, and each wins over those before it.
func TestInstallPrints(t *testing.T) {
	file := filepath.Join(t.TempDir(), "values.yaml")
	if err := os.WriteFile(file, []byte("controller: {replicas: 5}\ntrustDomain: example.org\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	code, out, errOut := run(t, goodSystem(), "install", "--ha", "-f", file, "--set", "trustDomain=example.com")
	if code != ExitOK || errOut != "" {
		t.Fatalf("exit code %d: %s", code, errOut)
	}
	for _, want := range []string{"replicas: 5", "requiredDuringScheduling", "--trust-domain=example.com", "localhost/conduit-agent:"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q", want)
		}
	}
	if strings.Contains(out, "example.org") {
		t.Error("a file wins over --set")
	}
	if got := names(documents(t, out)); got[0] != "Namespace conduit" || got[len(got)-1] != "DaemonSet conduit-agent" {
		t.Errorf("the order is %v", got)
	}
	var b bytes.Buffer
	env := Env{In: strings.NewReader("controller: {replicas: 4}"), Out: &b, Err: &b, Getenv: func(string) string { return "" }}
	if code := Run(t.Context(), env, []string{"install", "-f", "-"}); code != ExitOK || !strings.Contains(b.String(), "replicas: 4") {
		t.Errorf("values from standard input: exit code %d", code)
	}
}

// What uninstall prints is everything that install can print, the other way round.
func TestUninstallPrints(t *testing.T) {
	_, installed, _ := run(t, goodSystem(), "install", "--ha")
	code, removed, errOut := run(t, goodSystem(), "uninstall")
	if code != ExitOK || !strings.Contains(errOut, "uninstall --apply") {
		t.Fatalf("exit code %d: %s", code, errOut)
	}
	want, got := names(documents(t, installed)), names(documents(t, removed))
	if slices.Reverse(want); !slices.Equal(got, want) {
		t.Errorf("uninstall prints\n%v, want\n%v", got, want)
	}
}

func TestMeshPrints(t *testing.T) {
	for line, want := range map[string]string{
		"mesh ns/shop namespace/bank": "kubectl label namespace shop --overwrite conduit.io/mesh=enabled\nkubectl label namespace bank --overwrite conduit.io/mesh=enabled\n",
		"mesh pod/web -n shop":        "kubectl label -n shop pod web --overwrite conduit.io/mesh=enabled\n",
		"mesh pod/web":                "kubectl label pod web --overwrite conduit.io/mesh=enabled\n",
		"unmesh ns/shop":              "kubectl label namespace shop conduit.io/mesh-\n",
		"unmesh po/web -n shop":       "kubectl label -n shop pod web --overwrite conduit.io/mesh=disabled\n",
	} {
		if code, out, errOut := run(t, goodSystem(), strings.Fields(line)...); code != ExitOK || out != want {
			t.Errorf("%s: exit code %d, %q %s", line, code, out, errOut)
		}
	}
}

// Help shows the flags that people use every day; all of kubectl's are taken.
func TestClusterFlags(t *testing.T) {
	_, out, _ := run(t, goodSystem(), "install", "--help")
	for _, flag := range []string{"--context", "--kubeconfig", "--namespace"} {
		if !strings.Contains(out, flag) {
			t.Errorf("help does not show %s", flag)
		}
	}
	if strings.Contains(out, "--password") {
		t.Error("help shows all of kubectl's flags")
	}
	if code, _, errOut := run(t, goodSystem(), "install", "--as", "admin", "--server", "https://localhost", "--request-timeout", "1s"); code != ExitOK {
		t.Errorf("kubectl's flags: %s", errOut)
	}
}
