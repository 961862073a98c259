package deploy

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// rights is everything that anybody may do by Conduit's roles. A line more is a decision, and belongs here with the code that
// needs it.
var rights = []string{
	// agent/kube: the pods of the node, what a pod that starts is (Find), and what applies to it
	"ClusterRole conduit-agent: get namespaces",
	"ClusterRole conduit-agent: get pods",
	"ClusterRole conduit-agent: list meshpolicies.conduit.io",
	"ClusterRole conduit-agent: list namespaces",
	"ClusterRole conduit-agent: list pods",
	"ClusterRole conduit-agent: watch meshpolicies.conduit.io",
	"ClusterRole conduit-agent: watch namespaces",
	"ClusterRole conduit-agent: watch pods",
	// control/nodes: Events of pods that are refused or bypassed. control/identity: alarms
	"ClusterRole conduit-controller: create events",
	// control/kube, control/identity: who calls, and whether they may
	"ClusterRole conduit-controller: create subjectaccessreviews.authorization.k8s.io",
	"ClusterRole conduit-controller: create tokenreviews.authentication.k8s.io",
	// control/nodes: the taint
	"ClusterRole conduit-controller: get nodes",
	// control/kube
	"ClusterRole conduit-controller: list endpointslices.discovery.k8s.io",
	"ClusterRole conduit-controller: list meshpolicies.conduit.io",
	"ClusterRole conduit-controller: list namespaces",
	"ClusterRole conduit-controller: list nodes",
	"ClusterRole conduit-controller: list pods", // control/identity too
	"ClusterRole conduit-controller: list services",
	// control/nodes: the taint, and the condition conduit.io/Enrolled
	"ClusterRole conduit-controller: patch nodes",
	"ClusterRole conduit-controller: patch pods/status",
	"ClusterRole conduit-controller: watch endpointslices.discovery.k8s.io",
	"ClusterRole conduit-controller: watch meshpolicies.conduit.io",
	"ClusterRole conduit-controller: watch namespaces",
	"ClusterRole conduit-controller: watch nodes",
	"ClusterRole conduit-controller: watch pods",
	"ClusterRole conduit-controller: watch services",
	// people, when somebody binds it
	"ClusterRole conduit-viewer: get /conduit.discovery.v1.DiscoveryService/*",
	"ClusterRole conduit-viewer: get /conduit.node.v1.NodeService/*",
	"ClusterRole conduit-viewer: get meshpolicies.conduit.io",
	"ClusterRole conduit-viewer: list meshpolicies.conduit.io",
	"ClusterRole conduit-viewer: watch meshpolicies.conduit.io",
	// control/identity: issuer and trust bundle; control/lead: the Lease. No name limits what is created
	"Role conduit-controller: create configmaps",
	"Role conduit-controller: create leases.coordination.k8s.io",
	"Role conduit-controller: create secrets",
	"Role conduit-controller: get configmaps conduit-trust-roots",
	"Role conduit-controller: get leases.coordination.k8s.io conduit-controller",
	"Role conduit-controller: get secrets conduit-issuer",
	"Role conduit-controller: list configmaps conduit-trust-roots",
	"Role conduit-controller: list secrets conduit-issuer",
	"Role conduit-controller: update configmaps conduit-trust-roots",
	"Role conduit-controller: update leases.coordination.k8s.io conduit-controller",
	"Role conduit-controller: update secrets conduit-issuer",
	"Role conduit-controller: watch configmaps conduit-trust-roots",
	"Role conduit-controller: watch secrets conduit-issuer",
}

func TestRBAC(t *testing.T) {
	var got []string
	for _, o := range render(t, "") {
		if o.GetKind() != "ClusterRole" && o.GetKind() != "Role" {
			continue
		}
		var role rbacv1.ClusterRole
		if err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(o.Object, &role, true); err != nil {
			t.Fatalf("%s %s: %v", o.GetKind(), o.GetName(), err)
		}
		for _, rule := range role.Rules {
			for _, right := range flatten(rule) {
				got = append(got, fmt.Sprintf("%s %s: %s", o.GetKind(), o.GetName(), right))
			}
		}
	}
	slices.Sort(got)
	if diff := cmp.Diff(rights, slices.Compact(got)); diff != "" {
		t.Errorf("rights (-want +got):\n%s", diff)
	}
}

func flatten(r rbacv1.PolicyRule) []string {
	var out []string
	for _, verb := range r.Verbs {
		for _, url := range r.NonResourceURLs {
			out = append(out, verb+" "+url)
		}
		for _, group := range r.APIGroups {
			for _, resource := range r.Resources {
				what := verb + " " + strings.TrimSuffix(resource+"."+group, ".")
				if len(r.ResourceNames) == 0 {
					out = append(out, what)
				}
				for _, name := range r.ResourceNames {
					out = append(out, what+" "+name)
				}
			}
		}
	}
	return out
}
