// Package demo runs `conduit demo`: two nodes with an agent and a proxy each, pods wired by the CNI plugin, a small
// application that calls itself in HTTP/1.1, HTTP/2, gRPC and raw TCP, and a live view of what the mesh makes of it.
package demo

import (
	"fmt"
	"net"
	"strconv"

	"conduit.io/conduit/cli/demoapp"
	"conduit.io/conduit/cli/lab"
)

// namespace is the Kubernetes namespace of the application.
const namespace = "demo"

// appPort is where every server of the application listens in its pod.
const appPort = 8080

var nodeNames = [2]string{"node-a", "node-b"}

// service is a Service of the application.
type service struct {
	role string
	port int32
	name string // of the port; empty declares no protocol, and the mesh finds out
}

var services = []service{
	{demoapp.Web, 80, ""}, {demoapp.API, 80, ""}, {demoapp.Votes, 9000, "grpc"}, {demoapp.Catalog, 80, "h2c"}, {demoapp.Cache, 6380, ""},
}

// calls says who calls whom.
var calls = map[string][]string{
	demoapp.Loadgen: {demoapp.Web},
	demoapp.Web:     {demoapp.API, demoapp.Cache},
	demoapp.API:     {demoapp.Votes, demoapp.Catalog},
}

// placement puts a pod on a node.
type placement struct {
	role string
	n    int // its ordinal in the role
	node int // index into nodeNames
}

// placements are in an order in which every pod's servers are there before it is. What has pods on both nodes is
// called locally and across; catalog and cache have one pod, so that half of their clients are on the other node.
var placements = []placement{
	{demoapp.Votes, 0, 0}, {demoapp.Votes, 1, 1}, {demoapp.Catalog, 0, 1}, {demoapp.Cache, 0, 0},
	{demoapp.API, 0, 0}, {demoapp.API, 1, 1}, {demoapp.Web, 0, 0}, {demoapp.Web, 1, 1}, {demoapp.Loadgen, 0, 0},
}

func (p placement) name() string { return fmt.Sprintf("%s-%d", p.role, p.n) }

// options describe the pod as a StatefulSet's: one identity and one name in the figures per role.
func (p placement) options() lab.PodOptions {
	return lab.PodOptions{
		Labels:         map[string]string{"app": p.role},
		ServiceAccount: p.role,
		Owner:          "StatefulSet/" + p.role,
	}
}

// address is where clients of a role dial: its Service.
func address(role string) string {
	for i, s := range services {
		if s.role == role {
			return net.JoinHostPort(lab.ServiceIPs(i + 1)[0].String(), strconv.Itoa(int(s.port)))
		}
	}
	return ""
}

// writeObjects gives the agents the namespace and the services. STRICT: while a proxy is down, its pods' connections
// are refused rather than sent in the clear.
func writeObjects(l *lab.Lab) error {
	err := l.WriteNamespace(namespace, map[string]string{"conduit.io/mesh": "enabled"},
		map[string]string{"conduit.io/mtls-mode": "STRICT"})
	if err != nil {
		return err
	}
	for i, s := range services {
		err := l.WriteService(lab.Service{Namespace: namespace, Name: s.role, Selector: map[string]string{"app": s.role},
			ClusterIPs: lab.ServiceIPs(i + 1), Ports: []lab.ServicePort{{Name: s.name, Port: s.port, TargetPort: strconv.Itoa(appPort)}}})
		if err != nil {
			return err
		}
	}
	return nil
}
