package peers

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"text/template"
)

//go:embed conf
var confs embed.FS

// program is a proxy that can be started.
type program struct {
	name  string
	title string
	// find is the path of its binary; an error says why there is none.
	find func(bin string) (string, error)
	// version are arguments that make it print its version, in which the pattern finds it.
	version []string
	conf    string // template of its configuration in conf/, if it has one
	// args are its arguments, given the configuration's path.
	args func(h Hop, conf string) []string
	env  []string
	// lanes are those it serves, alone; mesh those over two hops of mutual TLS.
	lanes, mesh []Lane
	// same maps lanes to others whose listener they share.
	same map[Lane]Lane
	// apart: a process for each listener, because the configuration allows one upstream.
	apart bool
}

var versionPattern = regexp.MustCompile(`v?\d+\.\d+[\w.+-]*`)

// versionOf is what the program says it is, or "unknown".
func (p *program) versionOf(path string) string {
	if len(p.version) == 0 {
		return ""
	}
	out, _ := exec.Command(path, p.version...).CombinedOutput() // nginx tells it on stderr
	if v := versionPattern.Find(out); v != nil {
		return string(v)
	}
	if first, _, _ := bytes.Cut(bytes.TrimSpace(out), []byte("\n")); len(first) > 0 && len(first) < 60 {
		return string(first)
	}
	return "unknown"
}

// installed finds a program of the system; sbin is not in every user's PATH.
func installed(name, pkg string) func(string) (string, error) {
	return func(string) (string, error) {
		for _, dir := range append(filepath.SplitList(os.Getenv("PATH")), "/usr/local/sbin", "/usr/sbin") {
			path := filepath.Join(dir, name)
			if info, err := os.Stat(path); err == nil && info.Mode()&0o111 != 0 && !info.IsDir() {
				return path, nil
			}
		}
		return "", fmt.Errorf("not installed (apt-get install %s)", pkg)
	}
}

// built finds a program that the Makefile builds.
func built(name string) func(string) (string, error) {
	return func(bin string) (string, error) {
		path, err := filepath.Abs(filepath.Join(bin, name))
		if err != nil {
			return "", err
		}
		if _, err := os.Stat(path); err != nil {
			return "", errors.New("not built")
		}
		return path, nil
	}
}

// canonical is the lane whose listener l shares.
func (p *program) canonical(l Lane) Lane {
	if c, ok := p.same[l]; ok {
		return c
	}
	return l
}

// supports is the lanes with that many hops.
func (p *program) supports(hops int) []Lane {
	if hops == 2 {
		return p.mesh
	}
	return p.lanes
}

// command writes the configuration for h and returns what to start.
func (p *program) command(path string, h Hop) ([]string, error) {
	conf := ""
	if p.conf != "" {
		conf = filepath.Join(h.Dir, p.conf)
		text, err := render(p.conf, h)
		if err != nil {
			return nil, err
		}
		if err := os.WriteFile(conf, text, 0o600); err != nil {
			return nil, fmt.Errorf("write a configuration: %w", err)
		}
	}
	return append([]string{path}, p.args(h, conf)...), nil
}

// linkOfHop is what a template that a template calls gets.
type linkOfHop struct {
	H Hop
	K Link
}

func render(name string, h Hop) ([]byte, error) {
	t, err := template.New(name).Funcs(template.FuncMap{
		"host": func(a string) (string, error) { host, _, err := net.SplitHostPort(a); return host, err },
		"port": func(a string) (string, error) { _, port, err := net.SplitHostPort(a); return port, err },
		"pair": func(h Hop, k Link) linkOfHop { return linkOfHop{h, k} },
	}).ParseFS(confs, "conf/"+name)
	if err != nil {
		return nil, fmt.Errorf("read template %s: %w", name, err)
	}
	var b bytes.Buffer
	if err := t.ExecuteTemplate(&b, name, h); err != nil {
		return nil, fmt.Errorf("fill template %s: %w", name, err)
	}
	return b.Bytes(), nil
}

// distinct maps lanes to the listeners that are needed for them.
func (p *program) distinct(lanes []Lane) []Lane {
	var out []Lane
	for _, l := range lanes {
		if c := p.canonical(l); !slices.Contains(out, c) {
			out = append(out, c)
		}
	}
	return out
}
