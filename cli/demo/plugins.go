package demo

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"conduit.io/conduit/cli/output"
)

// cniVersion is the CNI version that the demo's networks speak (STATUS and GC came with it).
const cniVersion = "1.1.0"

// plugins are the reference plugins that the demo's nodes chain conduit-cni after.
var plugins = []string{"bridge", "host-local"}

// findPlugins finds the directory with the reference CNI plugins: cni/ beside the programs, then CNI_PATH, then the
// usual places. Plugins too old for cniVersion are passed over.
func findPlugins(binDir string, getenv func(string) string) (string, error) {
	dirs := []string{filepath.Join(binDir, "cni")}
	if path := getenv("CNI_PATH"); path != "" {
		dirs = append(dirs, filepath.SplitList(path)...)
	}
	dirs = append(dirs, "/opt/cni/bin", "/usr/lib/cni")
	var wrong []string
	for _, dir := range dirs {
		err := usable(dir)
		if err == nil {
			return dir, nil
		}
		if !os.IsNotExist(err) {
			wrong = append(wrong, err.Error())
		}
	}
	cause := "looked in " + strings.Join(dirs, ", ")
	if len(wrong) > 0 {
		cause += "; " + strings.Join(wrong, "; ")
	}
	return "", &output.Problem{What: fmt.Sprintf("the CNI plugins bridge and host-local for CNI %s are not here", cniVersion),
		Cause: cause, Next: "make build (it builds them into bin/cni), or set CNI_PATH"}
}

// usable is nil when dir has all plugins and they are new enough; fs.ErrNotExist when one is not there.
func usable(dir string) error {
	for _, name := range plugins {
		path := filepath.Join(dir, name)
		if _, err := os.Stat(path); err != nil {
			return err
		}
		cmd := exec.Command(path)
		cmd.Env = []string{"CNI_COMMAND=VERSION"}
		cmd.Stdin = strings.NewReader(`{"cniVersion":"` + cniVersion + `"}`)
		out, err := cmd.Output()
		if err != nil {
			return fmt.Errorf("%s does not say its version: %w", path, err)
		}
		var v struct {
			Supported []string `json:"supportedVersions"`
		}
		if err := json.Unmarshal(out, &v); err != nil {
			return fmt.Errorf("%s does not say its version: %w", path, err)
		}
		if !slices.Contains(v.Supported, cniVersion) {
			return fmt.Errorf("%s is too old: it supports CNI %s", path, strings.Join(v.Supported, ", "))
		}
	}
	return nil
}
