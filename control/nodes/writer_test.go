package nodes

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"conduit.io/conduit/api/kube"
	nodev1 "conduit.io/conduit/api/nodev1"
	"conduit.io/conduit/control/access"
	"conduit.io/conduit/tests/apiserver"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// cache is what the controller has seen of pods: what the test shows it, at the time of its choice.
type cache struct {
	mu   sync.Mutex
	pods map[string]corev1.PodCondition // by UID
	gone bool                           // the node
}

func (c *cache) Node(string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.gone
}

func (c *cache) Condition(_, _, uid string, kind corev1.PodConditionType) (corev1.PodCondition, string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p, ok := c.pods[uid]
	if !ok {
		return p, ""
	}
	if p.Type != kind {
		p = corev1.PodCondition{}
	}
	return p, "n1"
}

// stage is a real API server with a pod, and the Writers before it, one after the other.
type stage struct {
	t      *testing.T
	client *kubernetes.Clientset
	pod    *corev1.Pod
	state  *nodev1.PodState
	known  *cache
	r      *Registry
	now    time.Time
}

func newStage(t *testing.T) *stage {
	s := &stage{t: t, known: &cache{pods: map[string]corev1.PodCondition{}}, now: time.Unix(1_000_000, 0), r: NewRegistry(time.Now, nil)}
	var err error
	if s.client, err = kubernetes.NewForConfig(apiserver.Start(t).Config); err != nil {
		t.Fatal(err)
	}
	s.pod, err = s.client.CoreV1().Pods("default").Create(t.Context(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec: corev1.PodSpec{NodeName: "n1", Containers: []corev1.Container{{Name: "c", Image: "i"}}}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	s.state = &nodev1.PodState{Uid: string(s.pod.UID), Namespace: "default", Name: "web", Enrolment: nodev1.PodState_ENROLMENT_ENROLLED, ObservedGeneration: 1}
	return s
}

// writer is that of a replica that begins to lead.
func (s *stage) writer() *Writer {
	w := NewWriter(s.client.CoreV1(), s.client.CoreV1(), s.r, s.known, slog.New(slog.DiscardHandler))
	w.now = func() time.Time { return s.now }
	w.begin(nil, nil)
	return w
}

// told are the Events of pods, the name and the reason. The API server writes some of its own of the Service kubernetes.
func (s *stage) told(pods ...string) (events []string) {
	s.t.Helper()
	list, err := s.client.CoreV1().Events("default").List(s.t.Context(), metav1.ListOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	for i := range list.Items {
		if o := list.Items[i].InvolvedObject; o.Kind == "Pod" && slices.Contains(pods, o.Name) {
			events = append(events, o.Name+" "+list.Items[i].Reason)
		}
	}
	return events
}

// report has w look at the pod, and returns what the API server has of it then.
func (s *stage) report(w *Writer) *corev1.Pod {
	s.t.Helper()
	s.r.Open("n1", access.Pod{}, func() {}).Take(&nodev1.ReportRequest{Full: true, Agent: &nodev1.AgentState{}, Pods: []*nodev1.PodState{s.state}})
	if err := w.conditions(s.t.Context(), "n1"); err != nil {
		s.t.Fatal(err)
	}
	p, err := s.client.CoreV1().Pods("default").Get(s.t.Context(), "web", metav1.GetOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	return p
}

func enrolled(p *corev1.Pod) corev1.PodCondition { return conditionOf(p, kube.ConditionEnrolled) }

func conditionOf(p *corev1.Pod, kind corev1.PodConditionType) (c corev1.PodCondition) {
	for _, one := range p.Status.Conditions {
		if one.Type == kind {
			c = one
		}
	}
	return c
}

// see has the cache see p.
func (s *stage) see(p *corev1.Pod) {
	c := enrolled(p)
	c.LastTransitionTime, c.LastProbeTime = metav1.Time{}, metav1.Time{}
	s.known.mu.Lock()
	defer s.known.mu.Unlock()
	s.known.pods[string(p.UID)] = c
}

// TestConditionIsWrittenOnce: reports of the same, a cache that is late, and a new leader bring no write; what is news or was
// undone does. The time of the condition is when its status changed.
func TestConditionIsWrittenOnce(t *testing.T) {
	s := newStage(t)
	w := s.writer()
	if p := s.report(w); enrolled(p).Type != "" {
		t.Error("a pod that the cache has not seen got a condition")
	}
	s.see(s.pod)
	first := s.report(w)
	began := enrolled(first).LastTransitionTime
	if enrolled(first).Status != corev1.ConditionTrue || !began.Time.Equal(s.now) {
		t.Fatalf("got %+v", enrolled(first))
	}
	same := func(when string, w *Writer) {
		t.Helper()
		s.state.Sockets = &nodev1.Sockets{Created: uint64(s.now.Unix())}
		if p := s.report(w); p.ResourceVersion != first.ResourceVersion {
			t.Errorf("%s: written again: %+v", when, enrolled(p))
		}
	}
	s.now = s.now.Add(echo / 2)
	same("before the cache has seen it", w)
	s.see(first)
	s.now = s.now.Add(time.Hour)
	same("an hour later", w)
	same("by a new leader", s.writer())

	s.state.ObservedGeneration = 2
	second := s.report(w)
	if c := enrolled(second); c.ObservedGeneration != 2 || !c.LastTransitionTime.Equal(&began) {
		t.Errorf("after news that are not about the status: %+v", c)
	}
	s.see(second)
	s.state.Enrolment, s.state.Reason = nodev1.PodState_ENROLMENT_BYPASSED, "Unrouted"
	third := s.report(w)
	if c := enrolled(third); c.Status != corev1.ConditionFalse || c.Reason != "Unrouted" || !c.LastTransitionTime.Time.Equal(s.now) {
		t.Errorf("bypassed: %+v", c)
	}
	s.see(third)
	s.report(s.writer()) // a new leader raises no second Event
	if events := s.told("web"); len(events) != 1 {
		t.Errorf("events %q", events)
	}
	s.report(w)
	s.see(first) // somebody has put the old one back
	s.now = s.now.Add(echo)
	if c := enrolled(s.report(w)); c.Status != corev1.ConditionFalse {
		t.Errorf("undone by somebody: %+v", c)
	}
	s.state.Enrolment, s.state.Reason = nodev1.PodState_ENROLMENT_NOT_MESHED, ""
	if p := s.report(w); enrolled(p).Type != "" {
		t.Errorf("not in the mesh any more: %+v", enrolled(p))
	}
}

// TestPodsOfOtherNodes: of a pod of another node nothing is written, whatever an agent says; that is counted, and logged once.
func TestPodsOfOtherNodes(t *testing.T) {
	s := newStage(t)
	s.see(s.pod)
	var log strings.Builder
	w := s.writer()
	w.log = slog.New(slog.NewTextHandler(&log, nil))
	lie := &nodev1.PodState{Uid: s.state.Uid, Namespace: "default", Name: "web", Enrolment: nodev1.PodState_ENROLMENT_BYPASSED, Reason: "Lie"}
	s.r.Open("n2", access.Pod{}, func() {}).Take(&nodev1.ReportRequest{Full: true, Agent: &nodev1.AgentState{}, Pods: []*nodev1.PodState{lie}})
	for range 3 {
		if err := w.conditions(t.Context(), "n2"); err != nil {
			t.Fatal(err)
		}
	}
	p, err := s.client.CoreV1().Pods("default").Get(t.Context(), "web", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if events := s.told("web"); enrolled(p).Type != "" || len(events) != 0 {
		t.Errorf("another node's agent had written: %+v, %v", enrolled(p), events)
	}
	var metrics strings.Builder
	w.Write(&metrics)
	if !strings.Contains(metrics.String(), "conduit_node_reports_refused_total 3\n") || strings.Count(log.String(), "\n") != 1 || !strings.Contains(log.String(), "agent=n2") {
		t.Errorf("want 3 counted, and 1 line with the agent's node:\n%s\n%s", metrics.String(), log.String())
	}
	if p := s.report(w); enrolled(p).Status != corev1.ConditionTrue { // its own agent is not disturbed
		t.Errorf("its own agent's report: %+v", enrolled(p))
	}
}

// TestTaintDoesNotWait: a node that is ready has its taint taken off while writes of conditions get no further.
func TestTaintDoesNotWait(t *testing.T) {
	s := newStage(t)
	if _, err := s.client.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "late"},
		Spec: corev1.NodeSpec{Taints: []corev1.Taint{{Key: kube.TaintNotReady, Effect: corev1.TaintEffectNoSchedule}}}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	stuck := &stuck{free: make(chan struct{}), held: make(chan struct{}, 100)}
	w := NewWriter(s.client.CoreV1(), s.client.CoreV1(), s.r, stuck, slog.New(slog.DiscardHandler))
	s.r.change = w.Changed
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { w.Run(ctx); close(done) }()
	defer func() { cancel(); close(stuck.free); <-done }()
	for i := range 10 {
		s.r.Open(fmt.Sprint("n", i), access.Pod{}, func() {}).Take(&nodev1.ReportRequest{Full: true, Agent: &nodev1.AgentState{}, Pods: []*nodev1.PodState{s.state}})
	}
	for range atOnce {
		<-stuck.held
	}
	s.r.Open("late", access.Pod{}, func() {}).Take(&nodev1.ReportRequest{Full: true, Agent: &nodev1.AgentState{Instance: "a", Ready: true}, Pods: []*nodev1.PodState{s.state}})
	for deadline := time.Now().Add(time.Minute); ; <-time.After(20 * time.Millisecond) {
		n, err := s.client.CoreV1().Nodes().Get(t.Context(), "late", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		left := map[string]bool{}
		for _, taint := range n.Spec.Taints {
			left[taint.Key] = true
		}
		if !left[kube.TaintNotReady] {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the taint is still there: %v", left)
		}
	}
}

// stuck is a cache that does not answer.
type stuck struct{ free, held chan struct{} }

func (*stuck) Node(string) bool { return true }

func (s *stuck) Condition(_, _, _ string, _ corev1.PodConditionType) (corev1.PodCondition, string) {
	s.held <- struct{}{}
	<-s.free
	return corev1.PodCondition{}, ""
}
