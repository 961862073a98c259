package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"conduit.io/conduit/agent/admin"
	"conduit.io/conduit/agent/enrol"
	"conduit.io/conduit/agent/podnet"
	"conduit.io/conduit/agent/proxylink"
	"conduit.io/conduit/api/frame"
	"conduit.io/conduit/api/podapi"
	"conduit.io/conduit/loader"
	"conduit.io/conduit/tests/program"
)

const patience = 20 * time.Second

// world is one node with two pods, a and b, on a bridge that lives in a namespace of its own.
type world struct {
	t      *testing.T
	dir    string
	bin    string
	bpffs  string
	prefix string
	agent  *exec.Cmd
	log    bytes.Buffer
}

func newWorld(t *testing.T) *world {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: needs root for namespaces and kernel programs")
	}
	dir, err := os.MkdirTemp("", "cdtag")
	if err != nil {
		t.Fatal(err)
	}
	prefix := filepath.Base(dir)
	w := &world{t: t, dir: dir, bin: filepath.Join(dir, "bin"), prefix: prefix, bpffs: "/sys/fs/bpf/" + prefix}
	t.Cleanup(w.clean)
	for _, sub := range []string{w.bin, w.manifests()} {
		if err := os.MkdirAll(sub, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := program.Build(w.bin, "conduit.io/conduit/cmd/conduit-agent", "conduit.io/conduit/cmd/conduit-proxy"); err != nil {
		t.Fatal(err)
	}
	w.ip("netns add " + w.ns("sw"))
	w.ip("-n " + w.ns("sw") + " link add br0 type bridge")
	w.ip("-n " + w.ns("sw") + " link set br0 up")
	w.ip("-n " + w.ns("sw") + " addr add 10.99.0.1/24 dev br0")
	w.addPod("a", 2)
	w.addPod("b", 3)
	return w
}

func (w *world) ns(name string) string    { return w.prefix + "-" + name }
func (w *world) netns(name string) string { return "/run/netns/" + w.ns(name) }
func (w *world) manifests() string        { return filepath.Join(w.dir, "manifests") }
func (w *world) run() string              { return filepath.Join(w.dir, "run") }
func (w *world) addr(family, n int) string {
	return map[int]string{4: "10.99.0.", 6: "fd99::"}[family] + fmt.Sprint(n)
}

func (w *world) ip(args string) {
	w.t.Helper()
	if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
		w.t.Fatalf("ip %s: %v\n%s", args, err, out)
	}
}

func (w *world) addPod(name string, n int) {
	w.t.Helper()
	ns, sw := w.ns(name), w.ns("sw")
	w.ip("netns add " + ns)
	w.ip("-n " + ns + " link set lo up")
	w.ip("-n " + sw + " link add v" + name + " type veth peer name eth0 netns " + ns)
	w.ip("-n " + sw + " link set v" + name + " master br0 up")
	w.ip("-n " + ns + " link set eth0 up")
	w.ip("-n " + ns + " addr add " + w.addr(4, n) + "/24 dev eth0")
	w.ip("-n " + ns + " addr add " + w.addr(6, n) + "/64 dev eth0 nodad")
	w.ip("-n " + ns + " route add default via 10.99.0.1")
}

// clean removes everything, also what a failed test left.
func (w *world) clean() {
	w.kill()
	proxylink.Kill(w.run(), 5*time.Second)
	if err := uninstall(config{runDir: w.run(), bpffs: w.bpffs, caDir: filepath.Join(w.run(), defaultCA)}, io.Discard); err != nil {
		w.t.Errorf("clean up: %v", err)
	}
	for _, n := range []string{"a", "b", "gone", "sw"} {
		exec.Command("ip", "netns", "del", w.ns(n)).Run()
	}
	os.RemoveAll(w.dir)
	if w.t.Failed() {
		text := w.log.String()
		w.t.Logf("end of the agent's log:\n%s", text[max(0, len(text)-8000):])
	}
}

// start starts the agent and waits until it is ready.
func (w *world) start(flags ...string) {
	w.t.Helper()
	w.agent = exec.Command(filepath.Join(w.bin, "conduit-agent"), append([]string{"--standalone", "--manifests", w.manifests(),
		"--run-dir", w.run(), "--bpffs", w.bpffs, "--node-name", "n1", "--admin", "127.0.0.1:0"}, flags...)...)
	w.agent.Stdout, w.agent.Stderr = &w.log, &w.log
	if err := w.agent.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.eventually("the agent is ready", func() error {
		code, body, err := w.admin("/readyz")
		if err == nil && code != 200 {
			err = fmt.Errorf("%d %s", code, body)
		}
		return err
	})
}

// kill ends the agent as kill -9 does.
func (w *world) kill() {
	if w.agent != nil {
		w.agent.Process.Kill()
		w.agent.Wait()
		w.agent = nil
		os.Remove(admin.AddrFile(w.run())) // so that the next one's is waited for
	}
}

func (w *world) admin(path string) (int, string, error) {
	addr, err := os.ReadFile(admin.AddrFile(w.run()))
	if err != nil {
		return 0, "", err
	}
	resp, err := http.Get("http://" + strings.TrimSpace(string(addr)) + path)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body), err
}

