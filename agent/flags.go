// Package agent is the node daemon: it loads the kernel programs, runs the proxy, answers the CNI plugin, and keeps all
// of them in the state that the manifests ask for.
package agent

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/url"
	"os"
	"path/filepath"

	"conduit.io/conduit/agent/admin"
	"conduit.io/conduit/agent/cnicache"
	"conduit.io/conduit/agent/kubelet"
	"conduit.io/conduit/mesh"

	"golang.org/x/sys/unix"
)

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 64 // EX_USAGE of sysexits.h
)

// Env is what the agent takes from its process.
type Env struct {
	Args   []string // without the program's name
	Stdout io.Writer
	Stderr io.Writer
	Getenv func(string) string // nil: there is nothing
}

// config is what the flags say.
type config struct {
	standalone  bool
	manifests   string
	runDir      string
	bpffs       string
	cgroup      string
	caDir       string
	controller  string
	controlAt   string // host:port of the controller's Service, which needs no DNS; empty: not known
	kubeconfig  string
	tokenFile   string
	rootsFile   string
	cniCache    string
	cniLock     string
	ownProxy    bool // the agent starts it
	node        string
	trustDomain string
	proxy       string
	admin       string
	kubeletPort uint
	logLevel    slog.Level
	uninstall   bool
	version     bool
}

const usage = `conduit-agent is the node daemon of the Conduit service mesh.

Usage:
  conduit-agent [flags]                                run a node of a Kubernetes cluster
  conduit-agent --standalone --manifests DIR [flags]   run a node without Kubernetes
  conduit-agent --uninstall [--run-dir DIR] [--bpffs DIR]   remove everything of a node, and show that it is gone
  conduit-agent --version

The agent needs root, Linux 5.15 or later with BTF, and cgroup2. When it ends, pods stay wired and the proxy goes on;
the next agent with the same --run-dir and --bpffs takes over.

Flags:
`

// defaultController is the controller's Service by its name in the cluster's DNS.
const defaultController = "https://conduit-controller.conduit.svc:8085"

// serviceAddress is the address of that Service as kubelets tell it to pods of its namespace that start after it. DNS may be among what
// waits for agents.
func serviceAddress(getenv func(string) string) string {
	if getenv == nil {
		return ""
	}
	host, port := getenv("CONDUIT_CONTROLLER_SERVICE_HOST"), getenv("CONDUIT_CONTROLLER_SERVICE_PORT")
	if host == "" || port == "" {
		return ""
	}
	return net.JoinHostPort(host, port)
}

