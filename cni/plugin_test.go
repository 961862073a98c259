package cni_test

import (
	"bytes"
	"encoding/json"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"conduit.io/conduit/api/podapi"
)

var ok = &podapi.Response{Wired: true}

var compareAddrs = cmpopts.EquateComparable(netip.Addr{})

func TestAddAsksAndPassesResultOn(t *testing.T) {
	a := newAgent(t, ok)
	o := call(t, env("ADD"), conf("1.1.0", a.socket, prev))
	if o.failed != nil {
		t.Fatal(o.failed)
	}
	if got, want := strings.TrimSpace(o.stdout), strings.TrimSpace(prev); got != want {
		t.Errorf("result is not prevResult, verbatim:\n got %s\nwant %s", got, want)
	}
	want := podapi.Request{Version: podapi.Version, Op: podapi.Add, Network: "pods", ContainerID: "c0ffee", IfName: "eth0",
		Netns: "/run/netns/not-there", Namespace: "shop", Pod: "web-0", PodUID: "1234",
		Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("2001:db8::7")}}
	if d := cmp.Diff(want, a.only(t), compareAddrs); d != "" {
		t.Errorf("request (-want +got):\n%s", d)
	}
}

// A result keeps the version of the configuration, in every version that the plugin offers.
func TestAddVersions(t *testing.T) {
	old := `{"interfaces":[{"name":"eth0","sandbox":"/run/netns/x"}],"ips":[{"version":"4","interface":0,"address":"192.0.2.7/24"}],"dns":{}}`
	for _, tc := range []struct{ version, prev string }{
		{"0.3.1", old},
		{"0.4.0", old},
		{"0.4.0", strings.Replace(old, "{", `{"cniVersion":"0.4.0",`, 1)},
		{"1.0.0", strings.Replace(prev, "1.1.0", "1.0.0", 1)},
		{"1.1.0", prev},
	} {
		a := newAgent(t, ok)
		o := call(t, env("ADD"), conf(tc.version, a.socket, tc.prev))
		if o.failed != nil {
			t.Errorf("%s: %v", tc.version, o.failed)
			continue
		}
		var got, want map[string]any
		mustDecode(t, o.stdout, &got)
		mustDecode(t, tc.prev, &want)
		want["cniVersion"] = tc.version
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: result (-want +got):\n%s", tc.version, d)
		}
		if addrs := a.only(t).Addrs; len(addrs) == 0 || addrs[0] != netip.MustParseAddr("192.0.2.7") {
			t.Errorf("%s: addresses %v", tc.version, addrs)
		}
	}
}

func mustDecode(t *testing.T, text string, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), into); err != nil {
		t.Fatalf("decode %q: %v", text, err)
	}
}

func TestVersion(t *testing.T) {
	o := call(t, map[string]string{"CNI_COMMAND": "VERSION"}, `{"cniVersion":"1.1.0"}`)
	var v struct{ SupportedVersions []string }
	mustDecode(t, o.stdout, &v)
	if want := []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"}; !slices.Equal(v.SupportedVersions, want) {
		t.Errorf("versions %v, want %v", v.SupportedVersions, want)
	}
}

