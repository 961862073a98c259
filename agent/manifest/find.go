package manifest

import (
	"context"
	"fmt"

	"conduit.io/conduit/api/kube"
)

// Find reads what has changed in the directory, where the pod may have been described just now.
func (s *Source) Find(context.Context, Name) bool { return s.Scan() }

// Missing says who does not know a pod (noPod), or its Namespace, and what to do about it. A bad manifest is the likely
// cause, and is named.
func (s *Source) Missing(pod Name, noPod, noNamespace bool) (who, hint string) {
	switch {
	case noPod && noNamespace:
		hint = fmt.Sprintf("add a Namespace %q and a Pod %q to a YAML file in %s", pod.Namespace, pod.Name, s.dir)
	case noPod:
		hint = fmt.Sprintf("add a Pod with metadata.namespace %q and metadata.name %q to a YAML file in %s", pod.Namespace, pod.Name, s.dir)
	default:
		hint = fmt.Sprintf("add a Namespace %q to a YAML file in %s, or label the pod %s=enabled or disabled", pod.Namespace, s.dir, kube.LabelMesh)
	}
	if faults := s.Faults(); len(faults) > 0 {
		hint = fmt.Sprintf("%s; %d manifest faults keep files from being read, the first: %s", hint, len(faults), faults[0])
	}
	return "no manifest in " + s.dir + " describes it", hint
}

// Stale says what to do about a Pod that is not the one which the runtime starts.
func (s *Source) Stale() string { return fmt.Sprintf("bring the manifest in %s up to date", s.dir) }
