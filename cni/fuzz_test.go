package cni

import (
	"errors"
	"path/filepath"
	"testing"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
)

// FuzzConf: a configuration is refused with an error that CNI knows, or can be acted on.
func FuzzConf(f *testing.F) {
	for _, s := range []string{
		`{"cniVersion":"1.1.0","name":"pods","type":"conduit-cni","agentSocket":"/run/conduit/cni.sock","timeout":"20s","prevResult":{"cniVersion":"1.1.0","ips":[{"address":"10.0.0.1/24"}]}}`,
		`{"cniVersion":"1.1.0","name":"pods","agentSocket":"/x","cni.dev/valid-attachments":[{"containerID":"c","ifname":"eth0"}]}`,
		`{"cniVersion":"1.1.0","name":"pods","agentSocket":"/x","prevResult":{"ips":[null],"interfaces":[null],"routes":[null]}}`,
		`{"cniVersion":"0.4.0","name":"pods","agentSocket":"/x","prevResult":{"ips":[{"address":"10.0.0.1/24","interface":0}],"interfaces":[null]}}`,
		`{"agentSocket":"/x","cni.dev/valid-attachments":null,"cni.dev/attachments":[]}`, `{"agentSocket":"x"}`, `{"AgentSocket":"/x"}`, `[]`, `null`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		c, err := parseConf(in)
		if err != nil {
			if bad := (*types.Error)(nil); !errors.As(err, &bad) || bad.Code == 0 || bad.Msg == "" {
				t.Fatalf("%q: %v", in, err)
			}
			return
		}
		_, result, err := parseChained(&skel.CmdArgs{StdinData: in}, "ADD")
		if err == nil {
			_, err = podAddrs(result)
		}
		if bad := (*types.Error)(nil); err != nil && !errors.As(err, &bad) {
			t.Fatalf("%q: %v", in, err)
		}
		if !filepath.IsAbs(c.AgentSocket) || c.Timeout <= 0 || c.Timeout > maxTimeout {
			t.Fatalf("%q: %+v", in, c)
		}
	})
}
