package nodes

import (
	"fmt"
	"testing"
	"time"

	nodev1 "conduit.io/conduit/api/nodev1"
	"conduit.io/conduit/control/access"
)

func podState(uid string, e nodev1.PodState_Enrolment) *nodev1.PodState {
	return &nodev1.PodState{Uid: uid, Namespace: "n", Name: "p-" + uid, Enrolment: e}
}

func uids(n *nodev1.Node) (out []string) {
	for _, p := range n.GetPods() {
		out = append(out, p.Uid)
	}
	return out
}

// TestReports follows a node through its life.
func TestReports(t *testing.T) {
	changes := 0
	r := NewRegistry(func() time.Time { return time.Unix(100, 0) }, func(string) { changes++ })
	first := r.Open("n1", access.Pod{}, func() {})
	agent := &nodev1.AgentState{Version: "v1", Ready: true}
	for _, bad := range []*nodev1.ReportRequest{{}, {Full: true}, {Agent: agent}} {
		if first.Take(bad) {
			t.Errorf("the first report was %v", bad)
		}
	}
	if r.Get("n1", true) != nil || changes != 0 {
		t.Fatal("what was refused was taken in")
	}
	take := func(st *Stream, m *nodev1.ReportRequest) {
		t.Helper()
		if !st.Take(m) {
			t.Fatalf("refused: %v", m)
		}
	}
	take(first, &nodev1.ReportRequest{Full: true, Agent: agent, Pods: []*nodev1.PodState{podState("a", 1), podState("b", 2)}})
	take(first, &nodev1.ReportRequest{Pods: []*nodev1.PodState{podState("c", 1)}, RemovedPods: []string{"a", "unknown"}})
	if n := r.Get("n1", true); fmt.Sprint(uids(n)) != "[b c]" || !n.Connected || n.LastReportAt.Seconds != 100 {
		t.Fatalf("after two reports: %v", n)
	}
	before := changes
	take(first, &nodev1.ReportRequest{Agent: &nodev1.AgentState{Version: "v1", Ready: true}})
	if changes != before {
		t.Error("a report of nothing new counts as a change")
	}

	ended := 0
	first.end = func() { ended++ }
	second := r.Open("n1", access.Pod{}, func() {})
	take(second, &nodev1.ReportRequest{Full: true, Agent: agent, Pods: []*nodev1.PodState{podState("d", 1)}})
	take(first, &nodev1.ReportRequest{Pods: []*nodev1.PodState{podState("late", 1)}})
	first.Close()
	if n := r.Get("n1", true); fmt.Sprint(uids(n)) != "[d]" || !n.Connected || ended != 1 {
		t.Fatalf("after a newer stream: %v, the older was ended %d times", n, ended)
	}
	second.Close()
	if n := r.Get("n1", true); n.Connected || len(n.Pods) != 1 {
		t.Errorf("after the last stream: %v", n)
	}
	if c := r.Count(); c.Nodes[nodev1.Node_STATE_AWAY] != 1 || len(c.Nodes) != 1 || c.Pods[nodev1.PodState_ENROLMENT_ENROLLED] != 1 {
		t.Errorf("counted %+v", c)
	}
	r.Forget("n1")
	if r.Get("n1", false) != nil {
		t.Error("it is not forgotten")
	}
}

// TestTooManyPods: a node cannot fill the controller.
func TestTooManyPods(t *testing.T) {
	st := NewRegistry(time.Now, nil).Open("n1", access.Pod{}, func() {})
	m := &nodev1.ReportRequest{Full: true, Agent: &nodev1.AgentState{}}
	for i := range maxPods {
		m.Pods = append(m.Pods, podState(fmt.Sprint(i), 1))
	}
	if !st.Take(m) {
		t.Fatal("as many as may be were refused")
	}
	if st.Take(&nodev1.ReportRequest{Pods: []*nodev1.PodState{podState("one more", 1)}}) {
		t.Error("one more was taken in")
	}
}

func TestListNodes(t *testing.T) {
	r := NewRegistry(time.Now, nil)
	for i := range 5 {
		r.Open(fmt.Sprint("n", i), access.Pod{}, func() {}).Take(&nodev1.ReportRequest{Full: true, Agent: &nodev1.AgentState{}, Pods: []*nodev1.PodState{podState("a", 1)}})
	}
	s := NewServer(r, nil)
	var got []string
	for token, more := "", true; more; more = token != "" {
		res, err := s.ListNodes(t.Context(), &nodev1.ListNodesRequest{PageSize: 2, PageToken: token, Nodes: []string{"n0", "n1", "n3", "n4", "n9"}})
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range res.Nodes {
			got = append(got, n.Name)
			if len(n.Pods) != 0 {
				t.Errorf("pods that were not asked for: %v", n)
			}
		}
		token = res.NextPageToken
	}
	if fmt.Sprint(got) != "[n0 n1 n3 n4]" {
		t.Errorf("listed %v", got)
	}
}
