package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"conduit.io/conduit/tests/cluster/kubetest"
)

// viewer reads the controller's API as people and tools do: by JSON over HTTP, with a token of its own. It calls from node 1.
type viewer struct {
	t        *testing.T
	c        *kubetest.Cluster
	token    string
	replicas []string // addresses of the controller's pods, when they were looked at last
	hasty    bool     // an answer is waited for for a second only
}

// viewerRoots is where node 1 has the roots of the controller's certificate.
const viewerRoots = "/var/lib/e2e/roots.pem"

func newViewer(t *testing.T, c *kubetest.Cluster) *viewer {
	t.Helper()
	v := &viewer{t: t, c: c}
	binding := "viewer-" + c.Namespace
	c.Kubectl("create", "serviceaccount", "viewer")
	c.Kubectl("create", "clusterrolebinding", binding, "--clusterrole=conduit-viewer", "--serviceaccount="+c.Namespace+":viewer")
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if _, err := c.Cluster.Kubectl(ctx, nil, "delete", "clusterrolebinding", binding); err != nil {
			t.Error(err)
		}
	})
	v.token = c.Kubectl("create", "token", "viewer", "--audience=conduit", "--duration=3h")
	c.Run(1, "mkdir", "-p", reports)
	v.trust(c.Kubectl("-n", "conduit", "get", "configmap", "conduit-trust-roots", "-o", `jsonpath={.data.ca\.crt}`))
	v.look()
	return v
}

// trust has the controller known by these roots.
func (v *viewer) trust(roots string) {
	v.t.Helper()
	if err := os.WriteFile(v.c.Node(1).Path(viewerRoots), []byte(roots), 0o644); err != nil {
		v.t.Fatal(err)
	}
}

// look finds the replicas of now.
func (v *viewer) look() {
	v.t.Helper()
	v.replicas = strings.Fields(v.c.Kubectl("-n", "conduit", "get", "pods", "-l", "app.kubernetes.io/component=controller",
		"--field-selector", "status.phase=Running", "-o", "jsonpath={.items[*].status.podIP}"))
}

// listed is a node as ListNodes has it.
type listed struct {
	Name, State         string
	Since, LastReportAt time.Time
	Connected           bool
	Agent               struct {
		Ready           bool
		Reason, Message string
		Instance        string
		Proxy           struct {
			Up     bool
			Starts int
		}
	}
	Pods []struct{ Namespace, Name, Enrolment string }
}

// ask has a replica list the nodes.
func (v *viewer) ask(replica string) ([]listed, error) {
	const host = "conduit-controller.conduit.svc"
	patience := "10"
	if v.hasty {
		patience = "1"
	}
	said, err := v.c.Node(1).Run(v.c.Context(), "curl", "-sS", "--max-time", patience, "--fail-with-body", "--cacert", viewerRoots, "--connect-to", host+":8085:"+replica+":8085",
		"-H", "Authorization: Bearer "+v.token, "-H", "Content-Type: application/json", "-d", `{"pods":true}`,
		"https://"+host+":8085/conduit.node.v1.NodeService/ListNodes")
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, said)
	}
	var r struct{ Nodes []listed }
	if err := json.Unmarshal([]byte(said), &r); err != nil {
		return nil, fmt.Errorf("%w: %s", err, said)
	}
	return r.Nodes, nil
}

// everywhere has every replica asked until all say the same as want says they should, which is given what one has answered.
func (v *viewer) everywhere(what string, want func(nodes []listed, err error) error) {
	v.t.Helper()
	v.c.Eventually("ListNodes: "+what, func() error {
		if len(v.replicas) == 0 {
			return errors.New("there is no replica to ask")
		}
		for _, replica := range v.replicas {
			nodes, err := v.ask(replica)
			if err := want(nodes, err); err != nil {
				return fmt.Errorf("the replica at %s: %w", replica, err)
			}
		}
		return nil
	})
}

