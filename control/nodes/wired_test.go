package nodes

import (
	"slices"
	"testing"
	"time"

	"conduit.io/conduit/api/kube"
	nodev1 "conduit.io/conduit/api/nodev1"
	"conduit.io/conduit/control/access"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestStates: what a report is worth changes with time, and not only with reports.
func TestStates(t *testing.T) {
	begin := time.Unix(1_000_000, 0)
	now := begin
	r := NewRegistry(func() time.Time { return now }, nil)
	expect := func(when string, state nodev1.Node_State, since time.Duration) {
		t.Helper()
		n := r.Get("n1", false)
		if n.State != state || n.Since.AsTime().Sub(begin) != since || r.Count().Nodes[state] != 1 {
			t.Errorf("%s: %v since %v, counted %v; want %v since %v", when, n.State, n.Since.AsTime().Sub(begin), r.Count().Nodes, state, since)
		}
	}
	report := func(st *Stream, ready bool) {
		t.Helper()
		if !st.Take(&nodev1.ReportRequest{Full: true, Agent: &nodev1.AgentState{Ready: ready}}) {
			t.Fatal("refused")
		}
	}
	st := r.Open("n1", access.Pod{}, func() {})
	report(st, false)
	expect("at first", nodev1.Node_STATE_NOT_READY, 0)
	now = now.Add(10 * time.Second)
	report(st, true)
	now = now.Add(10 * time.Second)
	report(st, true)
	expect("ready", nodev1.Node_STATE_READY, 10*time.Second)
	now = now.Add(reportWithin)
	expect("just in time", nodev1.Node_STATE_READY, 10*time.Second)
	now = now.Add(5 * time.Second)
	expect("silent", nodev1.Node_STATE_SILENT, 20*time.Second)
	report(st, true)
	expect("not any more", nodev1.Node_STATE_READY, 40*time.Second)
	now = now.Add(time.Second)
	next := r.Open("n1", access.Pod{}, func() {})
	report(next, true)
	st.Close()
	expect("by another stream", nodev1.Node_STATE_READY, 40*time.Second)
	next.Close()
	now = now.Add(time.Minute)
	expect("away", nodev1.Node_STATE_AWAY, 41*time.Second)
	report(r.Open("n1", access.Pod{}, func() {}), true)
	expect("back", nodev1.Node_STATE_READY, 101*time.Second)
}

// agents is a stage whose pods are the agent's, and the one that takes over from it.
type agents struct {
	*stage
	w    *Writer
	pods []*corev1.Pod
}

func newAgents(t *testing.T) *agents {
	a := &agents{stage: newStage(t)}
	a.r.now = func() time.Time { return a.now }
	a.w = a.writer()
	for _, name := range []string{"agent-a", "agent-b"} {
		p, err := a.client.CoreV1().Pods("default").Create(t.Context(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec: corev1.PodSpec{NodeName: "n1", Containers: []corev1.Container{{Name: "c", Image: "i"}}}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		a.pods = append(a.pods, p)
		a.known.pods[string(p.UID)] = corev1.PodCondition{}
	}
	if _, err := a.client.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	return a
}

// stream is the agent's that runs in a pod, and says for the first time how it is.
func (a *agents) stream(pod int, state *nodev1.AgentState) *Stream {
	a.t.Helper()
	p := a.pods[pod]
	st := a.r.Open("n1", access.Pod{Namespace: p.Namespace, Name: p.Name, UID: string(p.UID)}, func() {})
	if !st.Take(&nodev1.ReportRequest{Full: true, Agent: state}) {
		a.t.Fatal("refused")
	}
	return st
}

// expect has the node looked at, and the cache see what came of it; which is the condition of the pod.
func (a *agents) expect(when string, pod int, status corev1.ConditionStatus, reason string) corev1.PodCondition {
	a.t.Helper()
	if err := a.w.wire(a.t.Context(), "n1"); err != nil {
		a.t.Fatal(err)
	}
	var got corev1.PodCondition
	for i, p := range a.pods {
		now, err := a.client.CoreV1().Pods(p.Namespace).Get(a.t.Context(), p.Name, metav1.GetOptions{})
		if err != nil {
			a.t.Fatal(err)
		}
		c := conditionOf(now, kube.ConditionWired)
		if i == pod {
			got = c
		}
		c.LastTransitionTime = metav1.Time{}
		a.known.pods[string(p.UID)] = c
	}
	if got.Status != status || got.Reason != reason {
		a.t.Errorf("%s: the pod has %q %q (%s), want %q %q", when, got.Status, got.Reason, got.Message, status, reason)
	}
	return got
}

// events are all that have been written of the agents' pods, in no order: Events of one second have none.
func (a *agents) events(want ...string) {
	a.t.Helper()
	got := a.told("agent-a", "agent-b")
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		a.t.Errorf("events %q, want %q", got, want)
	}
}

// TestWired: the agent's pod says what the agent says of its node, and that nothing is heard of it when that is so.
func TestWired(t *testing.T) {
	a := newAgents(t)
	st := a.stream(0, &nodev1.AgentState{Reason: "ProxyNotReady", Message: "the proxy is not ready"})
	if c := a.expect("it begins", 0, corev1.ConditionFalse, "ProxyNotReady"); c.Message != "the proxy is not ready" {
		t.Errorf("the message is %q", c.Message)
	}
	a.events()
	say := func(state *nodev1.AgentState) {
		t.Helper()
		a.now = a.now.Add(time.Second)
		if !st.Take(&nodev1.ReportRequest{Agent: state}) {
			t.Fatal("refused")
		}
	}
	say(&nodev1.AgentState{Ready: true})
	if c := a.expect("ready", 0, corev1.ConditionTrue, "Wired"); !c.LastTransitionTime.Time.Equal(a.now) {
		t.Errorf("since %v, want %v", c.LastTransitionTime, a.now)
	}
	say(&nodev1.AgentState{Reason: "PluginNotInPlace", Message: "nobody keeps it"})
	a.expect("the plugin is lost", 0, corev1.ConditionFalse, "PluginNotInPlace")
	a.events("agent-a PluginNotInPlace")
	say(&nodev1.AgentState{Ready: true})
	a.expect("the plugin is back", 0, corev1.ConditionTrue, "Wired")
	for range 2 { // the second time it is no news
		say(&nodev1.AgentState{Ready: true, Reason: "CertificatesNotRenewed", Message: "the first ends soon"})
		if c := a.expect("something will go wrong", 0, corev1.ConditionTrue, "CertificatesNotRenewed"); c.Message != "the first ends soon" {
			t.Errorf("the message is %q", c.Message)
		}
	}
	a.events("agent-a PluginNotInPlace", "agent-a CertificatesNotRenewed")
	say(&nodev1.AgentState{Ready: true})
	a.expect("somebody has looked after it", 0, corev1.ConditionTrue, "Wired")

	st.Close()
	a.expect("the stream has ended", 0, corev1.ConditionTrue, "Wired")
	a.now = a.now.Add(goneAfter)
	a.expect("it does not come back", 0, corev1.ConditionUnknown, "AgentAway")
	a.events("agent-a PluginNotInPlace", "agent-a CertificatesNotRenewed", "agent-a AgentAway")
	a.w = a.writer() // another leads
	st = a.stream(0, &nodev1.AgentState{Ready: true})
	a.expect("back", 0, corev1.ConditionTrue, "Wired")

	a.stream(1, &nodev1.AgentState{Ready: true})
	a.expect("another pod's agent has taken over", 1, corev1.ConditionTrue, "Wired")
	a.expect("the one before", 0, corev1.ConditionFalse, "Replaced")
	st = a.stream(0, &nodev1.AgentState{Ready: true})
	a.expect("it comes back", 0, corev1.ConditionTrue, "Wired")
	a.expect("the other", 1, corev1.ConditionFalse, "Replaced")
	a.events("agent-a PluginNotInPlace", "agent-a CertificatesNotRenewed", "agent-a AgentAway")

	// The node is taken away, with its pods.
	st.Close()
	a.now = a.now.Add(goneAfter)
	delete(a.known.pods, string(a.pods[0].UID))
	if a.expect("its pod is gone", 0, corev1.ConditionTrue, "Wired"); a.r.Get("n1", false) == nil {
		t.Error("a node that is there was forgotten")
	}
	a.known.gone = true
	if a.w.sweep(); a.r.Get("n1", false) != nil {
		t.Error("a node that is no more is listed")
	}
	a.stream(0, &nodev1.AgentState{Ready: true}) // the cache has not seen the node yet
	if a.w.sweep(); a.r.Get("n1", false) == nil {
		t.Error("a node whose agent is connected was forgotten")
	}
}
