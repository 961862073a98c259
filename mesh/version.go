package mesh

import "runtime/debug"

// version is set by the linker: -ldflags "-X conduit.io/conduit/mesh.version=v1.2.3".
var version string

// Version names this build: what the linker was told, else what Go recorded of the module and its commit, else
// "devel". It never changes while the process lives.
func Version() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "devel"
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	revision, dirty := "", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			revision = "-" + s.Value[:min(len(s.Value), 12)]
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = "+dirty"
		}
	}
	return "devel" + revision + dirty
}
