package nodes

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	nodev1 "conduit.io/conduit/api/nodev1"
	"conduit.io/conduit/control/access"

	"connectrpc.com/connect"
)

// TestReportsAreBounded: long words are cut, for they are written into objects; what is too large otherwise is refused.
func TestReportsAreBounded(t *testing.T) {
	r := NewRegistry(time.Now, nil)
	s, long := NewServer(r, nil), strings.Repeat("ü", 100_000)
	pod := func(change func(p *nodev1.PodState)) []*nodev1.PodState {
		p := &nodev1.PodState{Uid: "u", Namespace: "n", Name: "p"}
		change(p)
		return []*nodev1.PodState{p}
	}
	said := &nodev1.ReportRequest{Full: true, Agent: &nodev1.AgentState{Message: long},
		Pods: pod(func(p *nodev1.PodState) { p.Reason, p.Message = "x"+long, long })}
	if err := s.take(r.Open("n1", access.Pod{}, func() {}), said); err != nil {
		t.Fatal(err)
	}
	n := r.Get("n1", true)
	for what, text := range map[string]string{"reason": n.Pods[0].Reason, "message": n.Pods[0].Message, "agent": n.Agent.Message} {
		if limit := map[string]int{"reason": maxReason, "message": maxText, "agent": maxText}[what]; len(text) > limit || len(text) < limit-1 || !utf8.ValidString(text) {
			t.Errorf("%s has %d bytes, %v", what, len(text), utf8.ValidString(text))
		}
	}
	for what, m := range map[string]*nodev1.ReportRequest{
		"a pod's name": {Full: true, Agent: &nodev1.AgentState{}, Pods: pod(func(p *nodev1.PodState) { p.Name = long })},
		"no uid":       {Full: true, Agent: &nodev1.AgentState{}, Pods: pod(func(p *nodev1.PodState) { p.Uid = "" })},
		"the agent":    {Full: true, Agent: &nodev1.AgentState{Kernel: long}},
	} {
		if err := s.take(r.Open("n2", access.Pod{}, func() {}), m); connect.CodeOf(err) != connect.CodeInvalidArgument {
			t.Errorf("%s: %v", what, err)
		}
	}
	if r.Get("n2", true) != nil {
		t.Error("what was refused is kept")
	}
}