// Whatever is wrong with the call itself is said before the agent is asked.
func TestBadCalls(t *testing.T) {
	a := newAgent(t, ok)
	tooOld := strings.Replace(prev, "1.1.0", "0.2.0", 1)
	noIPs := `{"cniVersion":"1.1.0","interfaces":[]}`
	hostOnly := `{"cniVersion":"1.1.0","interfaces":[{"name":"cni0"}],"ips":[{"interface":0,"address":"192.0.2.1/24"}]}`
	badIndex := `{"cniVersion":"1.1.0","interfaces":[],"ips":[{"interface":3,"address":"192.0.2.1/24"}]}`
	for name, tc := range map[string]struct {
		env   map[string]string
		stdin string
		code  uint
		parts []string
	}{
		"not JSON":             {env("ADD"), `{"name":`, 6, []string{"unmarshall network config"}},
		"empty input":          {env("ADD"), ``, 6, nil},
		"an array":             {env("ADD"), `[]`, 6, nil},
		"no network name":      {env("ADD"), `{"cniVersion":"1.1.0"}`, 7, []string{"missing network name"}},
		"unknown version":      {env("ADD"), conf("9.9.9", a.socket, prev), 1, []string{"incompatible CNI versions", "9.9.9"}},
		"version too old":      {env("ADD"), conf("0.2.0", a.socket, tooOld), 1, []string{"incompatible CNI versions"}},
		"unknown field":        {env("ADD"), conf("1.1.0", a.socket, prev, `"agentsocket":"/x"`), 7, []string{`"agentsocket"`, "agentSocket", "conflist", "/etc/cni/net.d"}},
		"no socket":            {env("ADD"), conf("1.1.0", "", prev), 7, []string{`"agentSocket" is missing`}},
		"relative socket":      {env("ADD"), conf("1.1.0", "cni.sock", prev), 7, []string{"absolute path"}},
		"socket not a string":  {env("ADD"), conf("1.1.0", "", prev, `"agentSocket":7`), 7, []string{"agentSocket"}},
		"bad timeout":          {env("ADD"), conf("1.1.0", a.socket, prev, `"timeout":"soon"`), 7, []string{`"soon"`, "20s"}},
		"negative timeout":     {env("ADD"), conf("1.1.0", a.socket, prev, `"timeout":"-1s"`), 7, nil},
		"endless timeout":      {env("ADD"), conf("1.1.0", a.socket, prev, `"timeout":"24h"`), 7, nil},
		"not chained":          {env("ADD"), conf("1.1.0", a.socket, ""), 7, []string{"prevResult", "after a primary plugin"}},
		"null prevResult":      {env("ADD"), conf("1.1.0", a.socket, "null"), 7, []string{"prevResult"}},
		"prevResult no object": {env("ADD"), conf("1.1.0", a.socket, `"x"`), 7, []string{"prevResult"}},
		"prevResult version":   {env("ADD"), conf("1.0.0", a.socket, prev), 1, []string{"1.1.0", "1.0.0"}},
		"no addresses":         {env("ADD"), conf("1.1.0", a.socket, noIPs), 7, []string{"no address", "ipam"}},
		"node addresses only":  {env("ADD"), conf("1.1.0", a.socket, hostOnly), 7, []string{"no address"}},
		"interface index":      {env("ADD"), conf("1.1.0", a.socket, badIndex), 7, []string{"inconsistent"}},
		"CHECK not chained":    {env("CHECK"), conf("1.1.0", a.socket, ""), 7, []string{"prevResult"}},
		"CHECK too old":        {env("CHECK"), conf("0.3.1", a.socket, prev), 1, []string{"does not allow CHECK"}},
		"GC too old":           {env("GC"), conf("1.0.0", a.socket, ""), 1, []string{"does not allow GC"}},
		"STATUS too old":       {env("STATUS"), conf("1.0.0", a.socket, ""), 1, []string{"does not allow STATUS"}},
		"STATUS bad config":    {env("STATUS"), conf("1.1.0", "", ""), 7, []string{"agentSocket"}},
		"no container ID":      {env("ADD", "CNI_CONTAINERID", ""), conf("1.1.0", a.socket, prev), 4, []string{"CNI_CONTAINERID"}},
		"no netns":             {env("ADD", "CNI_NETNS", ""), conf("1.1.0", a.socket, prev), 4, []string{"CNI_NETNS"}},
		"bad interface name":   {env("ADD", "CNI_IFNAME", "a/b"), conf("1.1.0", a.socket, prev), 4, nil},
		"unknown command":      {env("FROB"), conf("1.1.0", a.socket, prev), 4, []string{"FROB"}},
		"no pod in CNI_ARGS":   {env("ADD", "CNI_ARGS", "IgnoreUnknown=1"), conf("1.1.0", a.socket, prev), 4, []string{"K8S_POD_NAMESPACE", "K8S_POD_NAME"}},
		"no CNI_ARGS":          {env("ADD", "CNI_ARGS", ""), conf("1.1.0", a.socket, prev), 4, []string{"K8S_POD_NAME"}},
		"unknown CNI_ARGS":     {env("ADD", "CNI_ARGS", "K8S_POD_NAMESPACE=a;K8S_POD_NAME=b;X=1"), conf("1.1.0", a.socket, prev), 4, []string{"X=1", "IgnoreUnknown=1"}},
		"broken CNI_ARGS":      {env("ADD", "CNI_ARGS", "K8S_POD_NAME"), conf("1.1.0", a.socket, prev), 4, []string{"K8S_POD_NAME"}},
	} {
		t.Run(name, func(t *testing.T) { call(t, tc.env, tc.stdin).wantError(t, tc.code, tc.parts...) })
	}
	a.none(t)
}