func (w *world) pod(name string) enrol.PodStatus {
	w.t.Helper()
	_, body, err := w.admin("/debug/pods")
	var pods []enrol.PodStatus
	if err == nil {
		err = json.Unmarshal([]byte(body), &pods)
	}
	if err != nil {
		w.t.Fatalf("/debug/pods: %v\n%s", err, body)
	}
	for _, p := range pods {
		if p.Name == name {
			return p
		}
	}
	return enrol.PodStatus{}
}

// eventually polls until check succeeds.
func (w *world) eventually(what string, check func() error) {
	w.t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-deadline:
			w.t.Fatalf("not in time: %s: %v", what, err)
		case <-tick.C:
		}
	}
}

func (w *world) cni(op podapi.Op, pod string, change func(*podapi.Request)) podapi.Response {
	w.t.Helper()
	n := map[string]int{"a": 2, "b": 3}[pod]
	r := &podapi.Request{Version: podapi.Version, Op: op, Network: "net", ContainerID: "c-" + pod, IfName: "eth0", Netns: w.netns(pod), Namespace: "shop", Pod: pod}
	if n > 0 {
		r.Addrs = []netip.Addr{netip.MustParseAddr(w.addr(4, n)), netip.MustParseAddr(w.addr(6, n))}
	}
	if change != nil {
		change(r)
	}
	c, err := frame.Dial(filepath.Join(w.run(), cniSocket), time.Second)
	if err != nil {
		w.t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if err := c.Send(r); err != nil {
		w.t.Fatal(err)
	}
	var resp podapi.Response
	if _, err := c.Receive(&resp); err != nil {
		w.t.Fatal(err)
	}
	return resp
}

// must is a call that succeeds with the given result.
func (w *world) must(op podapi.Op, pod string, wired bool) {
	w.t.Helper()
	if got := w.cni(op, pod, nil); got.Error != nil || got.Wired != wired {
		w.t.Fatalf("%s %s: wired %v, %v; want wired %v", op, pod, got.Wired, got.Error, wired)
	}
}

func (w *world) write(label, notes string) {
	w.t.Helper()
	text := "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {conduit.io/mesh: " + label + "}, annotations: {" + notes + "}}\n"
	for _, p := range []string{"a", "b"} {
		text += "---\napiVersion: v1\nkind: Pod\nmetadata: {name: " + p + ", namespace: shop, labels: {app: " + p + "}}\n" +
			"spec: {serviceAccountName: " + p + ", containers: [{name: c, image: x, ports: [{name: http, containerPort: 8080}]}]}\n"
	}
	text += "---\napiVersion: v1\nkind: Service\nmetadata: {name: b, namespace: shop}\n" +
		"spec: {clusterIP: 10.96.7.1, selector: {app: b}, ports: [{name: http, port: 80, targetPort: http}]}\n"
	tmp := filepath.Join(w.manifests(), ".all.yaml")
	if err := os.WriteFile(tmp, []byte(text), 0o644); err != nil {
		w.t.Fatal(err)
	}
	if err := os.Rename(tmp, filepath.Join(w.manifests(), "all.yaml")); err != nil {
		w.t.Fatal(err)
	}
}

// serve answers HTTP in pod b with the address that the server sees.
func (w *world) serve() {
	w.t.Helper()
	ns, err := podnet.Open(w.netns("b"))
	if err != nil {
		w.t.Fatal(err)
	}
	defer ns.Close()
	var l net.Listener
	if err := loader.Inside(ns.File, func() error { l, err = net.Listen("tcp", ":8080"); return err }); err != nil {
		w.t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		fmt.Fprint(rw, host)
	})}
	go srv.Serve(l)
	w.t.Cleanup(func() { srv.Close() })
}

// client dials from inside the pod's namespace; a socket stays where it was made.
func (w *world) client(pod string, keepAlive bool) *http.Client {
	return &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: !keepAlive,
		DialContext: func(_ context.Context, network, addr string) (c net.Conn, err error) {
			ns, err := podnet.Open(w.netns(pod))
			if err != nil {
				return nil, err
			}
			defer ns.Close()
			err = loader.Inside(ns.File, func() error { c, err = net.DialTimeout(network, addr, 5*time.Second); return err })
			return c, err
		},
	}}
}

func get(c *http.Client, url string) (string, error) {
	resp, err := c.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != 200 {
		err = fmt.Errorf("status %d: %s", resp.StatusCode, body)
	}
	return string(body), err
}

// reach asks b from a, and checks that b sees a.
func (w *world) reach(url, seen string) {
	w.t.Helper()
	got, err := get(w.client("a", false), url)
	if err != nil || got != seen {
		w.t.Fatalf("GET %s: server saw %q, %v; want %q", url, got, err, seen)
	}
}

func (w *world) leftovers(pod string) int {
	w.t.Helper()
	ns, err := podnet.Open(w.netns(pod))
	if err != nil {
		w.t.Fatal(err)
	}
	defer ns.Close()
	n, err := podnet.Leftovers(ns)
	if err != nil {
		w.t.Fatal(err)
	}
	return n
}