// parse reads the flags. ok is false when the process should exit with code.
func parse(env Env) (c config, code int, ok bool) {
	fs := flag.NewFlagSet("conduit-agent", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.BoolVar(&c.standalone, "standalone", false, "take Kubernetes objects from --manifests, and be the certificate authority")
	fs.StringVar(&c.manifests, "manifests", "", "`DIR` of YAML and JSON files: Namespace, Pod, Service, MeshPolicy; watched")
	fs.StringVar(&c.runDir, "run-dir", "/run/conduit", "`DIR` for sockets, the attachments of pods, and the proxy's log")
	fs.StringVar(&c.bpffs, "bpffs", "/sys/fs/bpf/conduit", "`DIR` on a bpffs for pinned programs and maps")
	fs.StringVar(&c.cgroup, "cgroup", "", "cgroup2 `DIR` whose processes are steered (default the mount point of cgroup2)")
	fs.StringVar(&c.caDir, "ca-dir", "", "`DIR` of the certificate authority (default RUN-DIR/ca); agents that share it trust each other")
	fs.StringVar(&c.controller, "controller", defaultController, "`URL` of the controller's API; on Kubernetes")
	fs.StringVar(&c.tokenFile, "token-file", "/var/run/secrets/conduit/token", "`FILE` with a ServiceAccount token of audience \"conduit\"; on Kubernetes")
	fs.StringVar(&c.rootsFile, "roots-file", "/var/run/conduit/roots/ca.crt", "`FILE` with the trust bundle to know the controller by; on Kubernetes")
	fs.StringVar(&c.kubeconfig, "kubeconfig", "", "`FILE` that says how to reach the API server (default: as a pod does); on Kubernetes")
	fs.StringVar(&c.cniCache, "cni-cache", "", "`DIR` where the container runtime's libcni records attachments, to find pods that ran before the plugin (default on Kubernetes "+cnicache.DefaultDir+"; with --standalone none)")
	fs.StringVar(&c.cniLock, "cni-lock", "", "`FILE` that 'conduit-cni watch --lock' keeps locked while the plugin is in place: the node is not ready before (default: the plugin is not asked for)")
	fs.StringVar(&c.node, "node-name", "", "`NAME` that spec.nodeName of this node's pods has (default the host name)")
	fs.StringVar(&c.trustDomain, "trust-domain", "cluster.local", "SPIFFE trust `DOMAIN`")
	fs.StringVar(&c.proxy, "proxy", "", "`PATH` of the conduit-proxy binary (default beside conduit-agent; on Kubernetes none: a container of its own runs it)")
	fs.StringVar(&c.admin, "admin", admin.DefaultAddr, "`ADDRESS` of /metrics, /readyz and /debug/pods; written to RUN-DIR/admin.addr")
	fs.UintVar(&c.kubeletPort, "kubelet-port", kubelet.DefaultPort, "`PORT` that the node's kubelet serves: the kernel knows it by that, and lets its probes reach STRICT pods; 0: nobody's")
	fs.TextVar(&c.logLevel, "log-level", slog.LevelInfo, "`LEVEL` of the log on stderr: debug, info, warn or error")
	fs.BoolVar(&c.uninstall, "uninstall", false, "stop this node's agent and proxy, remove everything they made, verify, and exit")
	fs.BoolVar(&c.version, "version", false, "print the version and exit")
	err := fs.Parse(env.Args)
	if errors.Is(err, flag.ErrHelp) {
		fmt.Fprint(env.Stdout, usage)
		fs.SetOutput(env.Stdout)
		fs.PrintDefaults()
		return c, exitOK, false
	}
	if err == nil && fs.NArg() > 0 {
		err = fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	if err == nil && !c.version {
		err = c.complete()
	}
	if c.controller == defaultController {
		c.controlAt = serviceAddress(env.Getenv)
	}
	if err != nil {
		fmt.Fprintf(env.Stderr, "conduit-agent: %v\nRun 'conduit-agent --help' for usage.\n", err)
		return c, exitUsage, false
	}
	return c, exitOK, true
}

// complete fills in defaults and refuses what cannot be.
func (c *config) complete() error {
	if !c.uninstall {
		switch {
		case c.standalone && c.manifests == "":
			return errors.New("required with --standalone: --manifests DIR")
		case !c.standalone && (c.manifests != "" || c.caDir != ""):
			return errors.New("--manifests and --ca-dir are for --standalone: on Kubernetes the API server and the controller take their place")
		}
		if u, err := url.Parse(c.controller); err != nil || u.Scheme != "https" || u.Host == "" {
			return fmt.Errorf("--controller %q: want https://HOST:PORT", c.controller)
		}
	}
	if c.cniCache == "" && !c.standalone {
		c.cniCache = cnicache.DefaultDir
	}
	for _, p := range []*string{&c.runDir, &c.bpffs, &c.manifests, &c.caDir, &c.proxy, &c.cgroup, &c.cniCache, &c.cniLock} {
		if *p == "" {
			continue
		}
		abs, err := filepath.Abs(*p)
		if err != nil {
			return err
		}
		*p = abs
	}
	if c.runDir == "" || c.bpffs == "" {
		return errors.New("--run-dir and --bpffs must not be empty")
	}
	if c.runDir == "/" || c.bpffs == "/" {
		return errors.New("--run-dir and --bpffs must be directories of their own")
	}
	// The kernel's limit for the path of a Unix socket is 107 bytes (unix(7)).
	if sock := filepath.Join(c.runDir, "proxy.sock.new"); len(sock) > 107 {
		return fmt.Errorf("--run-dir %s is too long for the sockets in it (at most %d bytes)", c.runDir, 107-len("/proxy.sock.new"))
	}
	if c.kubeletPort > math.MaxUint16 {
		return fmt.Errorf("--kubelet-port %d: want a port, or 0", c.kubeletPort)
	}
	if !mesh.ValidTrustDomain(c.trustDomain) {
		return fmt.Errorf("--trust-domain %q: want lower-case letters, digits, dots, dashes and underscores", c.trustDomain)
	}
	if c.node == "" {
		name, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("no --node-name, and the host name is unknown: %w", err)
		}
		c.node = name
	}
	if c.caDir == "" {
		c.caDir = filepath.Join(c.runDir, defaultCA)
	}
	if c.cgroup == "" {
		c.cgroup = cgroup2()
	}
	if c.ownProxy = c.standalone || c.proxy != ""; c.ownProxy && c.proxy == "" {
		self, err := os.Executable()
		if err != nil {
			return fmt.Errorf("no --proxy, and the agent's own path is unknown: %w", err)
		}
		c.proxy = filepath.Join(filepath.Dir(self), "conduit-proxy")
	}
	return nil
}

// cgroup2 is where cgroup2 is mounted: alone, or beside version 1.
func cgroup2() string {
	for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var fs unix.Statfs_t
		if unix.Statfs(dir, &fs) == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC {
			return dir
		}
	}
	return "/sys/fs/cgroup" // the loader says what is wrong with it
}