// Standard fields that a runtime or a user may put into any plugin's configuration are no reason to refuse.
func TestStandardFieldsAccepted(t *testing.T) {
	a := newAgent(t, ok)
	o := call(t, env("ADD"), conf("1.1.0", a.socket, prev, `"ipam":{"type":"host-local"}`, `"ipMasq":false`, `"dns":{}`, `"args":{"cni":{}}`,
		`"capabilities":{"portMappings":true}`, `"runtimeConfig":{"portMappings":[]}`, `"cni.dev/valid-attachments":[]`, `"timeout":"30s"`))
	if o.failed != nil {
		t.Fatal(o.failed)
	}
	a.only(t)
}

// The agent's refusals reach the user with the specification's codes, its words and its hint.
func TestAgentRefuses(t *testing.T) {
	for _, tc := range []struct {
		verb string
		code podapi.Code
		want uint
	}{
		{"ADD", podapi.CodeNotReady, 11},
		{"ADD", podapi.CodeUnknownPod, 11},
		{"ADD", podapi.CodeBadRequest, 4},
		{"ADD", podapi.CodeBadNetns, 8},
		{"ADD", podapi.CodeInternal, 999},
		{"ADD", "code-of-a-newer-agent", 999},
		{"CHECK", podapi.CodeMismatch, 100},
		{"CHECK", podapi.CodeUnknownPod, 3},
		{"CHECK", podapi.CodeNotReady, 11},
		{"GC", podapi.CodeNotReady, 11},
		{"GC", podapi.CodeInternal, 999},
		{"STATUS", podapi.CodeNotReady, 50},
		{"STATUS", podapi.CodeInternal, 50},
	} {
		t.Run(tc.verb+"/"+string(tc.code), func(t *testing.T) {
			a := newAgent(t, &podapi.Response{Error: &podapi.Error{Code: tc.code, Message: "the wheel came off", Hint: "fit a wheel"}})
			o := call(t, env(tc.verb), conf("1.1.0", a.socket, prev, `"cni.dev/valid-attachments":[]`))
			o.wantError(t, tc.want, "the wheel came off", "fit a wheel", tc.verb)
			a.only(t)
		})
	}
}

// Which namespaces are not a pod's is for the agent to say: the plugin does not look at its own.
func TestNamespaceIsTheAgentsMatter(t *testing.T) {
	for _, verb := range []string{"ADD", "DEL"} {
		a := newAgent(t, ok)
		o := call(t, env(verb, "CNI_NETNS", "/proc/self/ns/net"), conf("1.1.0", a.socket, prev))
		if o.failed != nil {
			t.Errorf("%s: %v", verb, o.failed)
		}
		if req := a.only(t); req.Netns != "/proc/self/ns/net" {
			t.Errorf("%s: request %+v", verb, req)
		}
	}
}

