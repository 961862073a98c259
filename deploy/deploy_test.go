package deploy

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"helm.sh/helm/v4/pkg/strvals"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
)

var update = flag.Bool("update", false, "rewrite the golden files in testdata")

// tryRender renders with what --set would say.
func tryRender(set string) ([]*unstructured.Unstructured, error) {
	values, err := strvals.Parse(set)
	if err != nil {
		return nil, err
	}
	return Render(values)
}

func render(t *testing.T, set string) []*unstructured.Unstructured {
	t.Helper()
	objects, err := tryRender(set)
	if err != nil {
		t.Fatal(err)
	}
	return objects
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := "testdata/" + name
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := gocmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got; go test -update rewrites it):\n%s", path, diff)
	}
}

// What an installation is: its objects, and what its containers may do and reach.
func TestObjects(t *testing.T) {
	var b strings.Builder
	for _, o := range render(t, "image.tag=v1") {
		fmt.Fprintln(&b, strings.TrimPrefix(o.GetNamespace()+"/", "/")+o.GetKind(), o.GetName())
		if spec, ok := podSpec(t, o); ok {
			describe(&b, spec)
		}
	}
	golden(t, "objects.txt", b.String())
}

func podSpec(t *testing.T, o *unstructured.Unstructured) (corev1.PodSpec, bool) {
	t.Helper()
	var spec corev1.PodSpec
	fields, ok, err := unstructured.NestedMap(o.Object, "spec", "template", "spec")
	if err != nil || !ok {
		return spec, false
	}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(fields, &spec, true); err != nil { // strictly
		t.Fatalf("%s %s: %v", o.GetKind(), o.GetName(), err)
	}
	return spec, true
}

func describe(b *strings.Builder, spec corev1.PodSpec) {
	s := spec.SecurityContext
	user := "any but root"
	if s.RunAsUser != nil {
		user = fmt.Sprint(*s.RunAsUser)
	}
	fmt.Fprintf(b, "  host network %v, host processes %v, user %s, seccomp %s\n", spec.HostNetwork, spec.HostPID, user, s.SeccompProfile.Type)
	for _, v := range spec.Volumes {
		if v.HostPath != nil {
			fmt.Fprintf(b, "  volume %s: %s of the node, %s\n", v.Name, v.HostPath.Path, *v.HostPath.Type)
		}
	}
	for _, c := range spec.Containers {
		fmt.Fprintf(b, "  container %s: %s\n", c.Name, strings.Join(append(append([]string{c.Image}, c.Command...), c.Args...), " "))
		fmt.Fprintf(b, "    tokens for %s\n", tokens(spec, c.VolumeMounts))
		c := c.SecurityContext
		fmt.Fprintf(b, "    privileged %v, gains privileges %v, read-only root %v, drops %v, has %v\n",
			c.Privileged != nil, *c.AllowPrivilegeEscalation, *c.ReadOnlyRootFilesystem, c.Capabilities.Drop, c.Capabilities.Add)
	}
}

// tokens are the audiences of those that a container has.
func tokens(spec corev1.PodSpec, mounts []corev1.VolumeMount) (audiences []string) {
	const api = "the API server"
	if spec.AutomountServiceAccountToken == nil || *spec.AutomountServiceAccountToken {
		audiences = append(audiences, api)
	}
	for _, v := range spec.Volumes {
		if v.Projected == nil || !slices.ContainsFunc(mounts, func(m corev1.VolumeMount) bool { return m.Name == v.Name }) {
			continue
		}
		for _, s := range v.Projected.Sources {
			if s.ServiceAccountToken != nil {
				audiences = append(audiences, cmp.Or(s.ServiceAccountToken.Audience, api))
			}
		}
	}
	return audiences
}

// With several replicas on different nodes an update must let one leave first, or the new one has no place.
func TestHighAvailability(t *testing.T) {
	values, err := HighAvailability()
	if err != nil {
		t.Fatal(err)
	}
	objects, err := Render(values)
	if err != nil {
		t.Fatal(err)
	}
	var budget, required bool
	for _, o := range objects {
		budget = budget || o.GetKind() == "PodDisruptionBudget"
		if spec, ok := podSpec(t, o); ok && o.GetName() == Controller {
			required = len(spec.Affinity.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution) == 1
			if n, _, _ := unstructured.NestedInt64(o.Object, "spec", "strategy", "rollingUpdate", "maxUnavailable"); n != 1 {
				t.Errorf("%d replicas may be away during an update, want 1", n)
			}
		}
	}
	if !budget || !required {
		t.Errorf("a disruption budget: %v, replicas on different nodes: %v", budget, required)
	}
}

