package tests

import (
	"bytes"
	"regexp"
	"strings"
	"testing"

	"conduit.io/conduit/agent"
	"conduit.io/conduit/cni/install"
	"conduit.io/conduit/control"
	"conduit.io/conduit/deploy"
	"conduit.io/conduit/proxy"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
)

// chartContainers are the containers that the chart has with values.
func chartContainers(t *testing.T, values map[string]any) (all []corev1.Container) {
	t.Helper()
	objects, err := deploy.Render(values)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range objects {
		fields, ok, err := unstructured.NestedMap(o.Object, "spec", "template", "spec")
		if err != nil || !ok {
			continue
		}
		var spec corev1.PodSpec
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(fields, &spec); err != nil {
			t.Fatal(err)
		}
		all = append(all, spec.Containers...)
	}
	return all
}

// The chart starts programs with flags that they have.
func TestChartFlags(t *testing.T) {
	var out bytes.Buffer
	help := []string{"--help"}
	programs := map[string]func() int{
		"controller": func() int { return control.Main(t.Context(), help, &out, &out) },
		"agent":      func() int { return agent.Main(agent.Env{Args: help, Stdout: &out, Stderr: &out}) },
		"proxy":      func() int { return proxy.Run(proxy.Env{Args: help, Stdout: &out, Stderr: &out}) },
		"cni":        func() int { return install.Main(help, &out, &out) },
	}
	seen := 0
	for _, c := range chartContainers(t, nil) {
		out.Reset()
		if code := programs[c.Name](); code != 0 {
			t.Fatalf("%s --help: exit code %d", c.Name, code)
		}
		for _, arg := range append(c.Command, c.Args...) {
			name, _, _ := strings.Cut(arg, "=")
			if !strings.HasPrefix(name, "--") {
				continue
			}
			seen++
			if !regexp.MustCompile(`(?m)^(\s*|\s*conduit-\w+ )--?` + regexp.QuoteMeta(name[2:]) + `\b`).Match(out.Bytes()) {
				t.Errorf("the chart starts %s with %s, which it does not have:\n%s", c.Name, name, &out)
			}
		}
	}
	if seen < 10 {
		t.Errorf("only %d flags were looked at", seen)
	}
}
