// Package kube says what Conduit reads and writes in the objects of Kubernetes itself, so that the control plane and the
// agents cannot disagree about it. It does no I/O.
package kube

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strings"

	"conduit.io/conduit/api/v1alpha1"
	"conduit.io/conduit/mesh"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The label and the annotations of Namespaces and Pods that Conduit reads.
const (
	LabelMesh      = "conduit.io/mesh"       // enabled or disabled; a Pod's wins over its Namespace's
	AnnotationMode = "conduit.io/mtls-mode"  // PERMISSIVE or STRICT
	AnnotationDown = "conduit.io/agent-down" // Closed or Open

	Enabled  = "enabled"
	Disabled = "disabled"
)

// What Conduit writes.
const (
	// LabelInstallation is the mark of every object of an installation. An uninstall removes what bears it, and nothing else.
	LabelInstallation = "conduit.io/installation"
	Installation      = "conduit" // its value

	ConditionEnrolled = "conduit.io/Enrolled"        // of Pods: what the kernel was seen to do with its sockets
	ConditionWired    = "conduit.io/Wired"           // of agents' Pods: what the agent says of its node
	ReasonWired       = "Wired"                      // of that, where it is true and nothing is wrong
	TaintNotReady     = "conduit.io/agent-not-ready" // of Nodes, NoSchedule: no agent has wired the node yet
)

// Said is what the label and the annotations of one object say; empty where they say nothing.
type Said struct {
	Mesh, Mode, Down string
}

// Says reads o, a Pod or a Namespace. Words that are none of those allowed open nothing: of the modes the closed one is in force, and
// whether o is in the mesh is not said. Slips tells of them.
func Says(o metav1.Object) Said {
	labels, notes := o.GetLabels(), o.GetAnnotations()
	return Said{Mesh: known(labels[LabelMesh], "", Enabled, Disabled), Mode: mode(notes[AnnotationMode]), Down: down(notes[AnnotationDown])}
}

func mode(word string) string {
	return known(word, string(mesh.Strict), "", string(mesh.Permissive))
}

func down(word string) string {
	return known(word, string(mesh.DownClosed), "", string(mesh.DownOpen))
}

// known is word if it is one of those, and else another one.
func known(word, otherwise string, words ...string) string {
	if slices.Contains(words, word) {
		return word
	}
	return otherwise
}

// Settings is what objects say of a pod, with all defaults applied.
type Settings struct {
	Meshed bool // wants enrolment
	Mode   mesh.Mode
	Down   mesh.Down
}

// Settle is what a pod, its namespace, and the MeshPolicy say together, in this order of precedence. A policy that is not
// known is nil. A pod on the host's network is never meshed, whatever its labels say: the caller adds that.
func Settle(pod, namespace Said, policy *v1alpha1.MeshPolicySpec) Settings {
	var defaults v1alpha1.MeshPolicySpec
	if policy != nil {
		defaults = *policy
	}
	s := Settings{
		Meshed: first(pod.Mesh, namespace.Mesh) == Enabled && defaults.Enrolment != v1alpha1.EnrolmentNone,
		Mode:   mesh.Mode(first(pod.Mode, namespace.Mode, mode(defaults.MTLS.Mode), string(mesh.Permissive))),
		Down:   mesh.Down(first(pod.Down, namespace.Down, down(defaults.AgentDown))),
	}
	if s.Down == "" {
		s.Down = mesh.DownOpen
		if s.Mode == mesh.Strict {
			s.Down = mesh.DownClosed
		}
	}
	return s
}

func first(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

// Owner is kind/name of what keeps the pod: a ReplicaSet that a Deployment made counts as the Deployment. Empty: nobody.
func Owner(pod metav1.Object) string {
	for _, ref := range pod.GetOwnerReferences() {
		if ref.Controller == nil || !*ref.Controller {
			continue
		}
		if hash := pod.GetLabels()["pod-template-hash"]; ref.Kind == "ReplicaSet" && hash != "" {
			if name, ok := strings.CutSuffix(ref.Name, "-"+hash); ok {
				return "deployment/" + name
			}
		}
		return strings.ToLower(ref.Kind) + "/" + ref.Name
	}
	return ""
}

// Untaint is the merge patch that takes TaintNotReady off n; nil: it has none. The list of taints is replaced as a whole: the version
// sees to it that nobody else's is lost, so that the API server answers a conflict when n has changed.
func Untaint(n *corev1.Node) []byte {
	rest := slices.DeleteFunc(slices.Clone(n.Spec.Taints), func(t corev1.Taint) bool { return t.Key == TaintNotReady })
	if len(rest) == len(n.Spec.Taints) {
		return nil
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"resourceVersion": n.ResourceVersion}, "spec": map[string]any{"taints": rest}})
	if err != nil {
		panic("taints that were decoded cannot be encoded: " + err.Error())
	}
	return patch
}