func TestCheckAsks(t *testing.T) {
	a := newAgent(t, ok)
	o := call(t, env("CHECK"), conf("1.1.0", a.socket, prev))
	if o.failed != nil || strings.TrimSpace(o.stdout) != "" {
		t.Fatalf("error %v, stdout %q; want neither", o.failed, o.stdout)
	}
	req := a.only(t)
	if req.Op != podapi.Check || req.Netns != "/run/netns/not-there" || len(req.Addrs) != 2 || req.Pod != "web-0" {
		t.Errorf("request %+v", req)
	}
}

func TestGCPassesValidAttachments(t *testing.T) {
	for _, key := range []string{"cni.dev/valid-attachments", "cni.dev/attachments"} {
		a := newAgent(t, ok)
		o := call(t, env("GC"), conf("1.1.0", a.socket, "", `"`+key+`":[{"containerID":"one","ifname":"eth0"},{"containerID":"two","ifname":"net1"}]`))
		if o.failed != nil {
			t.Fatal(o.failed)
		}
		want := podapi.Request{Version: podapi.Version, Op: podapi.GC, Network: "pods",
			Valid: []podapi.Attachment{{ContainerID: "one", IfName: "eth0"}, {ContainerID: "two", IfName: "net1"}}}
		if d := cmp.Diff(want, a.only(t), compareAddrs); d != "" {
			t.Errorf("%s: request (-want +got):\n%s", key, d)
		}
	}
}

// A list that is empty, or null as libcni sends it, removes everything; a list that is missing removes nothing.
func TestGCWithoutAttachments(t *testing.T) {
	for _, list := range []string{"[]", "null"} {
		a := newAgent(t, ok)
		if o := call(t, env("GC"), conf("1.1.0", a.socket, "", `"cni.dev/valid-attachments":`+list)); o.failed != nil {
			t.Fatal(o.failed)
		}
		if req := a.only(t); req.Op != podapi.GC || len(req.Valid) != 0 {
			t.Errorf("%s: request %+v", list, req)
		}
	}
	o := call(t, env("GC"), conf("1.1.0", "/nonexistent/cni.sock", "")) // as cnitool calls it
	if o.failed != nil || !strings.Contains(o.stderr, "GC removes nothing") {
		t.Errorf("GC without a list: %v, stderr %q; want success, and nobody asked", o.failed, o.stderr)
	}
}

func TestStatusReady(t *testing.T) {
	a := newAgent(t, &podapi.Response{})
	if o := call(t, env("STATUS"), conf("1.1.0", a.socket, "")); o.failed != nil {
		t.Fatal(o.failed)
	}
	if req := a.only(t); req.Op != podapi.Status || req.Network != "pods" {
		t.Errorf("request %+v", req)
	}
}

