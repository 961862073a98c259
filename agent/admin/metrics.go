package admin

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"conduit.io/conduit/agent/enrol"
	"conduit.io/conduit/agent/proxylink"
	"conduit.io/conduit/identity"
)

// page writes the Prometheus text exposition format, version 0.0.4.
type page struct{ strings.Builder }

func (p *page) family(name, kind, help string) {
	fmt.Fprintf(p, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
}

// sample writes one series; labels are pairs of name and value.
func (p *page) sample(name string, value uint64, labels ...string) {
	p.WriteString(name)
	for i := 0; i+1 < len(labels); i += 2 {
		sep := byte(',')
		if i == 0 {
			sep = '{'
		}
		p.WriteByte(sep)
		p.WriteString(labels[i] + `="` + escape.Replace(labels[i+1]) + `"`)
	}
	if len(labels) > 0 {
		p.WriteByte('}')
	}
	p.WriteByte(' ')
	p.WriteString(strconv.FormatUint(value, 10))
	p.WriteByte('\n')
}

var escape = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)

func (p *page) gauge(name, help string, value uint64, labels ...string) {
	p.family(name, "gauge", help)
	p.sample(name, value, labels...)
}

// Node is what the agent's own metrics tell.
type Node struct {
	Build, Name string
	Faults      int // in manifests
	Summary     enrol.Summary
	ProxyUp     bool
	Kubelet     bool              // the kernel vouches for one
	Starts      int               // of proxies
	Pods        []enrol.PodStatus // nil: the kernel's counts could not be read
}

// node is the state of the node now.
func (s *Server) node() *Node {
	state, _ := s.cfg.Supervisor.State()
	n := &Node{
		Build: s.cfg.Build, Name: s.cfg.Node, Faults: len(s.cfg.Manifests.Faults()), Summary: s.cfg.Manager.Summary(),
		ProxyUp: state == proxylink.Ready, Kubelet: s.cfg.Kubelet.Known(), Starts: s.cfg.Supervisor.Starts(),
	}
	var err error
	if n.Pods, err = s.cfg.Manager.Pods(); err != nil {
		n.Pods = nil
		s.cfg.Log.Warn("kernel counters not read", "error", err)
	}
	return n
}

// Metrics is n as Prometheus text. Series of pods are bounded by the pods of the node.
func (n *Node) Metrics() string {
	p := &page{}
	p.gauge("conduit_agent_info", "The running agent.", 1, "version", n.Build, "node", n.Name)
	p.gauge("conduit_manifest_errors", "Faults in manifests; what the files said before stays in force.", uint64(n.Faults))
	p.gauge("conduit_snapshot_version", "Version of the newest discovery snapshot.", n.Summary.Snapshot)
	p.certificates(n.Summary.Certificates)
	p.family("conduit_pods", "gauge", "Pods of this node by their state as the kernel has it.")
	p.sample("conduit_pods", uint64(n.Summary.Enrolled), "state", "enrolled")
	p.sample("conduit_pods", uint64(n.Summary.Wanted), "state", "wanted")
	p.sample("conduit_pods", uint64(n.Summary.Leaving), "state", "leaving")
	p.sample("conduit_pods", uint64(n.Summary.Other), "state", "not_meshed")
	p.gauge("conduit_proxy_up", "1 while the node's proxy is linked and up to date.", flag(n.ProxyUp))
	p.gauge("conduit_kubelet_known", "1 while the kernel vouches for the node's kubelet, so that its probes reach applications.", flag(n.Kubelet))
	p.family("conduit_proxy_starts_total", "counter", "Proxies started by this agent process.")
	p.sample("conduit_proxy_starts_total", uint64(n.Starts))
	if n.Pods != nil {
		p.sockets(n.Pods)
	}
	return p.String()
}

func flag(on bool) uint64 {
	if on {
		return 1
	}
	return 0
}

// sockets writes the kernel's counts. Pods that were never enrolled have none.
func (p *page) sockets(pods []enrol.PodStatus) {
	byPod := map[string]*enrol.Counters{}
	var names []string
	for i := range pods {
		name := pods[i].Namespace + "/" + pods[i].Name
		c := &pods[i].Counters
		if len(c.Bypassed) == 0 {
			continue
		}
		if sum := byPod[name]; sum != nil { // two sandboxes of one pod
			sum.Created += c.Created
			sum.Steered += c.Steered
			for reason, n := range c.Bypassed {
				sum.Bypassed[reason] += n
			}
			continue
		}
		byPod[name] = c
		names = append(names, name)
	}
	slices.Sort(names)
	p.family("conduit_sockets_created_total", "counter", "TCP sockets created in the pod, counted in the kernel.")
	for _, n := range names {
		p.sample("conduit_sockets_created_total", byPod[n].Created, "pod", n)
	}
	p.family("conduit_sockets_steered_total", "counter", "Connections handed to the proxy, counted in the kernel.")
	for _, n := range names {
		p.sample("conduit_sockets_steered_total", byPod[n].Steered, "pod", n)
	}
	p.family("conduit_sockets_bypassed_total", "counter", "Connections that did not pass the proxy, by reason, counted in the kernel.")
	for _, n := range names {
		var reasons []string
		for r := range byPod[n].Bypassed {
			reasons = append(reasons, r)
		}
		slices.Sort(reasons)
		for _, r := range reasons {
			p.sample("conduit_sockets_bypassed_total", byPod[n].Bypassed[r], "pod", n, "reason", r)
		}
	}
}

// families are the metric families that text declares.
func families(text string) map[string]bool {
	out := map[string]bool{}
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) >= 3 && f[0] == "#" && f[1] == "TYPE" {
			out[f[2]] = true
		}
	}
	return out
}

// without is text less the families that were declared already: a page that declares one twice is refused by scrapers.
func without(text string, declared map[string]bool) string {
	var out strings.Builder
	skip := false
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) >= 3 && f[0] == "#" && (f[1] == "TYPE" || f[1] == "HELP") {
			skip = declared[f[2]]
		}
		if !skip {
			out.WriteString(line)
		}
	}
	return out.String()
}

func (p *page) certificates(c identity.Summary) {
	p.family("conduit_certificates", "gauge", "Identities of this node's pods, with and without a valid certificate.")
	p.sample("conduit_certificates", uint64(c.Held), "state", "valid")
	p.sample("conduit_certificates", uint64(c.Missing), "state", "missing")
	var expiry uint64
	if !c.Expiry.IsZero() {
		expiry = uint64(max(c.Expiry.Unix(), 0))
	}
	p.gauge("conduit_certificate_expiry_seconds", "When the first certificate expires, seconds since 1970; 0 without any.", expiry)
	p.family("conduit_certificate_failures_total", "counter", "Attempts that brought no certificate.")
	p.sample("conduit_certificate_failures_total", c.Failures)
}
