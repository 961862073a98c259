package netns_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	current "github.com/containernetworking/cni/pkg/types/100"

	"conduit.io/conduit/cli/lab"
	"conduit.io/conduit/tests/testnet"
)

const toolPod = `apiVersion: v1
kind: Pod
metadata: {name: tool, namespace: shop}
spec: {nodeName: one, serviceAccountName: default, containers: [{name: app, image: none}]}
`

// TestCNITool drives the chain with the CNI project's own tool, which shares no code with the lab's runtime.
func TestCNITool(t *testing.T) {
	n := testnet.New(t, testnet.Config{Mesh: true})
	n.EnrolledNamespace("shop")
	node := n.MeshNode("one", lab.NodeConfig{})
	if err := n.WriteManifest("pod.yaml", []byte(toolPod)); err != nil {
		t.Fatal(err)
	}
	ns, err := n.NewNetns("tool")
	if err != nil {
		t.Fatal(err)
	}
	binary := testnet.CNITool(t)
	tool := func(verb string, wantFail bool) string {
		t.Helper()
		out, err := cnitool(t.Context(), binary, node, ns, verb)
		if (err != nil) != wantFail {
			t.Fatalf("cnitool %s: %v\n%s", verb, err, out)
		}
		return out
	}
	tool("status", false)
	if out := tool("check", true); out == "" {
		t.Error("cnitool check of what was never added says nothing")
	}
	var result current.Result
	if out := tool("add", false); json.Unmarshal([]byte(out), &result) != nil || len(result.IPs) != 2 || result.CNIVersion != "1.1.0" {
		t.Fatalf("cnitool add: %s; want a result with two addresses", out)
	}
	if v4, v6 := rules(t, ns); len(v4) == 0 || len(v6) == 0 {
		t.Errorf("rules after ADD: %v %v", v4, v6)
	}
	tool("check", false)
	if err := checkBroken(t, ns, func(ctx context.Context) error {
		out, err := cnitool(ctx, binary, node, ns, "check")
		if err != nil && !strings.Contains(out, "shop/tool") {
			t.Errorf("cnitool check of broken rules: %s", out)
		}
		return err
	}); err == nil {
		t.Error("cnitool check of broken rules succeeds")
	}
	tool("del", false)
	wantUntouched(t, ns)
	tool("del", false) // again: a runtime may
	tool("add", false)
	tool("gc", false) // nothing is valid
	wantUntouched(t, ns)
	if err := node.StopAgent(); err != nil {
		t.Fatal(err)
	}
	if out := tool("status", true); !strings.Contains(out, "cni.sock") {
		t.Errorf("cnitool status without agent: %s", out)
	}
}

func cnitool(ctx context.Context, binary string, node *lab.Node, ns *lab.Netns, verb string) (string, error) {
	cmd := node.Command(ctx, binary, verb, node.NetworkName(), ns.Path())
	cmd.Env = append(os.Environ(),
		"NETCONFPATH="+node.CNIConfDir(),
		"CNI_PATH="+strings.Join(node.PluginPath(), string(os.PathListSeparator)),
		fmt.Sprintf("CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=%s;K8S_POD_UID=uid-tool", "tool"))
	out, err := cmd.CombinedOutput()
	return string(out), err
}
