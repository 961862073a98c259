package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"conduit.io/conduit/tests/cluster/kubetest"
	"conduit.io/conduit/tests/load/drive"
)

// Ports of the Service that traffic goes to: one of which the protocol is detected, and one that is declared to be opaque.
const (
	portDetected = 80
	portOpaque   = 81
)

// reports is where clients write how they fare, on their node.
const reports = "/var/lib/e2e"

// kinds are the clients of a node, each with its flags of `load run` and the port of the Service: connections that last and others
// that are made anew all the time.
var kinds = []struct {
	name  string
	port  int
	flags string
}{
	{"http1", portDetected, "--protocol http1 --connections 4"},
	{"http1-new", portDetected, "--protocol http1 --connections 4 --churn 4"},
	{"h2", portDetected, "--protocol h2c --connections 2 --body 3000 --path /upload"},
	{"grpc", portDetected, "--protocol grpc --connections 2 --churn 0.5"},
	{"tcp-new", portOpaque, "--protocol http1 --connections 4 --churn 4"},
}

// rate is of each client, in requests per second.
const rate = 8

// servers is a Deployment that behaves well, behind the Service "web": ready when it answers the kubelet, STRICT or not, and when it is to
// end it goes on until everybody has heard of that, and then sends its clients elsewhere.
func servers(replicas int) string {
	probe := object{"httpGet": object{"port": kubetest.LoadPort, "path": "/"}, "periodSeconds": 3, "timeoutSeconds": 5}
	labels := object{"app": "web"}
	pod := object{
		"terminationGracePeriodSeconds": 20,
		"containers": []object{{"name": "web", "image": kubetest.LoadImage, "imagePullPolicy": "Never",
			"args":           []string{"backend", "--address", fmt.Sprintf("0.0.0.0:%d,0.0.0.0:%d", kubetest.LoadPort, kubetest.LoadPort+1), "--grace", "2s"},
			"lifecycle":      object{"preStop": object{"sleep": object{"seconds": 3}}},
			"readinessProbe": probe}},
	}
	return list(
		object{"apiVersion": "apps/v1", "kind": "Deployment", "metadata": object{"name": "web"}, "spec": object{"replicas": replicas,
			"selector": object{"matchLabels": labels}, "template": object{"metadata": object{"labels": labels}, "spec": pod}}},
		object{"apiVersion": "v1", "kind": "Service", "metadata": object{"name": "web"}, "spec": object{"selector": labels, "ports": []object{
			{"name": "web", "port": portDetected, "targetPort": kubetest.LoadPort},
			{"name": "tcp-web", "port": portOpaque, "targetPort": kubetest.LoadPort + 1, "appProtocol": "tcp"}}}})
}

func list(items ...object) string {
	data, err := json.Marshal(object{"apiVersion": "v1", "kind": "List", "items": items})
	if err != nil {
		panic(err) // nothing in it cannot be marshalled
	}
	return string(data)
}

// traffic is load on the Service "web" of a namespace, by a pod on each node.
type traffic struct {
	t    *testing.T
	c    *kubetest.Cluster
	what string
}

// startTraffic starts the load, and returns when all clients have had answers.
func startTraffic(t *testing.T, c *kubetest.Cluster, what string) *traffic {
	t.Helper()
	tr := &traffic{t: t, c: c, what: what}
	ip := c.Kubectl("get", "service", "web", "-o", "jsonpath={.spec.clusterIP}")
	for node := 1; node <= c.Nodes(); node++ {
		var containers []object
		for _, k := range kinds {
			args := append([]string{"run", "--target", fmt.Sprintf("%s:%d", ip, k.port), "--mode", "open", "--rate", fmt.Sprint(rate), "--duration", "1h",
				"--report", "/reports/" + k.name}, strings.Fields(k.flags)...)
			containers = append(containers, object{"name": k.name, "image": kubetest.LoadImage, "imagePullPolicy": "Never", "args": args,
				"volumeMounts": []object{{"name": "reports", "mountPath": "/reports"}}})
		}
		pod, err := json.Marshal(object{"apiVersion": "v1", "kind": "Pod", "metadata": object{"name": tr.pod(node)}, "spec": object{
			"nodeName": fmt.Sprintf("node%d", node), "restartPolicy": "Never", "terminationGracePeriodSeconds": 20, "containers": containers,
			"volumes": []object{{"name": "reports", "hostPath": object{"path": tr.dir(), "type": "DirectoryOrCreate"}}}}})
		if err != nil {
			t.Fatal(err)
		}
		c.Apply(string(pod))
	}
	tr.goOn("begins")
	return tr
}

func (tr *traffic) pod(node int) string { return fmt.Sprintf("client%d", node) }
func (tr *traffic) dir() string         { return filepath.Join(reports, tr.c.Namespace) }

// report is what a client says of itself.
type report struct {
	drive.Result
	Ended bool
}

func (tr *traffic) report(node int, kind string) (r report, err error) {
	data, err := os.ReadFile(tr.c.Node(node).Path(filepath.Join(tr.dir(), kind)))
	if err == nil {
		err = json.Unmarshal(data, &r)
	}
	return r, err
}

// each visits all clients.
func (tr *traffic) each(visit func(name string, r report, err error)) {
	for node := 1; node <= tr.c.Nodes(); node++ {
		for _, k := range kinds {
			r, err := tr.report(node, k.name)
			visit(fmt.Sprintf("%s, %s on node %d", tr.what, k.name, node), r, err)
		}
	}
}

// goOn waits until every client has had answers to what it asks from now on.
func (tr *traffic) goOn(when string) {
	tr.t.Helper()
	const more = 2 * rate
	before := map[string]uint64{}
	tr.each(func(name string, r report, _ error) { before[name] = r.Completed })
	tr.c.Eventually(tr.what+" goes on: "+when, func() error {
		var errs []error
		tr.each(func(name string, r report, err error) {
			if err == nil && r.Completed < before[name]+more {
				err = fmt.Errorf("%s: %d completed, %d failed", name, r.Completed-before[name], r.Failed)
			}
			errs = append(errs, err)
		})
		return errors.Join(errs...)
	})
}

// failures are what has failed until now, and when.
func (tr *traffic) failures() (n int, trouble []string) {
	tr.each(func(name string, r report, err error) {
		if err != nil {
			n++
			trouble = append(trouble, fmt.Sprintf("%s: %v", name, err))
		}
		n += int(r.Failed + r.DialErrors)
		for _, what := range r.Trouble {
			trouble = append(trouble, what+" ("+name+")")
		}
	})
	slices.Sort(trouble)
	return n, trouble
}

// stop ends the load, and returns how many requests there were, and how many failed.
func (tr *traffic) stop() (sent, failed int, trouble []string) {
	tr.t.Helper()
	for node := 1; node <= tr.c.Nodes(); node++ {
		tr.c.Kubectl("delete", "pod", tr.pod(node), "--wait", "--timeout=90s")
	}
	failed, trouble = tr.failures()
	tr.each(func(name string, r report, err error) {
		if err == nil && !r.Ended {
			tr.t.Errorf("%s was killed", name)
		}
		sent += int(r.Sent)
	})
	return sent, failed, trouble
}
