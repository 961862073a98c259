package controlplane

import (
	"fmt"
	"testing"

	"conduit.io/conduit/api/nodev1"
)

func seen(uid string, steered uint64) *nodev1.PodState {
	return &nodev1.PodState{Uid: uid, Sockets: &nodev1.Sockets{Steered: steered}}
}

// said is which pods a message has, and which it takes away.
func said(m *nodev1.ReportRequest) string {
	var uids []string
	for _, p := range m.Pods {
		uids = append(uids, p.Uid)
	}
	return fmt.Sprint(uids, m.RemovedPods)
}

func TestOnlyWhatIsNewIsTold(t *testing.T) {
	var s told
	agent := &nodev1.AgentState{Version: "v"}
	for i, step := range []struct {
		pods []*nodev1.PodState
		want string
	}{
		{[]*nodev1.PodState{seen("a", 1), seen("b", 1)}, "[a b] []"},
		{[]*nodev1.PodState{seen("a", 1), seen("b", 1)}, "[] []"}, // the agent is told of all the same: it lives
		{[]*nodev1.PodState{seen("b", 2), seen("c", 1)}, "[b c] [a]"},
		{nil, "[] [b c]"},
		{nil, "[] []"},
	} {
		out := s.tell(Report{Agent: agent, Pods: step.pods})
		if len(out) != 1 || said(out[0]) != step.want || out[0].Full != (i == 0) || out[0].Agent != agent {
			t.Errorf("step %d: %v, want %s", i, out, step.want)
		}
	}
}

func TestManyPodsAreToldInParts(t *testing.T) {
	var s told
	var pods []*nodev1.PodState
	for i := range 2*maxReport + 1 {
		pods = append(pods, seen(fmt.Sprint(i), 0))
	}
	out := s.tell(Report{Agent: &nodev1.AgentState{}, Pods: pods})
	if len(out) != 3 || !out[0].Full || out[1].Full || out[1].Agent != nil ||
		len(out[0].Pods) != maxReport || len(out[1].Pods) != maxReport || len(out[2].Pods) != 1 {
		t.Errorf("%d messages", len(out))
	}
}