// all wants an answer, of all nodes, in which each is in the state; and what goes with it.
func (v *viewer) all(state string) func([]listed, error) error {
	return func(nodes []listed, err error) error {
		if err != nil {
			return err
		}
		if len(nodes) != v.c.Nodes() {
			return fmt.Errorf("%d nodes are listed: %+v", len(nodes), nodes)
		}
		for i := range nodes {
			if err := nodes[i].is(state); err != nil {
				return err
			}
		}
		return nil
	}
}

// is checks that n is in the state, and says nothing else besides.
func (n *listed) is(state string) error {
	quiet := time.Since(n.LastReportAt)
	var lie string
	switch {
	case n.State != state:
		lie = "it should be " + state
	case n.Since.IsZero() || n.Since.After(time.Now().Add(time.Second)):
		lie = "since when?"
	case state == ready && (!n.Connected || !n.Agent.Ready || !n.Agent.Proxy.Up || n.Agent.Proxy.Starts == 0 || quiet > 20*time.Second):
		lie = "it is not ready"
	case state == silent && quiet < 15*time.Second:
		lie = "it has reported"
	case state == notReady && (n.Agent.Ready || n.Agent.Reason == "" || n.Agent.Message == ""):
		lie = "why is it not ready?"
	case state == away && n.Connected:
		lie = "it is connected"
	}
	if lie != "" {
		return fmt.Errorf("%s: %s: %+v", n.Name, lie, *n)
	}
	return nil
}

// States of nodes.
const (
	ready    = "STATE_READY"
	notReady = "STATE_NOT_READY"
	silent   = "STATE_SILENT"
	away     = "STATE_AWAY"
)

// objects checks what the objects of Kubernetes say while the kernel steers all pods: those of the mesh are enrolled, of no one has
// an Event said otherwise, and no node is tainted.
func (w *world) objects() error {
	var list struct {
		Items []struct {
			Metadata struct{ Name, DeletionTimestamp string }
			Status   struct {
				Phase      string
				Conditions []condition
			}
		}
	}
	said, err := w.meshed.Try("get", "pods", "-o", "json")
	if err == nil {
		err = json.Unmarshal([]byte(said), &list)
	}
	if err != nil {
		return err
	}
	for _, p := range list.Items {
		i := slices.IndexFunc(p.Status.Conditions, func(c condition) bool { return c.Type == "conduit.io/Enrolled" })
		if p.Status.Phase == "Running" && p.Metadata.DeletionTimestamp == "" && (i < 0 || p.Status.Conditions[i].Status != "True") {
			return fmt.Errorf("pod %s is steered, and its conditions are %+v", p.Metadata.Name, p.Status.Conditions)
		}
	}
	for _, ask := range [][]string{
		{"get", "events", "--field-selector", "source=conduit-controller,type=Warning", "-o", "jsonpath={.items[*].message}"},
		{"get", "nodes", "-o", `jsonpath={.items[*].spec.taints[?(@.key=="conduit.io/agent-not-ready")].key}`},
	} {
		if said, err := w.meshed.Try(ask...); err != nil || said != "" {
			return fmt.Errorf("kubectl %v: %q, %w", ask, said, err)
		}
	}
	return nil
}

// condition is one of a Kubernetes object.
type condition struct{ Type, Status, Reason, Message string }

// wired are the conditions conduit.io/Wired of the agents' pods, as NODE STATUS REASON.
func (w *world) wired() []string {
	return strings.Fields(strings.ReplaceAll(w.meshed.Kubectl("-n", "conduit", "get", "pods", "-l", "app.kubernetes.io/component=agent", "-o",
		`jsonpath={range .items[*]}{.spec.nodeName}/{.status.conditions[?(@.type=="conduit.io/Wired")].status}/{.status.conditions[?(@.type=="conduit.io/Wired")].reason} {end}`), "\n", " "))
}

// well waits until everything says that all is well.
func (w *world) well() {
	w.green()
	w.view.look()
	w.view.everywhere("all nodes are ready", w.view.all(ready))
	w.meshed.Eventually("all objects say that all is well", func() error {
		all := w.wired()
		for node := 1; node <= w.meshed.Nodes(); node++ {
			if !slices.Contains(all, fmt.Sprintf("node%d/True/Wired", node)) {
				return fmt.Errorf("agents are %v", all)
			}
		}
		return w.objects()
	})
}
