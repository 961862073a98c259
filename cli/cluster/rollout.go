package cluster

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"conduit.io/conduit/api/kube"
	"conduit.io/conduit/cli/output"
	"conduit.io/conduit/deploy"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
)

// pollEvery is the pause between two looks at something that is awaited.
const pollEvery = 250 * time.Millisecond

// rootsName is the ConfigMap that the controller makes, and that agents know it by.
const rootsName = "conduit-trust-roots"

// await calls look until it is done, an error, or ctx ends. It says what look says, when that is new. Errors of the API server that
// may pass are waited out: it may be restarting.
func await(ctx context.Context, say func(string), look func(context.Context) (state string, done bool, err error)) error {
	last := ""
	return wait.PollUntilContextCancel(ctx, pollEvery, true, func(ctx context.Context) (bool, error) {
		state, done, err := look(ctx)
		switch {
		case err != nil && over(ctx): // which is what the error is about, in words of its own
			return false, context.DeadlineExceeded
		case err != nil && passing(err):
			return false, nil
		case err != nil:
			return false, err
		}
		if state != last && state != "" {
			say(state)
		}
		last = state
		return done, nil
	})
}

// over reports whether the time of ctx has come, though ctx may not say so yet: clients look at the time themselves.
func over(ctx context.Context) bool {
	end, limited := ctx.Deadline()
	return ctx.Err() == nil && limited && !time.Now().Before(end) || errors.Is(ctx.Err(), context.DeadlineExceeded)
}

// passing reports whether asking again may help.
func passing(err error) bool {
	if apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err) || apierrors.IsNotFound(err) {
		return false
	}
	var p *output.Problem
	return !errors.As(err, &p)
}

// AwaitController waits until all replicas of the controller are what was applied last, and the trust bundle is published.
func (c *Cluster) AwaitController(ctx context.Context, say func(string)) error {
	err := await(ctx, say, func(ctx context.Context) (string, bool, error) {
		d, err := c.Client.AppsV1().Deployments(deploy.Namespace).Get(ctx, deploy.Controller, metav1.GetOptions{})
		if err != nil {
			return "", false, err
		}
		ready, want := deployed(d)
		return fmt.Sprintf("%s: %d of %d ready", deploy.Controller, ready, want), ready == want, nil
	})
	if err == nil {
		err = await(ctx, say, func(ctx context.Context) (string, bool, error) {
			_, err := c.Client.CoreV1().ConfigMaps(deploy.Namespace).Get(ctx, rootsName, metav1.GetOptions{})
			if apierrors.IsNotFound(err) {
				return "waiting for the trust bundle", false, nil
			}
			return "", err == nil, err
		})
	}
	return c.late(err, "the controller is not ready", "controller")
}

// deployed is how many replicas are ready with what was applied last, and how many there shall be.
func deployed(d *appsv1.Deployment) (ready, want int32) {
	want = 1
	if d.Spec.Replicas != nil {
		want = *d.Spec.Replicas
	}
	s := d.Status
	if s.ObservedGeneration < d.Generation {
		return 0, want
	}
	return max(0, min(s.UpdatedReplicas, s.AvailableReplicas)-(s.Replicas-s.UpdatedReplicas)), want
}

// AwaitAgents waits until every node that shall have an agent has one as it was applied last.
func (c *Cluster) AwaitAgents(ctx context.Context, say func(string)) error {
	err := await(ctx, say, func(ctx context.Context) (string, bool, error) {
		d, err := c.Client.AppsV1().DaemonSets(deploy.Namespace).Get(ctx, deploy.Agent, metav1.GetOptions{})
		if err != nil {
			return "", false, err
		}
		ready, want, seen := spread(d)
		if !seen {
			return "", false, nil
		}
		return fmt.Sprintf("%s: %d of %d nodes ready", deploy.Agent, ready, want), ready == want && want > 0, nil
	})
	return c.late(err, "not every node has an agent that is ready", "agent")
}

// spread is how many nodes are ready with what was applied last, and how many there shall be, once that has been seen.
func spread(d *appsv1.DaemonSet) (ready, want int32, seen bool) {
	s := d.Status
	if s.ObservedGeneration < d.Generation {
		return 0, 0, false
	}
	return min(s.UpdatedNumberScheduled, s.NumberAvailable), s.DesiredNumberScheduled, true
}

// late turns the end of the time into what is known of the pods that it was waited for.
func (c *Cluster) late(err error, what, component string) error {
	if err == nil || !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	p := &output.Problem{What: what + " in time", Next: "kubectl -n " + deploy.Namespace + " describe pods -l app.kubernetes.io/component=" + component}
	pods, err := c.Client.CoreV1().Pods(deploy.Namespace).List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=conduit,app.kubernetes.io/component=" + component})
	if err != nil {
		p.Cause = "and its pods cannot be read: " + err.Error()
		return p
	}
	for i := range pods.Items {
		if why := Trouble(&pods.Items[i]); why != "" {
			p.Cause = why
			return p
		}
	}
	if len(pods.Items) == 0 {
		p.Cause = "there is no pod: a quota or an admission webhook may refuse them"
		p.Next = "kubectl -n " + deploy.Namespace + " get events"
	}
	return p
}

// Trouble says why a pod is not ready; empty: it is, or nothing is known.
func Trouble(pod *corev1.Pod) string {
	who := "pod " + pod.Name
	if pod.Spec.NodeName != "" {
		who += " on node " + pod.Spec.NodeName
	}
	for _, s := range append(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses...) {
		if why := stuck(s); why != "" {
			return who + ": container " + s.Name + ": " + why
		}
	}
	for _, cond := range pod.Status.Conditions {
		unmet := cond.Status != corev1.ConditionTrue
		if unmet && cond.Message != "" && (cond.Type == corev1.PodScheduled || cond.Type == corev1.PodReady) {
			return who + ": " + cond.Message + Unwired(pod, "; the agent says: ")
		}
	}
	return ""
}

// Unwired is, after a prefix, what an agent's pod says of why its node is not wired; empty: nothing.
func Unwired(pod *corev1.Pod, prefix string) string {
	for _, cond := range pod.Status.Conditions {
		if cond.Type == kube.ConditionWired && cond.Status != corev1.ConditionTrue {
			return prefix + strings.TrimSuffix(cond.Reason+": "+cond.Message, ": ")
		}
	}
	return ""
}

// stuck says why a container does not run.
func stuck(s corev1.ContainerStatus) string {
	said := func(t *corev1.ContainerStateTerminated) string {
		if t == nil || t.ExitCode == 0 {
			return ""
		}
		why := fmt.Sprintf("it ended with exit code %d", t.ExitCode)
		if lines := strings.Split(strings.TrimSpace(t.Message), "\n"); lines[len(lines)-1] != "" {
			why += ": " + lines[len(lines)-1]
		}
		return why
	}
	if why := said(s.State.Terminated); why != "" {
		return why
	}
	w := s.State.Waiting
	if w == nil {
		return ""
	}
	if why := said(s.LastTerminationState.Terminated); why != "" {
		return why
	}
	switch w.Reason {
	case "ContainerCreating", "PodInitializing":
		return ""
	case "ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull":
		return strings.TrimSpace(w.Reason + ": " + w.Message + " (images of `make images` are imported into each node's container runtime)")
	}
	return strings.TrimSpace(w.Reason + ": " + w.Message)
}