// TestAgentAway calls every verb when no agent can answer: ADD, CHECK, GC and STATUS say why, DEL succeeds.
func TestAgentAway(t *testing.T) {
	dir, err := os.MkdirTemp("", "cni")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	stale := filepath.Join(dir, "stale.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	hanging := newAgent(t, nil)
	for name, tc := range map[string]struct {
		socket string
		parts  []string
	}{
		"no socket":      {filepath.Join(dir, "none.sock"), []string{"does not exist", "is the agent running"}},
		"nobody listens": {stale, []string{"nobody listens", "stopped or is starting"}},
		"agent hangs":    {hanging.socket, []string{"did not answer in time", "1s", `"timeout"`}},
		"agent hangs up": {hangUp(t, dir), []string{"hung up without an answer"}},
		"not an agent":   {babble(t, dir), []string{"frame"}},
	} {
		stdin := conf("1.1.0", tc.socket, prev, `"timeout":"1s"`, `"cni.dev/valid-attachments":null`)
		t.Run(name, func(t *testing.T) {
			for verb, code := range map[string]uint{"ADD": 11, "CHECK": 11, "GC": 11, "STATUS": 50} {
				if name == "not an agent" && verb != "STATUS" {
					code = 5
				}
				o := call(t, env(verb), stdin)
				o.wantError(t, code, append(tc.parts, verb, tc.socket)...)
				o.wantPrompt(t)
			}
			o := call(t, env("DEL"), stdin)
			if o.failed != nil || o.stdout != "" {
				t.Errorf("DEL: error %v, stdout %q; want success", o.failed, o.stdout)
			}
			for _, part := range append(tc.parts, "c0ffee") {
				if !strings.Contains(o.stderr, part) {
					t.Errorf("DEL: stderr %q does not mention %q", o.stderr, part)
				}
			}
			o.wantPrompt(t)
		})
	}
}

// wantPrompt allows for a busy machine, but not for a missing deadline.
func (o outcome) wantPrompt(t *testing.T) {
	t.Helper()
	if o.took > 10*time.Second {
		t.Errorf("took %v with a timeout of 1s", o.took)
	}
}

// hangUp listens, and closes each connection at once.
func hangUp(t *testing.T, dir string) string {
	return listen(t, filepath.Join(dir, "hangup.sock"), func(c net.Conn) {
		c.Read(make([]byte, 4096))
	})
}

// babble answers with something that is not a frame.
func babble(t *testing.T, dir string) string {
	return listen(t, filepath.Join(dir, "babble.sock"), func(c net.Conn) {
		c.Read(make([]byte, 4096))
		c.Write(bytes.Repeat([]byte("HTTP/1.1 400 Bad Request\r\n"), 4))
	})
}

func listen(t *testing.T, path string, serve func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serve(c)
			c.Close()
		}
	}()
	return path
}

// DEL tells the agent, and needs none of what may be missing by then.
func TestDel(t *testing.T) {
	for name, tc := range map[string]struct {
		env    map[string]string
		stdin  func(socket string) string
		asked  bool
		stderr string
	}{
		"plain":          {env("DEL"), func(s string) string { return conf("1.1.0", s, prev) }, true, ""},
		"no prevResult":  {env("DEL"), func(s string) string { return conf("0.3.1", s, "") }, true, ""},
		"no netns":       {env("DEL", "CNI_NETNS", ""), func(s string) string { return conf("1.1.0", s, "") }, true, ""},
		"bad CNI_ARGS":   {env("DEL", "CNI_ARGS", "A=B=C"), func(s string) string { return conf("1.1.0", s, "") }, true, "CNI_ARGS"},
		"bad prevResult": {env("DEL"), func(s string) string { return conf("1.1.0", s, `{"ips":7}`) }, true, ""},
		"bad config":     {env("DEL"), func(s string) string { return conf("1.1.0", s, "", `"oops":1`) }, false, `"oops"`},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAgent(t, &podapi.Response{})
			o := call(t, tc.env, tc.stdin(a.socket))
			if o.failed != nil || o.stdout != "" {
				t.Fatalf("error %v, stdout %q; want success", o.failed, o.stdout)
			}
			if !strings.Contains(o.stderr, tc.stderr) || (tc.stderr == "") != (o.stderr == "") {
				t.Errorf("stderr %q, want it to mention %q", o.stderr, tc.stderr)
			}
			if !tc.asked {
				a.none(t)
				return
			}
			if req := a.only(t); req.Op != podapi.Del || req.ContainerID != "c0ffee" || req.IfName != "eth0" || req.Network != "pods" {
				t.Errorf("request %+v", req)
			}
		})
	}
	t.Run("agent refuses", func(t *testing.T) {
		a := newAgent(t, &podapi.Response{Error: &podapi.Error{Code: podapi.CodeInternal, Message: "cannot unlink"}})
		o := call(t, env("DEL"), conf("1.1.0", a.socket, prev))
		if o.failed != nil || !strings.Contains(o.stderr, "cannot unlink") {
			t.Errorf("error %v, stderr %q; want success with a message", o.failed, o.stderr)
		}
		a.only(t)
	})
}
