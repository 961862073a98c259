package discovery

import (
	"fmt"
	"testing"
)

// What a Service says of who may be reached, and for how long clients stay.
func TestServicePolicies(t *testing.T) {
	head := `
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web}}
spec: {nodeName: n1}
status: {podIP: 10.1.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: web-2, namespace: shop, labels: {app: web}}
spec: {nodeName: n2}
status: {podIP: 10.1.0.2}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
status: {loadBalancer: {ingress: [{ip: 198.51.100.2}, {ip: 198.51.100.3, ipMode: Proxy}, {hostname: example.com}]}}
spec:
  clusterIP: 10.96.0.7
  externalIPs: [198.51.100.1, 10.96.0.7]
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
`
	for _, tc := range []struct{ spec, want string }{
		{"", "web [10.96.0.7 198.51.100.1 198.51.100.2] 2 endpoints, affinity 0\n"},
		{"  internalTrafficPolicy: Cluster\n  sessionAffinity: None\n", "web [10.96.0.7 198.51.100.1 198.51.100.2] 2 endpoints, affinity 0\n"},
		{"  internalTrafficPolicy: Local\n", "web [10.96.0.7] 1 endpoints, affinity 0\nweb [198.51.100.1 198.51.100.2] 2 endpoints, affinity 0\n"},
		{"  sessionAffinity: ClientIP\n", "web [10.96.0.7 198.51.100.1 198.51.100.2] 2 endpoints, affinity 10800\n"},
		{"  sessionAffinity: ClientIP\n  sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}\n", "web [10.96.0.7 198.51.100.1 198.51.100.2] 2 endpoints, affinity 60\n"},
		{"  type: LoadBalancer\n  loadBalancerSourceRanges: [10.1.0.0/16]\n",
			"web [10.96.0.7 198.51.100.1] 2 endpoints, affinity 0\nweb [198.51.100.2] 2 endpoints, affinity 0, for [10.1.0.0/16]\n"},
	} {
		got := ""
		for _, s := range Build(load(t, head+tc.spec), Options{Node: "n2"}).Services {
			if s.Name == "web" {
				got += fmt.Sprintf("%s %v %d endpoints, affinity %d", s.Name, s.Addrs, len(s.Ports[0].Endpoints), s.Affinity)
				if len(s.Sources) > 0 {
					got += fmt.Sprint(", for ", s.Sources)
				}
				got += "\n"
			}
		}
		if got != tc.want {
			t.Errorf("%q:\n%swant\n%s", tc.spec, got, tc.want)
		}
	}
}
