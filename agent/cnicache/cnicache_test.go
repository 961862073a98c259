package cnicache

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/version"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// plugin is a primary plugin that answers every ADD with result.
type plugin struct {
	version.PluginDecoder
	result string
}

func (p *plugin) ExecPlugin(_ context.Context, _ string, _ []byte, environ []string) ([]byte, error) {
	if slices.Contains(environ, "CNI_COMMAND=ADD") {
		return []byte(p.result), nil
	}
	return nil, nil
}

func (p *plugin) FindInPath(name string, _ []string) (string, error) { return name, nil }

// What libcni itself writes is read, for each version of the specification in use, and its DEL removes it.
func TestRecordsOfLibcni(t *testing.T) {
	const ips = `"ips":[{"interface":0,"address":"10.9.0.1/24"},{"interface":1,"address":"10.9.0.7/24"},{"interface":1,"address":"fd09::7/64"}]`
	const interfaces = `"interfaces":[{"name":"cni0"},{"name":"eth0","sandbox":"/run/netns/x"}]`
	args := [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "shop"}, {"K8S_POD_NAME", "web-0"}, {"K8S_POD_UID", "u-1"}}
	want := Record{Network: "pods", ContainerID: "c0ffee", IfName: "eth0", Netns: "/run/netns/x", Namespace: "shop", Pod: "web-0", PodUID: "u-1",
		Addrs: []netip.Addr{netip.MustParseAddr("10.9.0.7"), netip.MustParseAddr("fd09::7")}}
	for _, v := range []string{"0.4.0", "1.0.0", "1.1.0"} {
		t.Run(v, func(t *testing.T) {
			dir := t.TempDir()
			said := ips
			if v == "0.4.0" {
				said = strings.NewReplacer(`"interface":0`, `"version":"4","interface":0`, `"interface":1`, `"version":"4","interface":1`).Replace(ips)
			}
			cni := libcni.NewCNIConfigWithCacheDir([]string{"/"}, dir, &plugin{result: `{"cniVersion":"` + v + `",` + interfaces + `,` + said + `}`})
			list, err := libcni.NetworkConfFromBytes([]byte(`{"cniVersion":"` + v + `","name":"pods","plugins":[{"type":"primary"}]}`))
			if err != nil {
				t.Fatal(err)
			}
			rt := &libcni.RuntimeConf{ContainerID: "c0ffee", IfName: "eth0", NetNS: "/run/netns/x", Args: args}
			other := &libcni.RuntimeConf{ContainerID: "other", IfName: "eth0", NetNS: "/run/netns/y"} // of no pod
			lo := &libcni.RuntimeConf{ContainerID: "c0ffee", IfName: "lo", NetNS: "/run/netns/x", Args: args}
			for _, rt := range []*libcni.RuntimeConf{rt, other, lo} {
				if _, err := cni.AddNetworkList(t.Context(), list, rt); err != nil {
					t.Fatal(err)
				}
			}
			got, err := Read(filepath.Join(dir, "results"))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]Record{want}, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			if err := cni.DelNetworkList(t.Context(), list, rt); err != nil {
				t.Fatal(err)
			}
			if got, err := Read(filepath.Join(dir, "results")); err != nil || len(got) != 0 {
				t.Errorf("after DEL: %+v, %v", got, err)
			}
		})
	}
}

// Before 1.2 libcni did not keep the path, and plugins may say it.
func TestRecordsWithoutPath(t *testing.T) {
	const before = `{"kind":"cniCacheV1","containerId":"c","ifName":"eth0","networkName":"n","cniArgs":[["K8S_POD_NAMESPACE","s"],["K8S_POD_NAME","p"]],"result":{"interfaces":`
	for interfaces, want := range map[string]string{
		`[{"name":"cni0"},{"name":"veth1"},{"name":"eth0","sandbox":"/run/netns/x"}]`: "/run/netns/x",
		`[{"name":"cali1"}]`: "", `[{"name":"net1","sandbox":"/run/netns/y"}]`: "", `[null]`: "", `null`: "",
	} {
		if r, err := parse([]byte(before + interfaces + `}}`)); err != nil || r.Netns != want || r.Pod != "p" {
			t.Errorf("%s: %+v, %v, want %q", interfaces, r, err, want)
		}
	}
}

// One record that cannot be read does not hide the others.
func TestBadRecords(t *testing.T) {
	const good = `{"kind":"cniCacheV1","containerId":"c","ifName":"eth0","networkName":"n","netns":"/x","cniArgs":[["K8S_POD_NAMESPACE","s"],["K8S_POD_NAME","p"]],"result":`
	tests := []struct {
		name, file string
		says       string // empty: no error
	}{
		{"cut off", good, "unexpected end"},
		{"empty", "", "unexpected end"},
		{"a bare result, as before 0.8", `{"cniVersion":"0.3.1","ips":[]}`, "kind"},
		{"another kind", `{"kind":"cniCacheV9"}`, "cniCacheV9"},
		{"an interface that is not there", good + `{"interfaces":[],"ips":[{"interface":5,"address":"10.0.0.1/24"}]}}`, ""},
		{"a negative interface", good + `{"ips":[{"interface":-1,"address":"10.0.0.1/24"}]}}`, ""},
		{"no address", good + `{"ips":[{"address":"x"}]}}`, ""},
		{"too large", `{"kind":"cniCacheV1","ifName":"` + strings.Repeat("x", maxRecord) + `"}`, "larger"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, text := range map[string]string{"a": tt.file, "b": good + `{"ips":[{"address":"10.0.0.2/24"}]}}`} {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.Mkdir(filepath.Join(dir, "directory"), 0o700); err != nil {
				t.Fatal(err)
			}
			got, err := Read(dir)
			if (err == nil) != (tt.says == "") || err != nil && !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%v, want %q", err, tt.says)
			}
			if len(got) == 0 || len(got[len(got)-1].Addrs) != 1 || got[len(got)-1].Pod != "p" {
				t.Errorf("the good record is not read: %+v", got)
			}
		})
	}
	if _, err := Read(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a directory that is not there is no error")
	}
}

// FuzzRecord: whatever is in a file, it is read or refused.
func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"kind":"cniCacheV1","containerId":"c","ifName":"eth0","networkName":"n","netns":"/x","cniArgs":[["K8S_POD_NAME","p"]],"result":{"interfaces":[null],"ips":[null,{"interface":0,"address":"10.0.0.1/24"}]}}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := parse(data)
		if err != nil && (r.Pod != "" || r.Addrs != nil) {
			t.Fatalf("%+v with %v", r, err)
		}
		for _, a := range r.Addrs {
			if !a.IsValid() || a.Is4In6() {
				t.Fatalf("address %v", a)
			}
		}
	})
}
