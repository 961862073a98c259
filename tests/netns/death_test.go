package netns_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"conduit.io/conduit/cli/lab"
	"conduit.io/conduit/tests/testnet"
)

// TestDeath kills agents and proxies, under load where nothing must be noticed.
func TestDeath(t *testing.T) {
	r := newRegion(t)
	type step struct {
		name string
		run  func(*testing.T, *region)
	}
	steps := []step{{"proxy of one node dead", oneProxyDead}, {"both proxies dead", bothProxiesDead}}
	if city.bin == "" { // what becomes of a cluster's agents is TestLive's in tests/e2e
		steps = slices.Concat([]step{{"agent killed under load", agentKilledUnderLoad}, {"agent taken over under load", agentTakenOver}}, steps,
			[]step{{"proxies dead with their agents", allDead}, {"proxies killed again and again", proxiesKilledAgain}})
	}
	for _, step := range steps {
		if !t.Run(step.name, func(t *testing.T) { step.run(t, r) }) {
			t.FailNow()
		}
	}
}

// pins are the files of a node in bpffs. The inode of one is that of its pinning: it changes when something is pinned anew.
func pins(t *testing.T, node *lab.Node) map[string]uint64 {
	t.Helper()
	all := map[string]uint64{}
	err := filepath.WalkDir(node.PinDir(), func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			return err
		}
		all[strings.TrimPrefix(path, node.PinDir())] = st.Ino
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// listenerInodes are the sockets in a pod that listen on the mesh's own ports, by inode.
func listenerInodes(t *testing.T, p testnet.Pod) []string {
	t.Helper()
	var inodes []string
	err := p.InNetns(func() error {
		for _, file := range []string{"tcp", "tcp6"} {
			sockets, err := os.ReadFile("/proc/thread-self/net/" + file)
			if err != nil {
				return err
			}
			for line := range strings.Lines(string(sockets)) {
				f := strings.Fields(line) // proc_net_tcp: ..., 3 is the state, 9 the inode
				if len(f) > 9 && f[3] == "0A" && (strings.HasSuffix(f[1], ":3A99") || strings.HasSuffix(f[1], ":3A9E")) {
					inodes = append(inodes, f[9])
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(inodes)
	return inodes
}

// lasting is what an agent must find and leave alone.
type lasting struct {
	proxies   [2]int
	pins      [2]map[string]uint64
	listeners map[string][]string
}

func (r *region) lasting(t *testing.T) lasting {
	t.Helper()
	l := lasting{listeners: map[string][]string{}}
	_, one, two := r.lab()
	for i, node := range []*lab.Node{one, two} {
		l.proxies[i], l.pins[i] = proxyPID(t, node), pins(t, node)
	}
	for _, p := range []testnet.Pod{r.openA, r.openB, r.shutA, r.shutB} {
		l.listeners[p.String()] = listenerInodes(t, p)
	}
	return l
}

// wantLasting expects that everything in before is still there.
func (r *region) wantLasting(t *testing.T, before lasting) {
	t.Helper()
	now := r.lasting(t)
	if now.proxies != before.proxies {
		t.Errorf("proxies %v, want those from before, %v", now.proxies, before.proxies)
	}
	for i := range before.pins {
		for path, inode := range before.pins[i] {
			if now.pins[i][path] != inode {
				t.Errorf("node %d: pin %s was replaced or removed", i+1, path)
			}
		}
	}
	if !maps.EqualFunc(now.listeners, before.listeners, slices.Equal) {
		t.Errorf("listeners %v, want those from before, %v", now.listeners, before.listeners)
	}
	for pod, inodes := range now.listeners {
		if len(inodes) != 4 {
			t.Errorf("%s has listeners %v, want 4", pod, inodes)
		}
	}
}

func (r *region) startAgents(t *testing.T) {
	t.Helper()
	for _, node := range r.ground.(*labGround).nodes {
		if err := node.StartAgent(t.Context(), lab.AgentConfig{}); err != nil {
			t.Fatal(err)
		}
	}
}

func (r *region) killAgents(t *testing.T) {
	t.Helper()
	for _, node := range r.ground.(*labGround).nodes {
		if err := node.KillAgent(); err != nil {
			t.Fatal(err)
		}
	}
}

// agentKilledUnderLoad: no error before, during and after; nothing of the data path is replaced; what has changed meanwhile
// takes effect.
func agentKilledUnderLoad(t *testing.T, r *region) {
	g, one, _ := r.lab()
	r.namespace(t, "later", nil, nil)
	clean := steadyFootprint(t, one)
	clean.agentFDs += 5  // another process
	clean.proxyFDs += 50 // connections to other proxies, which stay for a while
	later := g.Pod(one, "later", "pod", lab.PodOptions{})
	before := r.lasting(t)
	victim := g.Pod(one, "open", "victim", lab.PodOptions{})
	b := newBustle(t, r.pairs())
	r.killAgents(t)
	b.progress(5)
	r.changeWithoutAgents(t, victim)
	b.progress(5)
	r.startAgents(t)
	late := r.wantChanged(t)
	b.progress(5)
	b.stop()
	r.wantLasting(t, before)
	if log, err := os.ReadFile(one.AgentLog()); err != nil || strings.Contains(string(log), "has no record") {
		t.Errorf("the new agent did not recognize what it found (%v)", err)
	}
	for _, node := range []testnet.Node{r.one, r.two} {
		if got := metric(t, node, "conduit_proxy_starts_total"); got != 0 {
			t.Errorf("%s: the new agent has started %v proxies", node.Name(), got)
		}
	}
	for _, p := range []*lab.Pod{late, later} {
		if err := p.Delete(t.Context()); err != nil {
			t.Error(err)
		}
	}
	wantFootprint(t, one, clean) // nothing is left of the pod that was deleted without an agent
}

// lateService is written while no agent is there.
var lateService = lab.Service{Namespace: "shut", Name: "late", ClusterIPs: lab.ServiceIPs(77), Selector: map[string]string{"app": "late"},
	Ports: []lab.ServicePort{{Name: "tcp", Port: 77, TargetPort: fmt.Sprint(regionWitness)}}}

// changeWithoutAgents adds a pod, which must fail, deletes one, which must not, and writes manifests.
func (r *region) changeWithoutAgents(t *testing.T, victim *lab.Pod) {
	t.Helper()
	g, one, _ := r.lab()
	_, err := one.AddPod(t.Context(), "open", "early", lab.PodOptions{NoManifest: true})
	wantCode(t, "ADD without an agent", err, 11, "the agent has stopped or is starting", "look at its log", one.AgentSocket())
	if err := victim.Delete(t.Context()); err != nil {
		t.Errorf("DEL without an agent: %v", err)
	}
	if err := g.WriteService(lateService); err != nil {
		t.Fatal(err)
	}
	r.namespace(t, "later", enrolledLabels, nil)
}

// wantChanged expects that new agents have seen what changed without them, and can add a pod, which it returns.
func (r *region) wantChanged(t *testing.T) *lab.Pod {
	t.Helper()
	g, _, two := r.lab()
	testnet.Eventually(t, 15*time.Second, func(context.Context) error {
		if got, want := enrolled(t, r.one), []string{"later/pod", "open/a", "shut/a"}; !slices.Equal(got, want) {
			return fmt.Errorf("enrolled on node one: %v, want %v", got, want)
		}
		return nil
	})
	late := g.Pod(two, "shut", "late", lab.PodOptions{Labels: lateService.Selector})
	witness(t, late, regionWitness, false, "tcp")
	pair{r.shutA, late}.reachService(t, netip.AddrPortFrom(lateService.ClusterIPs[0], 77))
	return late
}

// agentTakenOver: SIGTERM and a new agent, three times, under load.
func agentTakenOver(t *testing.T, r *region) {
	before := r.lasting(t)
	b := newBustle(t, r.pairs())
	_, one, two := r.lab()
	for range 3 {
		for _, node := range []*lab.Node{one, two} {
			if err := node.StopAgent(); err != nil {
				t.Fatal(err)
			}
		}
		b.progress(2)
		r.startAgents(t)
		b.progress(2)
	}
	b.stop()
	r.wantLasting(t, before)
}

// bypassed is a kernel counter of a pod.
func bypassed(t *testing.T, p testnet.Pod, reason string) float64 {
	t.Helper()
	return metric(t, p, "conduit_sockets_bypassed_total", `pod="`+p.String()+`"`, `reason="`+reason+`"`)
}

// oneProxyDead: the proxy of node one is dead, that of node two works.
func oneProxyDead(t *testing.T, r *region) {
	held := pair{r.shutA, r.shutB}.hold(t)
	heldIn := pair{r.shutB, r.openA}.hold(t)
	refusedBefore := metric(t, r.two, "conduit_proxy_refused_plaintext_total")
	capture, stop := r.record(t)
	thaw := r.halt(t, 1)
	old := killProxy(t, r.one)
	died := time.Now()
	wantEnded(t, "outbound connection through the dead proxy", held)
	wantEnded(t, "inbound connection through the dead proxy", heldIn)

	pair{r.shutA, r.shutB}.wantRefused(t)
	pair{r.shutA, r.openB}.wantRefused(t)
	pair{r.shutA, r.outsider}.wantRefused(t)
	pair{r.outsider, r.shutA}.wantRefused(t)
	for _, p := range []pair{{r.openA, r.openB}, {r.openA, r.outsider}, {r.outsider, r.openA}} {
		for _, f := range p.families() {
			if err := p.ask(t.Context(), f, "open-without-proxy"); err != nil {
				t.Error(err)
			}
		}
	}
	// The proxy of node two knows both pods of node one as members of the mesh: it never goes on without mTLS.
	for _, p := range []pair{{r.openB, r.openA}, {r.shutB, r.shutA}} {
		p.wantUnavailable(t, "never-in-the-clear")
	}
	if err := (pair{r.openA, r.shutB}).ask(t.Context(), lab.IPv4, "to-strict"); err == nil {
		t.Error("a STRICT server answers a pod that goes on without its proxy")
	}
	if got := metric(t, r.two, "conduit_proxy_refused_plaintext_total") - refusedBefore; got != 1 {
		t.Errorf("%v plaintext connections refused by STRICT, want 1", got)
	}
	direct := pair{r.openA, r.openB}.hold(t)

	t.Logf("without a proxy for %v", time.Since(died).Round(time.Millisecond))
	thaw()
	r.wantRecovered(t, r.one, old)
	for _, p := range r.pairs() { // at once: links to the dead proxy must not be used
		if err := p.ask(t.Context(), lab.IPv4, "recovered"); err != nil {
			t.Error(err)
		}
	}
	if err := (pair{r.openA, r.openB}).askOn(direct, "direct-still"); err != nil {
		t.Errorf("connection that was made without the proxy, now that it is back: %v", err)
	}
	stop()
	if len(capture.Find([]byte("open-without-proxy"))) == 0 {
		t.Error("no plaintext of the open pod on the wire: the test sees nothing")
	}
	if found := capture.Find([]byte("never-in-the-clear")); len(found) != 0 {
		t.Errorf("plaintext on the wire: %v", found)
	}
}

// wantUnavailable expects HTTP to be answered by the mesh with 503, and an opaque connection to end.
func (p pair) wantUnavailable(t *testing.T, marker string) {
	t.Helper()
	dials := 0
	c := p.client(1, &dials)
	defer c.CloseIdleConnections()
	resp, err := c.Post("http://"+p.at(lab.IPv4, regionHTTP).String()+"/", "text/plain", strings.NewReader(marker))
	if err != nil {
		t.Errorf("%s: %v, want an answer of the mesh", p, err)
		return
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("conduit-reason") != "connect-failed" {
		t.Errorf("%s: %s, reason %q; want 503, connect-failed", p, resp.Status, resp.Header.Get("conduit-reason"))
	}
	start := time.Now()
	if err := p.ask(t.Context(), lab.IPv4, marker); err == nil || time.Since(start) > 2*time.Second {
		t.Errorf("%s: %v after %v, want an error at once", p, err, time.Since(start))
	}
}

// bothProxiesDead: pods do as was declared, in both directions.
func bothProxiesDead(t *testing.T, r *region) {
	families := len(pair{r.openA, r.openB}.families())
	open, refused := bypassed(t, r.openA, "down-open"), bypassed(t, r.shutA, "refused")
	thawOne, thawTwo := r.halt(t, 1), r.halt(t, 2)
	oldOne, oldTwo := killProxy(t, r.one), killProxy(t, r.two)
	r.wantAsDeclared(t)
	thawOne()
	thawTwo()
	r.wantRecovered(t, r.one, oldOne)
	r.wantRecovered(t, r.two, oldTwo)
	r.wantEncrypted(t)
	if got := bypassed(t, r.openA, "down-open") - open; int(got) < 2*families {
		t.Errorf("%v connections of the open pod counted as down-open, want those that were made", got)
	}
	if got := bypassed(t, r.shutA, "refused") - refused; int(got) < 2*families {
		t.Errorf("%v connections of the shut pod counted as refused, want those that were tried", got)
	}
}

// wantAsDeclared expects pods without proxies to be closed or open, and looks at the wire.
func (r *region) wantAsDeclared(t *testing.T) {
	t.Helper()
	capture, stop := r.record(t)
	for _, p := range []pair{{r.shutA, r.shutB}, {r.shutB, r.shutA}, {r.shutA, r.openB}, {r.shutA, r.outsider}, {r.openA, r.shutB},
		{r.outsider, r.shutA}, {r.outsider, r.shutB}} {
		p.wantRefused(t)
	}
	for _, p := range []pair{{r.openA, r.openB}, {r.openB, r.openA}, {r.openA, r.outsider}, {r.outsider, r.openB}} {
		for _, f := range p.families() {
			if err := p.ask(t.Context(), f, "as-declared-open"); err != nil {
				t.Error(err)
			}
		}
	}
	stop()
	if found := capture.Find([]byte("as-declared-open")); len(found) < 6*len(pair{r.openA, r.openB}.families()) {
		t.Errorf("the open pods' words are on the wire in %v, want both directions of three connections in each family", found)
	}
	for flow := range capture.Flows() {
		if slices.Contains(r.shutA.Addrs(), flow.Src.Addr()) || slices.Contains(r.shutB.Addrs(), flow.Src.Addr()) {
			t.Errorf("a closed pod has sent data: %s", flow)
		}
	}
}

// wantRecovered expects a new proxy by itself, and everything steered and encrypted again.
func (r *region) wantRecovered(t *testing.T, node testnet.Node, old int) {
	t.Helper()
	start := time.Now()
	testnet.Eventually(t, time.Minute, func(ctx context.Context) error {
		pid, err := node.ProxyPID()
		if err != nil || pid == 0 || pid == old {
			return fmt.Errorf("%s: proxy %d (%v), want a new one", node.Name(), pid, err)
		}
		up, err := testnet.Metric(ctx, node, "conduit_proxy_up")
		if err != nil || up != 1 {
			return fmt.Errorf("%s: conduit_proxy_up is %v, %w", node.Name(), up, err)
		}
		return nil
	})
	took := time.Since(start)
	t.Logf("%s: new proxy ready after %v", node.Name(), took.Round(time.Millisecond))
	if took > 5*time.Second && city.bin == "" { // on a cluster it is the kubelet's matter, and who dies again is made to wait
		t.Errorf("%s: recovery took %v", node.Name(), took)
	}
}

// wantEncrypted expects that every pair can talk, and that nothing of it is on the wire.
func (r *region) wantEncrypted(t *testing.T) {
	t.Helper()
	const token = "recovered-and-secret"
	families := len(pair{r.openA, r.openB}.families())
	before := map[testnet.Pod]float64{r.openA: steered(t, r.one, r.openA), r.shutB: steered(t, r.two, r.shutB)}
	capture, stop := r.record(t)
	for _, p := range r.pairs() {
		for _, f := range p.families() {
			if err := p.ask(t.Context(), f, token); err != nil {
				t.Error(err)
			}
		}
	}
	for p, n := range before {
		if got := steered(t, p, p) - n; int(got) < 2*families {
			t.Errorf("%v connections of %s were steered, want those that were made", got, p)
		}
	}
	control := pair{r.outsider, r.openB}
	if err := control.ask(t.Context(), lab.IPv4, "control"); err != nil {
		t.Error(err)
	}
	stop()
	if len(capture.Find([]byte("control"))) == 0 {
		t.Error("the outsider's plaintext is not on the wire: the test sees nothing")
	}
	if found := capture.Find([]byte(token)); len(found) != 0 {
		t.Errorf("plaintext of enrolled pods on the wire: %v", found)
	}
}

// allDead: the proxies die while no agent is there; new agents recover everything.
func allDead(t *testing.T, r *region) {
	r.killAgents(t)
	oldOne, oldTwo := killProxy(t, r.one), killProxy(t, r.two)
	r.wantAsDeclared(t)
	r.startAgents(t)
	r.wantRecovered(t, r.one, oldOne)
	r.wantRecovered(t, r.two, oldTwo)
	r.wantEncrypted(t)
}

// proxiesKilledAgain kills both proxies five times in a row, while closed pods try to connect all the time.
func proxiesKilledAgain(t *testing.T, r *region) {
	const token = "between-the-deaths"
	capture, stopCapture := r.record(t)
	pairs := []pair{{r.shutA, r.shutB}, {r.shutB, r.shutA}, {r.shutA, r.openB}}
	results := make([][]attempt, 2*len(pairs))
	end := make(chan struct{})
	var wg sync.WaitGroup
	for i, p := range pairs {
		wg.Go(func() { results[2*i] = p.attempts(t.Context(), end, lab.IPv4, token) })
		wg.Go(func() { results[2*i+1] = p.attempts(t.Context(), end, lab.IPv6, token) })
	}
	for range 5 {
		one, two := killProxy(t, r.one), killProxy(t, r.two)
		r.wantRecovered(t, r.one, one)
		r.wantRecovered(t, r.two, two)
	}
	r.wantEncrypted(t)
	close(end)
	wg.Wait()
	stopCapture()
	good, refused, reset := 0, 0, 0
	for _, a := range slices.Concat(results...) {
		switch {
		case a.took > 3*time.Second:
			t.Errorf("attempt hung for %v: %v", a.took, a.err)
		case a.err == nil:
			good++
		case errors.Is(a.err, syscall.ECONNREFUSED):
			refused++
		case errors.Is(a.err, syscall.ECONNRESET), errors.Is(a.err, syscall.EPIPE), errors.Is(a.err, io.EOF), errors.Is(a.err, net.ErrClosed):
			reset++ // its proxy died, or could not reach the one on the other side
		default:
			t.Errorf("attempt: %v", a.err)
		}
	}
	t.Logf("%d connections went well, %d were refused, %d ended early", good, refused, reset)
	if good == 0 || refused == 0 {
		t.Error("want some that went well and some that were refused: the test sees nothing")
	}
	if found := capture.Find([]byte(token)); len(found) != 0 {
		t.Errorf("plaintext of closed pods on the wire: %v", found)
	}
}
