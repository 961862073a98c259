package agent

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"conduit.io/conduit/agent/proxylink"
	"conduit.io/conduit/api/podapi"
)

const (
	byPod     = "http://10.99.0.3:8080/"
	byService = "http://10.96.7.1/"
	bySix     = "http://[fd99::3]:8080/"
)

// TestNode follows one node through its life, with real traffic between two pods. The steps build on each other.
func TestNode(t *testing.T) {
	w := newWorld(t)
	w.write("enabled", "")
	w.start()
	w.serve()
	steps := []struct {
		name string
		run  func(*testing.T, *world)
	}{
		{"bad requests are refused", badRequests},
		{"pods are wired and traffic is steered", wired},
		{"the proxy is killed", proxyKilled},
		{"the agent is killed and comes back", agentKilled},
		{"rules that vanish are repaired", repaired},
		{"the namespace leaves with a connection open", leaves},
		{"the namespace comes back, strict", strict},
		{"strict without agent and proxy", dead},
		{"one pod is deleted", deleted},
		{"a namespace vanishes while the agent is away", vanished},
		{"uninstall", uninstalled},
	}
	for _, s := range steps {
		if !t.Run(s.name, func(t *testing.T) {
			outer := w.t
			w.t = t
			defer func() { w.t = outer }()
			s.run(t, w)
		}) {
			t.FailNow()
		}
	}
}

func badRequests(t *testing.T, w *world) {
	tests := []struct {
		name   string
		change func(*podapi.Request)
		code   podapi.Code
		says   string
	}{
		{"unknown pod", func(r *podapi.Request) { r.Pod = "zzz" }, podapi.CodeUnknownPod, w.manifests()},
		{"unknown namespace", func(r *podapi.Request) { r.Namespace, r.Pod = "nowhere", "zzz" }, podapi.CodeUnknownPod, `namespace "nowhere" is unknown`},
		{"no pod", func(r *podapi.Request) { r.Pod = "" }, podapi.CodeBadRequest, "K8S_POD_NAME"},
		{"host namespace", func(r *podapi.Request) { r.Netns = "/proc/self/ns/net" }, podapi.CodeBadNetns, "node's own"},
		{"no namespace file", func(r *podapi.Request) { r.Netns = w.netns("none") }, podapi.CodeBadNetns, "gone"},
		{"path in the container ID", func(r *podapi.Request) { r.ContainerID = "../../etc" }, podapi.CodeBadRequest, "container ID"},
		{"path in the interface name", func(r *podapi.Request) { r.IfName = "../x" }, podapi.CodeBadRequest, "interface name"},
		{"interface is not there", func(r *podapi.Request) { r.IfName = "net7" }, podapi.CodeInternal, "net7"},
		{"foreign UID", nil, "", ""},
	}
	for _, tt := range tests {
		if tt.change == nil {
			continue
		}
		got := w.cni(podapi.Add, "a", tt.change)
		if got.Error == nil || got.Error.Code != tt.code || !strings.Contains(got.Error.Error(), tt.says) {
			t.Errorf("%s: %v; want code %s saying %q", tt.name, got.Error, tt.code, tt.says)
		}
	}
	if n := w.leftovers("a"); n != 0 {
		t.Errorf("%d rules and routes left by refused requests", n)
	}
	if entries, _ := os.ReadDir(filepath.Join(w.run(), podsDir)); len(entries) != 0 {
		t.Errorf("attachments left by refused requests: %v", entries)
	}
	if got := w.cni(podapi.Del, "never-added", nil); got.Error != nil {
		t.Errorf("DEL of an unknown container: %v", got.Error)
	}
	if got := w.cni(podapi.Check, "a", nil); got.Error == nil || got.Error.Code != podapi.CodeMismatch {
		t.Errorf("CHECK of an unknown container: %v", got.Error)
	}
}

func wired(t *testing.T, w *world) {
	for _, p := range []string{"a", "b", "a"} { // the last is a repetition
		w.must(podapi.Add, p, true)
	}
	w.must(podapi.Check, "a", true)
	before := w.pod("a").Counters
	w.reach(byPod, "10.99.0.2")
	w.reach(byService, "10.99.0.2")
	w.reach(bySix, "fd99::2")
	after := w.pod("a").Counters
	if got := after.Steered - before.Steered; got != 3 {
		t.Errorf("%d connections were steered, want 3", got)
	}
	code, text, err := w.admin("/metrics")
	if err != nil || code != http.StatusOK {
		t.Fatalf("/metrics: %d, %v", code, err)
	}
	for _, want := range []string{`conduit_sockets_steered_total{pod="shop/a"} 3`, `request_total{`, "conduit_proxy_up 1", `conduit_pods{state="enrolled"} 2`} {
		if !strings.Contains(text, want) {
			t.Errorf("/metrics has no %s", want)
		}
	}
	seen := map[string]bool{}
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "# TYPE ") {
			if name := strings.Fields(line)[2]; seen[name] {
				t.Errorf("family %s is declared twice", name)
			} else {
				seen[name] = true
			}
		}
	}
}

