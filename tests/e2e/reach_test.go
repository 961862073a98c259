package e2e

import (
	"fmt"
	"testing"

	"conduit.io/conduit/tests/cluster/kubetest"
)

// reach has a pod of the mesh talk to servers of its own node and of the other one, by their addresses and through Services, in every
// protocol; and make many short connections at once.
func reach(t *testing.T, nodes *byHand) {
	c := nodes.Cluster
	var manifests string
	for name, node := range map[string]int{"near": 1, "far": 2} {
		labels := map[string]string{"reach": name}
		manifests += kubetest.LoadPod(name, node, labels) + list(object{"apiVersion": "v1", "kind": "Service", "metadata": object{"name": name},
			"spec": object{"selector": labels, "ports": []object{
				{"name": "detect", "port": portDetected, "targetPort": kubetest.LoadPort},
				{"name": "tcp", "port": portOpaque, "targetPort": kubetest.LoadPort, "appProtocol": "tcp"}}}}) + "\n---\n"
	}
	c.Apply(manifests)
	c.WaitReady("near", "far")
	c.Kubectl("wait", "--for=condition=conduit.io/Enrolled", "pod/near", "pod/far", "--timeout=60s")
	service := func(name string, port int) string {
		return fmt.Sprintf("%s:%d", c.Kubectl("get", "service", name, "-o", "jsonpath={.spec.clusterIP}"), port)
	}
	before := nodes.metric(2, "response_total", `direction="inbound"`, `tls="mtls"`)
	const each = 100
	protocols := []string{"http1", "h2c", "grpc"}
	for _, name := range []string{"near", "far"} {
		for how, target := range map[string]string{"its address": fmt.Sprintf("%s:%d", c.PodIP(name), kubetest.LoadPort),
			"its Service": service(name, portDetected), "its Service, opaque": service(name, portOpaque)} {
			c.Eventually("the "+name+" server is there by "+how, func() error { return c.Load("client", target, "--requests", "1", "--timeout", "2s") })
			for _, protocol := range protocols {
				if err := c.Load("client", target, "--protocol", protocol, "--requests", fmt.Sprint(each), "--connections", "4", "--churn", "50"); err != nil {
					t.Errorf("%s to the %s server by %s: %v", protocol, name, how, err)
				}
			}
		}
	}
	// What is opaque has no responses; by its address the port is what a Service declares of it.
	want := float64(len(protocols) * each)
	if n := nodes.metric(2, "response_total", `direction="inbound"`, `tls="mtls"`) - before; n < want {
		t.Errorf("the far server's proxy has seen %v responses with mTLS, want %v and more", n, want)
	}
	// 24,000 requests over 200 connections at a time, of which 3000 a second make place for new ones.
	if err := c.Load("client", service("far", portDetected), "--requests", "24000", "--connections", "200", "--churn", "3000", "--timeout", "60s"); err != nil {
		t.Errorf("short connections: %v", err)
	}
}