// Ended reports whether p has run to its end: its addresses are no longer its own.
func Ended(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

// AffinitySeconds is for how long the Service keeps a client with its endpoint; 0: it does not.
func AffinitySeconds(s *corev1.ServiceSpec) uint32 {
	if s.SessionAffinity != corev1.ServiceAffinityClientIP {
		return 0
	}
	if c := s.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
		return uint32(*c.ClientIP.TimeoutSeconds)
	}
	return uint32(corev1.DefaultClientIPServiceAffinitySeconds)
}

// Local reports whether the Service's cluster IPs lead to endpoints on the client's own node alone.
func Local(s *corev1.ServiceSpec) bool {
	return s.InternalTrafficPolicy != nil && *s.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal
}

// ClusterIPs are the Service's own addresses, in their only spelling; none if it is headless.
func ClusterIPs(s *corev1.ServiceSpec) []netip.Addr {
	return addresses(append([]string{s.ClusterIP}, s.ClusterIPs...))
}

// OutsideIPs are the Service's external IPs, and those of its load balancer whose packets it takes itself.
func OutsideIPs(s *corev1.Service) []netip.Addr {
	all := addresses(s.Spec.ExternalIPs)
	for _, a := range BalancerIPs(s) {
		if !slices.Contains(all, a) {
			all = append(all, a)
		}
	}
	return all
}

// BalancerIPs are those of the Service's load balancer whose packets the Service takes itself.
func BalancerIPs(s *corev1.Service) []netip.Addr {
	var all []string
	for _, in := range s.Status.LoadBalancer.Ingress {
		if in.IPMode == nil || *in.IPMode == corev1.LoadBalancerIPModeVIP {
			all = append(all, in.IP)
		}
	}
	return addresses(all)
}

// SourceRanges are the prefixes of clients that BalancerIPs are for; empty: all. They count for Services of the type
// LoadBalancer alone. What is no prefix is left out, as kube-proxy does.
func SourceRanges(s *corev1.Service) []netip.Prefix {
	if s.Spec.Type != corev1.ServiceTypeLoadBalancer {
		return nil
	}
	var out []netip.Prefix
	for _, r := range s.Spec.LoadBalancerSourceRanges {
		if p, err := netip.ParsePrefix(strings.TrimSpace(r)); err == nil {
			out = append(out, p.Masked())
		}
	}
	return out
}

func addresses(all []string) []netip.Addr {
	out := []netip.Addr{}
	for _, s := range all {
		if a, err := netip.ParseAddr(s); err == nil && !slices.Contains(out, a.Unmap()) {
			out = append(out, a.Unmap())
		}
	}
	return out
}

// protocols maps what a Service port may declare: appProtocol values (Kubernetes standard names without their prefix,
// and IANA names), and name prefixes up to the first dash.
var protocols = map[string]mesh.Protocol{
	"http": mesh.HTTP1, "http1": mesh.HTTP1, "ws": mesh.HTTP1,
	"http2": mesh.HTTP2, "h2c": mesh.HTTP2, "grpc": mesh.HTTP2,
	"tcp": mesh.Opaque, "tls": mesh.Opaque, "https": mesh.Opaque, "wss": mesh.Opaque,
}

// Protocol is what a Service port declares: its appProtocol, else the prefix of its name, else mesh.Detect.
func Protocol(appProtocol *string, name string) mesh.Protocol {
	if appProtocol != nil && *appProtocol != "" {
		if p, ok := protocols[strings.TrimPrefix(strings.ToLower(*appProtocol), "kubernetes.io/")]; ok {
			return p
		}
		return mesh.Detect
	}
	prefix, _, _ := strings.Cut(name, "-")
	if p, ok := protocols[prefix]; ok {
		return p
	}
	return mesh.Detect
}