func proxyKilled(t *testing.T, w *world) {
	pid, err := proxylink.Running(w.run())
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	w.eventually("another proxy serves pod a", func() error {
		if now, err := proxylink.Running(w.run()); err != nil || now == pid {
			return fmt.Errorf("proxy %d, %v", now, err)
		}
		if got := w.cni(podapi.Check, "a", nil); got.Error != nil {
			return got.Error
		}
		if got := w.cni(podapi.Check, "b", nil); got.Error != nil {
			return got.Error
		}
		return nil
	})
	if d := time.Since(began); d > 3*time.Second {
		t.Errorf("recovery took %v", d)
	}
	before := w.pod("a").Counters.Steered
	w.reach(byPod, "10.99.0.2")
	if got := w.pod("a").Counters.Steered; got != before+1 {
		t.Errorf("steered %d after %d: the connection went around the new proxy", got, before)
	}
}

// agentKilled: traffic goes on without a fault while the agent is away, and while the next one takes over.
func agentKilled(t *testing.T, w *world) {
	pid, err := proxylink.Running(w.run())
	if err != nil {
		t.Fatal(err)
	}
	stop, done := make(chan struct{}), make(chan struct{})
	var requests atomic.Int64
	var failure atomic.Pointer[error]
	go func() {
		defer close(done)
		fresh, kept := w.client("a", false), w.client("a", true)
		defer kept.CloseIdleConnections()
		for {
			select {
			case <-stop:
				return
			default:
			}
			for _, c := range []*http.Client{fresh, kept} {
				if _, err := get(c, byService); err != nil {
					failure.CompareAndSwap(nil, &err)
				}
				requests.Add(1)
			}
		}
	}()
	progress := func(what string) {
		n := requests.Load()
		w.eventually(what, func() error {
			if requests.Load() < n+20 {
				return errors.New("no progress")
			}
			return nil
		})
	}
	progress("traffic before")
	w.kill()
	progress("traffic without an agent")
	w.start()
	progress("traffic with the next agent")
	close(stop)
	<-done
	if err := failure.Load(); err != nil {
		t.Errorf("a request failed: %v", *err)
	}
	if now, err := proxylink.Running(w.run()); err != nil || now != pid {
		t.Errorf("proxy %d, %v; want %d as before", now, err, pid)
	}
	w.must(podapi.Check, "a", true)
	w.must(podapi.Check, "b", true)
}

func repaired(t *testing.T, w *world) {
	w.ip("-n " + w.ns("a") + " rule del pref 100")
	got := w.cni(podapi.Check, "a", nil)
	if got.Error == nil || got.Error.Code != podapi.CodeMismatch || !strings.Contains(got.Error.Message, "rule 100") {
		t.Errorf("CHECK: %v, want a mismatch of rule 100", got.Error)
	}
	w.eventually("the rule is back", func() error {
		if got := w.cni(podapi.Check, "a", nil); got.Error != nil {
			return got.Error
		}
		return nil
	})
	w.reach(byPod, "10.99.0.2")
}

func leaves(t *testing.T, w *world) {
	kept := w.client("a", true)
	if _, err := get(kept, byPod); err != nil {
		t.Fatal(err)
	}
	w.write("disabled", "")
	w.eventually("the kernel steers a no more", func() error {
		if w.pod("a").Enrolled || w.pod("b").Enrolled {
			return errors.New("still enrolled")
		}
		return nil
	})
	if _, err := get(kept, byPod); err != nil {
		t.Errorf("the connection that was open: %v", err)
	}
	if p := w.pod("a"); !p.Leaving {
		t.Error("pod a has left although its connection is open")
	}
	if w.leftovers("a") == 0 {
		t.Error("the rules that the open connection needs are gone")
	}
	before := w.pod("a").Counters.Steered
	w.reach(byPod, "10.99.0.2") // direct
	if got := w.pod("a").Counters.Steered; got > before {
		t.Error("a new connection was steered")
	}
	kept.CloseIdleConnections()
	w.eventually("a has left", func() error {
		if n := w.leftovers("a"); n > 0 || w.pod("a").Leaving {
			return fmt.Errorf("%d rules and routes left", n)
		}
		return nil
	})
	w.must(podapi.Check, "a", false)
}

