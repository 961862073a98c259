package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"testing"
)

const probedImage = "localhost/probed:test"

// probedPod has a hook and every kind of probe of every handler; a container whose probes fail is started again after 3 s.
func probedPod(node int) string {
	containers := []object{}
	for name, handler := range map[string]object{
		"http": {"httpGet": object{"port": 8080, "path": "/probe"}},
		"tcp":  {"tcpSocket": object{"port": 8081}},
		"grpc": {"grpc": object{"port": 8082}},
	} {
		probe := object{"periodSeconds": 1, "failureThreshold": 3, "timeoutSeconds": 2}
		maps.Copy(probe, handler)
		container := object{"name": name, "image": probedImage, "imagePullPolicy": "Never", "args": []string{name},
			"startupProbe": probe, "livenessProbe": probe, "readinessProbe": probe}
		if name == "http" {
			container["lifecycle"] = object{"preStop": object{"httpGet": object{"port": 8080, "path": "/stopping"}}}
		}
		containers = append(containers, container)
	}
	pod, err := json.Marshal(object{"apiVersion": "v1", "kind": "Pod", "metadata": object{"name": "probed"},
		"spec": object{"terminationGracePeriodSeconds": 1, "nodeName": fmt.Sprintf("node%d", node), "containers": containers}})
	if err != nil {
		panic(err) // nothing in it cannot be marshalled
	}
	return string(pod)
}

// The probes of a STRICT pod are answered by its application, whatever becomes of kubelet and agent, and other processes of
// its node are not.
func probes(t *testing.T, nodes *byHand) {
	const node = 1
	c := nodes.Cluster
	ip := c.PodIP("probed")
	count := func() float64 {
		return nodes.metric(node, "conduit_sockets_bypassed_total", `pod="`+c.Namespace+`/probed"`, `reason="probe"`)
	}
	more := func(when string) {
		t.Helper()
		before := count()
		c.Eventually("probes are counted "+when, func() error {
			if now := count(); now < before+12 { // two rounds
				return fmt.Errorf("%v, and %v before", now, before)
			}
			return nil
		})
	}
	more("at first")
	for _, port := range []string{"8080", "8082"} {
		if out, err := c.Node(node).Run(c.Context(), "curl", "-sS", "--max-time", "5", "http://"+ip+":"+port+"/curl"); err == nil {
			t.Errorf("another process of the node is answered on port %s: %s", port, out)
		}
	}
	if err := c.Node(node).RestartDaemon("kubelet"); err != nil {
		t.Fatal(err)
	}
	more("of a new kubelet")
	log := c.Kubectl("logs", "probed", "-c", "http")
	if !strings.Contains(log, "/probe asked by ") || strings.Contains(log, "/curl") || strings.Contains(log, "asked by "+ip+":") {
		t.Errorf("the application was asked\n%s", log)
	}
	restarts := c.Kubectl("get", "pod", "probed", "-o", "jsonpath={.status.containerStatuses[*].restartCount} {.status.conditions[?(@.type=='Ready')].status}")
	if restarts != "0 0 0 True" {
		t.Errorf("restarts of the containers, and readiness: %s", restarts)
	}
}
