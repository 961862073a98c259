package e2e

import (
	"encoding/json"
	"strings"
	"testing"

	"conduit.io/conduit/tests/cluster/kubetest"
)

// The images of `make images` can be imported without a registry, and run.
func TestImages(t *testing.T) {
	c := kubetest.New(t)
	importImages(c)
	for name, user := range map[string]int{"conduit-controller": 65532, "conduit-agent": 0, "conduit-proxy": 2102} {
		type object = map[string]any
		security := object{"readOnlyRootFilesystem": true, "capabilities": object{"drop": []string{"ALL"}}}
		if user != 0 {
			security["runAsNonRoot"] = true // the kubelet looks at the image's user
		}
		pod, err := json.Marshal(object{"apiVersion": "v1", "kind": "Pod", "metadata": object{"name": name}, "spec": object{
			"restartPolicy": "Never",
			"containers": []object{{"name": name, "image": "localhost/" + name + ":" + imagesVersion, "imagePullPolicy": "IfNotPresent",
				"args": []string{"--version"}, "securityContext": security}}}})
		if err != nil {
			t.Fatal(err)
		}
		c.Apply(string(pod))
		c.Kubectl("wait", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=120s", "pod/"+name)
		if logs := c.Kubectl("logs", name); !strings.HasPrefix(logs, name+" ") {
			t.Errorf("%s --version says %q", name, logs)
		}
	}
}
