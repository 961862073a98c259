package e2e

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"text/template"

	"conduit.io/conduit/tests/cluster/kubetest"
)

const whoImage = "localhost/who:test"

// Every kind of Service, in front of b1 and b2 on node 1, and b3 on node 2. Zones of the nodes are their names.
var serviceKinds = template.Must(template.New("").Parse(`
{{- define "spec"}}selector: {app: back}, ports: [{name: tcp-main, port: 80, targetPort: main}, {name: other, port: 81, targetPort: 7001, appProtocol: kubernetes.io/wss}]{{end}}
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Service, metadata: {name: cluster}, spec: { {{template "spec"}} }}
- {apiVersion: v1, kind: Service, metadata: {name: headless}, spec: {clusterIP: None, {{template "spec"}} }}
- {apiVersion: v1, kind: Service, metadata: {name: nodeport}, spec: {type: NodePort, {{template "spec"}} }}
- {apiVersion: v1, kind: Service, metadata: {name: outside-local}, spec: {type: NodePort, externalTrafficPolicy: Local, internalTrafficPolicy: Local, {{template "spec"}} }}
- {apiVersion: v1, kind: Service, metadata: {name: local}, spec: {internalTrafficPolicy: Local, {{template "spec"}} }}
- {apiVersion: v1, kind: Service, metadata: {name: local-none}, spec: {internalTrafficPolicy: Local, selector: {only: b3}, ports: [{port: 80, targetPort: 7000}]}}
- {apiVersion: v1, kind: Service, metadata: {name: zone}, spec: {trafficDistribution: PreferSameZone, {{template "spec"}} }}
- {apiVersion: v1, kind: Service, metadata: {name: external}, spec: {externalIPs: [198.51.100.10, {{.Node2}}], {{template "spec"}} }}
- {apiVersion: v1, kind: Service, metadata: {name: beside}, spec: {externalIPs: [198.51.100.10], selector: {only: b3}, ports: [{port: 82, targetPort: 7000}]}}
- {apiVersion: v1, kind: Service, metadata: {name: balanced}, spec: {type: LoadBalancer, {{template "spec"}} }}
- {apiVersion: v1, kind: Service, metadata: {name: balanced-others}, spec: {type: LoadBalancer, loadBalancerSourceRanges: [203.0.113.0/24], {{template "spec"}} }}
- {apiVersion: v1, kind: Service, metadata: {name: alias}, spec: {type: ExternalName, externalName: cluster.{{.Namespace}}.svc.cluster.local}}
- {apiVersion: v1, kind: Service, metadata: {name: early}, spec: {publishNotReadyAddresses: true, selector: {only: unready}, ports: [{port: 80, targetPort: 7000}]}}
- {apiVersion: v1, kind: Service, metadata: {name: late}, spec: {selector: {only: unready}, ports: [{port: 80, targetPort: 7000}]}}
- {apiVersion: v1, kind: Service, metadata: {name: sticky}, spec: {sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 600}}, {{template "spec"}} }}
- {apiVersion: v1, kind: Service, metadata: {name: dual}, spec: {type: NodePort, ipFamilyPolicy: PreferDualStack, {{template "spec"}} }}
- {apiVersion: v1, kind: Service, metadata: {name: manual}, spec: {ports: [{name: x, port: 80}]}}
- apiVersion: discovery.k8s.io/v1
  kind: EndpointSlice
  metadata: {name: manual-1, labels: {kubernetes.io/service-name: manual}}
  addressType: IPv4
  ports: [{name: x, port: 7000, protocol: TCP}]
  endpoints: [{addresses: ["{{.B2}}"]}, {addresses: ["{{.B3}}"]}]
`))

// where is a target, and who answers there.
type where struct {
	target string
	want   string // those that do; some: of several any one, and always the same
	some   bool
	dst    string // what the proxy counts it as; empty: a pod, or nobody
}

// whoPod is a pod of the program who.
func whoPod(name string, node int, labels, more string) string {
	ready := `exec: {command: [/who, help]}`
	if name == "unready" {
		ready = `exec: {command: [/who]}`
	}
	return fmt.Sprintf(`{apiVersion: v1, kind: Pod, metadata: {name: %s, labels: {%s}}, spec: {nodeName: node%d, terminationGracePeriodSeconds: 0, %s containers: [
  {name: who, image: "%s", imagePullPolicy: Never, args: [serve, ":7000", ":7001"], readinessProbe: {%s, periodSeconds: 1},
   ports: [{name: main, containerPort: 7000 %s}]}]}}
---
`, name, labels, node, more, whoImage, ready, map[string]string{"b3": ", hostPort: 7070"}[name])
}

