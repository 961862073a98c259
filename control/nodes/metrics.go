package nodes

import (
	"fmt"
	"io"
	"strings"

	nodev1 "conduit.io/conduit/api/nodev1"
)

// Write writes the registry's metrics in the Prometheus text exposition format. Replicas that do not lead have no nodes.
func (r *Registry) Write(w io.Writer) {
	c := r.Count()
	const nodes, pods = "conduit_nodes", "conduit_node_pods"
	fmt.Fprintf(w, "# HELP %s Nodes that have reported to this replica, by state.\n# TYPE %s gauge\n", nodes, nodes)
	for s := nodev1.Node_STATE_READY; s <= nodev1.Node_STATE_AWAY; s++ {
		fmt.Fprintf(w, "%s{state=%q} %d\n", nodes, strings.ToLower(strings.TrimPrefix(s.String(), "STATE_")), c.Nodes[s])
	}
	fmt.Fprintf(w, "# HELP %s Pods that they have reported, by enrolment.\n# TYPE %s gauge\n", pods, pods)
	for e := nodev1.PodState_ENROLMENT_ENROLLED; e <= nodev1.PodState_ENROLMENT_BYPASSED; e++ {
		word := strings.ToLower(strings.TrimPrefix(e.String(), "ENROLMENT_"))
		fmt.Fprintf(w, "%s{enrolment=%q} %d\n", pods, word, c.Pods[e])
	}
}

// Write writes the writer's metrics in the Prometheus text exposition format.
func (w *Writer) Write(out io.Writer) {
	const name = "conduit_node_reports_refused_total"
	fmt.Fprintf(out, "# HELP %s Looks at reported pods that are of another node than the agent's: nothing is written of them.\n# TYPE %s counter\n%s %d\n",
		name, name, name, w.foreign.Load())
}
