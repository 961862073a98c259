package tests

import (
	"encoding/json"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"conduit.io/conduit/deploy"
)

// requested is the memory that an installation requests for each container, in MB of 1000 KB.
func requested(t *testing.T, values map[string]any) map[string]float64 {
	t.Helper()
	all := map[string]float64{}
	for _, c := range chartContainers(t, values) {
		all[c.Name] = float64(c.Resources.Requests.Memory().Value()) / 1e6
	}
	return all
}

// TestRequestsAreMeasured: what containers request is what they were measured to need, and not many times that.
func TestRequestsAreMeasured(t *testing.T) {
	measured := map[string]float64{}
	memory, err := os.ReadFile("../docs/memory.md")
	if err != nil {
		t.Fatal(err)
	}
	// | conduit-agent | goal | RSS (anonymous) without pods | with 110 pods |
	for _, m := range regexp.MustCompile(`(?m)^\| conduit-(agent|proxy|cni) \|[^|]*\| ([0-9.]+) [^|]*\| ([0-9.]+) [^|]*\|$`).FindAllStringSubmatch(string(memory), -1) {
		for _, text := range m[2:] {
			mb, err := strconv.ParseFloat(text, 64)
			if err != nil {
				t.Fatal(err)
			}
			measured[m[1]] = max(measured[m[1]], mb)
		}
	}
	text, err := os.ReadFile("../docs/scale.json")
	if err != nil {
		t.Fatal(err)
	}
	var sizes []struct {
		Nodes int
		Rest  struct{ RSS float64 }
	}
	if err := json.NewDecoder(strings.NewReader(string(text))).Decode(&sizes); err != nil {
		t.Fatal(err)
	}
	controller := map[int]float64{}
	for _, s := range sizes {
		controller[s.Nodes] = s.Rest.RSS / 1e6
	}
	check := func(what string, request, need float64) {
		t.Helper()
		if need == 0 || request < need || request > 3*need {
			t.Errorf("%s requests %.0f MB, and %.1f MB were measured", what, request, need)
		}
	}
	requests := requested(t, nil)
	for _, container := range []string{"agent", "proxy", "cni"} {
		check(container, requests[container], measured[container])
	}
	check("controller", requests["controller"], controller[10])
	ha, err := deploy.HighAvailability()
	if err != nil {
		t.Fatal(err)
	}
	check("controller with --ha", requested(t, ha)["controller"], controller[100])
}