// services compares where connections of a pod arrive that is in the mesh, and of one beside it that is not: kube-proxy is the yardstick.
func services(t *testing.T, cluster *kubetest.Cluster) {
	c := kubetest.View(t, cluster.Cluster)
	c.ImportProgram(whoImage, "conduit.io/conduit/tests/e2e/who")
	for i := 1; i <= 2; i++ {
		c.Kubectl("label", "node", c.Node(i).Name(), "topology.kubernetes.io/zone="+c.Node(i).Name(), "--overwrite")
	}
	c.Kubectl("label", "namespace", c.Namespace, "conduit.io/mesh=enabled")
	c.Apply(whoPod("meshed", 1, "a: client", "") + whoPod("plain", 1, "conduit.io/mesh: disabled", "") +
		whoPod("b1", 1, "app: back", "hostname: b1, subdomain: headless,") + whoPod("b2", 1, "app: back", "") + whoPod("b3", 2, "app: back, only: b3", "") +
		whoPod("unready", 2, "only: unready", ""))
	c.WaitReady("meshed", "plain", "b1", "b2", "b3")
	c.Kubectl("wait", "--for=condition=conduit.io/Enrolled", "pod", "meshed", "b1", "b2", "b3", "unready", "--timeout=60s")
	nodeIP := func(i int) string {
		first, _, _ := strings.Cut(c.Kubectl("get", "node", c.Node(i).Name(), "-o", `jsonpath={.status.addresses[?(@.type=="InternalIP")].address}`), " ")
		return first
	}
	var manifests bytes.Buffer
	if err := serviceKinds.Execute(&manifests, map[string]string{"Namespace": c.Namespace, "Node2": nodeIP(2), "B2": c.PodIP("b2"), "B3": c.PodIP("b3")}); err != nil {
		t.Fatal(err)
	}
	c.Apply(manifests.String())
	for i, name := range []string{"balanced", "balanced-others"} {
		c.Kubectl("patch", "service", name, "--subresource=status", "--type=merge", "-p", fmt.Sprintf(`{"status":{"loadBalancer":{"ingress":[{"ip":"198.51.100.2%d"}]}}}`, i))
	}
	nodePort := func(service string) string {
		return c.Kubectl("get", "service", service, "-o", "jsonpath={.spec.ports[0].nodePort}")
	}
	const all, near = "b1 b2 b3", "b1 b2"
	kinds := []where{
		{"cluster:80", all, false, "cluster"}, {"cluster:81", all, false, "cluster"}, {"alias:80", all, false, "cluster"},
		{"headless:7000", all, false, ""}, {"b1.headless:7001", "b1", false, ""},
		{nodeIP(1) + ":" + nodePort("nodeport"), all, false, "nodeport"}, {nodeIP(2) + ":" + nodePort("nodeport"), all, false, "nodeport"},
		{nodeIP(1) + ":" + nodePort("outside-local"), all, false, "outside-local"},
		{"outside-local:80", near, false, "outside-local"}, {"local:80", near, false, "local"}, {"local-none:80", "-", false, "local-none"},
		{"zone:80", near, false, "zone"}, {nodeIP(1) + ":7070", "-", false, ""}, {nodeIP(2) + ":7070", "b3", false, "b3"},
		{"198.51.100.10:80", all, false, "external"}, {nodeIP(2) + ":81", all, false, "external"}, {"198.51.100.10:82", "b3", false, "beside"},
		{"198.51.100.20:80", all, false, "balanced"}, {"198.51.100.21:80", "-", false, "balanced-others"}, {"balanced-others:80", all, false, "balanced-others"},
		{"early:80", "unready", false, "early"}, {"late:80", "-", false, "late"}, {"sticky:80", all, true, "sticky"}, {"manual:80", "b2 b3", false, "manual"},
	}
	kinds = append(kinds, sixth(c)...)
	c.Eventually("the Services of a pod that is not in the mesh", func() error { return arrive(c, "plain", kinds) })
	// kube-proxy of the other node would choose among all here, too, but those on the client's own node answer it past the other node,
	// which has rewritten their address: without the mesh these connections fail.
	kinds = append(kinds, where{nodeIP(2) + ":" + nodePort("outside-local"), all, false, "outside-local"})
	c.Eventually("the Services of a pod in the mesh", func() error { return arrive(c, "meshed", kinds) })
	proxy := &byHand{Cluster: c, t: t}
	for _, k := range kinds {
		if k.dst != "" && proxy.metric(1, "tcp_open_total", `direction="outbound"`, fmt.Sprintf(`src="%s/meshed"`, c.Namespace), fmt.Sprintf(`dst="%s/%s"`, c.Namespace, k.dst)) == 0 {
			t.Errorf("connections to %s passed the mesh by", k.target)
		}
	}
	c.Kubectl("delete", "pod", "--all", "--wait", "--timeout=60s")
}

// sixth are the targets of a cluster that has IPv6, too.
func sixth(c *kubetest.Cluster) []where {
	_, address, two := strings.Cut(c.Kubectl("get", "service", "dual", "-o", "jsonpath={.spec.clusterIPs[*]}"), " ")
	if !two {
		return nil
	}
	var node2 string
	for _, a := range strings.Fields(c.Kubectl("get", "node", c.Node(2).Name(), "-o", `jsonpath={.status.addresses[?(@.type=="InternalIP")].address}`)) {
		if strings.Contains(a, ":") {
			node2 = a
		}
	}
	port := c.Kubectl("get", "service", "dual", "-o", "jsonpath={.spec.ports[0].nodePort}")
	const all = "b1 b2 b3"
	return []where{{"dual:80", all, false, "dual"}, {"[" + address + "]:80", all, false, "dual"}, {"[" + node2 + "]:" + port, all, false, "dual"}}
}

// arrive is an error unless all connections of the client arrive where they should.
func arrive(c *kubetest.Cluster, client string, kinds []where) error {
	command := []string{"/who", "ask"}
	for _, k := range kinds {
		command = append(command, k.target)
	}
	out, err := c.Exec(client, command...)
	if err != nil {
		return err
	}
	var wrong []string
	for i, line := range strings.Split(strings.TrimSpace(out), "\n") {
		k := kinds[i]
		_, got, _ := strings.Cut(line, " ")
		if right := got == k.want || k.some && !strings.Contains(got, " ") && strings.Contains(k.want, got); !right {
			wrong = append(wrong, fmt.Sprintf("%s: %s, want %s", k.target, got, k.want))
		}
	}
	if len(wrong) > 0 {
		return fmt.Errorf("%s arrives at\n%s", client, strings.Join(wrong, "\n"))
	}
	return nil
}