func strict(t *testing.T, w *world) {
	w.write("enabled", "conduit.io/mtls-mode: STRICT")
	w.eventually("both pods are enrolled", func() error {
		for _, name := range []string{"a", "b"} {
			if p := w.pod(name); !p.Enrolled || p.Mode != "STRICT" || p.OutOpen || p.InOpen {
				return fmt.Errorf("%+v", p)
			}
		}
		return nil
	})
	w.reach(byService, "10.99.0.2")
	if body, err := get(w.client("sw", false), byPod); err == nil {
		t.Errorf("plaintext from outside was answered: %q", body)
	}
	// In place, without a gap: only the flags change.
	w.write("enabled", "conduit.io/mtls-mode: STRICT, conduit.io/agent-down: Open")
	w.eventually("outbound is open without a proxy, inbound is not", func() error {
		if p := w.pod("b"); !p.Enrolled || !p.OutOpen || p.InOpen {
			return fmt.Errorf("%+v", p)
		}
		return nil
	})
	w.write("enabled", "conduit.io/mtls-mode: STRICT")
	w.eventually("closed again", func() error {
		if p := w.pod("b"); p.OutOpen {
			return errors.New("outbound is open")
		}
		return nil
	})
	w.reach(byService, "10.99.0.2")
}

func dead(t *testing.T, w *world) {
	w.kill()
	if err := proxylink.Kill(w.run(), 5*time.Second); err != nil {
		t.Fatal(err)
	}
	for from, url := range map[string]string{"a": byPod, "sw": byPod} {
		_, err := get(w.client(from, false), url)
		if !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, syscall.EPERM) {
			t.Errorf("from %s without a proxy: %v, want a refusal", from, err)
		}
	}
	w.start()
	w.eventually("traffic flows again", func() error { _, err := get(w.client("a", false), byPod); return err })
	w.must(podapi.Check, "b", true)
}

func deleted(t *testing.T, w *world) {
	w.must(podapi.Del, "a", false)
	if n := w.leftovers("a"); n != 0 {
		t.Errorf("%d rules and routes left after DEL", n)
	}
	if p := w.pod("a"); p.Name != "" {
		t.Errorf("pod a is still known: %+v", p)
	}
	w.must(podapi.Del, "a", false) // again
	// GC of the same network with nothing valid takes b; of another network it would not.
	w.cni(podapi.GC, "b", func(r *podapi.Request) { r.Network = "other" })
	if !w.pod("b").Enrolled {
		t.Error("GC of another network took pod b")
	}
	w.must(podapi.GC, "b", false)
	if p := w.pod("b"); p.Name != "" {
		t.Errorf("pod b is still known after GC: %+v", p)
	}
	for _, p := range []string{"a", "b"} {
		w.must(podapi.Add, p, true)
	}
	w.reach(byService, "10.99.0.2")
}

func vanished(t *testing.T, w *world) {
	w.addPod("gone", 4)
	w.must(podapi.Add, "b", true)
	got := w.cni(podapi.Add, "b", func(r *podapi.Request) {
		r.ContainerID, r.Netns, r.Addrs = "c-gone", w.netns("gone"), []netip.Addr{netip.MustParseAddr("10.99.0.4")}
	})
	if got.Error != nil || !got.Wired {
		t.Fatalf("ADD of a second sandbox of pod b: %+v", got)
	}
	w.kill()
	w.ip("netns del " + w.ns("gone"))
	w.start()
	if entries, _ := os.ReadDir(filepath.Join(w.run(), podsDir)); len(entries) != 2 {
		t.Errorf("%d attachments are stored, want 2", len(entries))
	}
	if pins, _ := os.ReadDir(filepath.Join(w.bpffs, "lookups")); len(pins) != 2 {
		t.Errorf("%d lookup programs are pinned, want 2", len(pins))
	}
	w.must(podapi.Check, "b", true)
	w.reach(byPod, "10.99.0.2")
}

func uninstalled(t *testing.T, w *world) {
	done := make(chan error, 1)
	go func() { done <- w.agent.Wait() }()
	var out bytes.Buffer
	if err := uninstall(config{runDir: w.run(), bpffs: w.bpffs, caDir: filepath.Join(w.run(), defaultCA)}, &out); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	if err := <-done; err != nil {
		t.Errorf("the agent ended with %v", err)
	}
	w.agent = nil
	for _, want := range []string{"stopped  agent", "removed  proxy", "removed  rules and routes of pod shop/a", "verified 0 programs"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("output lacks %q:\n%s", want, &out)
		}
	}
	for _, p := range []string{"a", "b"} {
		if n := w.leftovers(p); n != 0 {
			t.Errorf("%d rules and routes left in %s", n, p)
		}
	}
	for _, path := range []string{w.run(), w.bpffs} {
		if _, err := os.Lstat(path); !os.IsNotExist(err) {
			t.Errorf("%s is still there", path)
		}
	}
	w.reach(byPod, "10.99.0.2") // direct, from the same address
}