// Every object is of a kind that can be listed, and so removed, and says that it is Conduit's.
func TestKindsAndLabels(t *testing.T) {
	objects, err := Installation(map[string]any{"controller": map[string]any{"replicas": int64(2)}})
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, o := range objects {
		kind, ok := KindOf(o)
		if !ok || kind.Cluster != (o.GetNamespace() == "") {
			t.Errorf("%s %s in namespace %q: the kind is %+v", o.GetKind(), o.GetName(), o.GetNamespace(), kind)
		}
		seen[o.GetKind()] = true
		if !Ours(o) || o.GetLabels()["app.kubernetes.io/part-of"] != "conduit" || o.GetLabels()["app.kubernetes.io/managed-by"] != "conduit" {
			t.Errorf("%s %s has the labels %v", o.GetKind(), o.GetName(), o.GetLabels())
		}
	}
	for _, k := range Kinds() {
		if !seen[k.Name] {
			t.Errorf("no object is a %s", k.Name)
		}
	}
}

func TestRecord(t *testing.T) {
	want := Record{Version: "v1", Values: map[string]any{"controller": map[string]any{"replicas": 2.0}}}
	o, err := want.Object()
	if err != nil {
		t.Fatal(err)
	}
	got, err := ReadRecord(o)
	if diff := gocmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v (-want +got)\n%s", err, diff)
	}
	if _, err := ReadRecord(&unstructured.Unstructured{Object: map[string]any{}}); err == nil {
		t.Error("a ConfigMap without a version was read")
	}
}

// Values that mean nothing are refused by name.
func TestSchema(t *testing.T) {
	for set, want := range map[string]string{
		"nonsense=1":                                  "'nonsense' not allowed",
		"agent.nonsense=1":                            "'/agent': additional properties 'nonsense'",
		"cni.chained=true":                            "'/cni': additional properties 'chained'",
		"controller.resources.cpu=1":                  "'/controller/resources'",
		"controller.tolerations[0].efect=x":           "'/controller/tolerations/0'",
		"controller.replicas=0":                       "'/controller/replicas'",
		"controller.replicas=many":                    "'/controller/replicas'",
		"controller.antiAffinity=soft":                "'/controller/antiAffinity'",
		"image.tag=a b":                               "'/image/tag'",
		"image.pullPolicy=Sometimes":                  "'/image/pullPolicy'",
		"trustDomain=Example.org":                     "'/trustDomain'",
		"cni.confDir=etc/cni":                         "'/cni/confDir'",
		"proxy.shards=0":                              "'/proxy/shards'",
		"agent.logLevel=loud":                         "'/agent/logLevel'",
		"agent.kubeletPort=65536":                     "'/agent/kubeletPort'",
		"commonLabels.a=1":                            "'/commonLabels/a'",
		"proxy.resources.limits.memory=a lot":         "'/proxy/resources/limits/memory'",
		"image.pullSecrets[0]=a b":                    "'/image/pullSecrets/0'",
		"image.pullSecrets=one":                       "'/image/pullSecrets'",
		"createNamespace=perhaps":                     "'/createNamespace'",
		"controller.nodeSelector.disk=3":              "'/controller/nodeSelector/disk'",
		"agent.podAnnotations.example\\.org/owner=12": "'/agent/podAnnotations/example.org",
	} {
		_, err := tryRender(set)
		var bad *ValuesError
		if !errors.As(err, &bad) || !strings.Contains(err.Error(), want) {
			t.Errorf("--set %q: %v, want %s", set, err, want)
		}
	}
}

// The schema has every table closed, so that no misspelt value is passed over.
func TestSchemaIsClosed(t *testing.T) {
	data, err := chartFiles.ReadFile("chart/values.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	schema, err := Values(data)
	if err != nil {
		t.Fatal(err)
	}
	tables := 0
	var walk func(path string, v any)
	walk = func(path string, v any) {
		m, ok := v.(map[string]any)
		if !ok {
			return
		}
		if m["type"] == "object" {
			tables++
			if extra, said := m["additionalProperties"]; !said || extra == true {
				t.Errorf("%s takes any property", path)
			}
		}
		for k, sub := range m {
			walk(path+"/"+k, sub)
		}
	}
	walk("", schema)
	if tables < 8 {
		t.Errorf("only %d tables were looked at", tables)
	}
}

// kubectl explain has words for every field of our own kinds.
func TestFieldsAreDescribed(t *testing.T) {
	crds, err := CRDs()
	if err != nil || len(crds) == 0 {
		t.Fatalf("%d definitions, %v", len(crds), err)
	}
	fields := 0
	var walk func(path string, schema map[string]any)
	walk = func(path string, schema map[string]any) {
		if text, _ := schema["description"].(string); text == "" {
			t.Errorf("%s is not described", path)
		}
		properties, _ := schema["properties"].(map[string]any)
		for name, sub := range properties {
			fields++
			walk(path+"."+name, sub.(map[string]any))
		}
	}
	for _, crd := range crds {
		versions, _, err := unstructured.NestedSlice(crd.Object, "spec", "versions")
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range versions {
			schema, _, err := unstructured.NestedMap(v.(map[string]any), "schema", "openAPIV3Schema")
			if err != nil {
				t.Fatal(err)
			}
			walk(crd.GetName(), schema)
		}
	}
	if fields < 4 {
		t.Errorf("only %d fields were looked at", fields)
	}
}
