package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"conduit.io/conduit/api/kube"
	"conduit.io/conduit/cli/output"
	"conduit.io/conduit/deploy"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
)

const cleanerLabels = deploy.PartOf + ",app.kubernetes.io/name=conduit,app.kubernetes.io/component=uninstall"

// maxSaid bounds what is read of a cleaning pod's log, in bytes.
const maxSaid = 64 << 10

// agents is the DaemonSet as it is, or as this version would make it when there is none any more: an uninstall may have been
// interrupted.
func (c *Cluster) agents(ctx context.Context) (*appsv1.DaemonSet, error) {
	d, err := c.Client.AppsV1().DaemonSets(deploy.Namespace).Get(ctx, deploy.Agent, metav1.GetOptions{})
	if err == nil || !apierrors.IsNotFound(err) {
		return d, err
	}
	r, _, err := c.Record(ctx)
	if err != nil {
		return nil, err
	}
	objects, err := deploy.Render(r.Values)
	if err != nil {
		return nil, err
	}
	for _, o := range objects {
		if o.GetKind() == "DaemonSet" && o.GetName() == deploy.Agent {
			d = &appsv1.DaemonSet{}
			return d, runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, d)
		}
	}
	return nil, errors.New("the chart has no DaemonSet of agents")
}

// nodesOf is the nodes that may have something of Conduit: those that agents run on, or could have.
func (c *Cluster) nodesOf(ctx context.Context, d *appsv1.DaemonSet) ([]string, error) {
	list, err := c.Client.CoreV1().Nodes().List(ctx, metav1.ListOptions{LabelSelector: labels.SelectorFromSet(d.Spec.Template.Spec.NodeSelector).String()})
	if err != nil {
		return nil, explain("list nodes", err)
	}
	var names []string
	for i := range list.Items {
		names = append(names, list.Items[i].Name)
	}
	return names, nil
}

// cleaner is a pod that takes Conduit off a node: first the CNI plugin, so that pods start without it, then everything
// else. It is made of the agent's own pod, so that it finds what that has left.
func cleaner(node string, d *appsv1.DaemonSet) (*corev1.Pod, error) {
	of := d.Spec.Template.Spec
	cni, ok1 := container(of, "cni")
	agent, ok2 := container(of, "agent")
	if !ok1 || !ok2 || len(cni.Command) != 2 {
		return nil, fmt.Errorf("DaemonSet %s has not the containers agent and cni: it is not of this version", deploy.Agent)
	}
	cni.Command = []string{cni.Command[0], "uninstall"}
	cni.VolumeMounts = slices.DeleteFunc(cni.VolumeMounts, func(m corev1.VolumeMount) bool { return m.Name == "run" })
	agent.Args = []string{"--uninstall"}
	// With what is above its directories, which it removes.
	agent.VolumeMounts = []corev1.VolumeMount{{Name: "run", MountPath: "/run", MountPropagation: new(corev1.MountPropagationHostToContainer)},
		{Name: "bpffs", MountPath: "/sys/fs/bpf"}, {Name: "netns", MountPath: "/var/run/netns", MountPropagation: new(corev1.MountPropagationHostToContainer)}}
	for _, c := range []*corev1.Container{&cni, &agent} {
		c.Env, c.StartupProbe, c.LivenessProbe, c.ReadinessProbe = nil, nil, nil, nil
	}
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "conduit-uninstall-", Namespace: deploy.Namespace, Labels: map[string]string{
			kube.LabelInstallation: kube.Installation, "app.kubernetes.io/name": "conduit", "app.kubernetes.io/component": "uninstall", "app.kubernetes.io/part-of": "conduit"}},
		Spec: corev1.PodSpec{
			NodeName: node, RestartPolicy: corev1.RestartPolicyNever, HostNetwork: true, AutomountServiceAccountToken: new(bool),
			Tolerations: []corev1.Toleration{{Operator: corev1.TolerationOpExists}}, PriorityClassName: of.PriorityClassName,
			ImagePullSecrets: of.ImagePullSecrets, SecurityContext: of.SecurityContext,
			InitContainers: []corev1.Container{cni}, Containers: []corev1.Container{agent},
		},
	}
	for _, v := range of.Volumes {
		if v.Name == "cni-conf" || v.Name == "cni-bin" || v.Name == "netns" {
			pod.Spec.Volumes = append(pod.Spec.Volumes, v)
		}
	}
	for name, path := range map[string]string{"run": "/run", "bpffs": "/sys/fs/bpf"} {
		pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{
			HostPath: &corev1.HostPathVolumeSource{Path: path, Type: new(corev1.HostPathDirectory)}}})
	}
	return pod, nil
}

func container(spec corev1.PodSpec, name string) (corev1.Container, bool) {
	i := slices.IndexFunc(spec.Containers, func(c corev1.Container) bool { return c.Name == name })
	if i < 0 {
		return corev1.Container{}, false
	}
	return *spec.Containers[i].DeepCopy(), true
}

// clean takes Conduit off all nodes, and says what each of them proves. It fails when one of them does not.
func (c *Cluster) clean(ctx context.Context, nodes []string, d *appsv1.DaemonSet, say func(string)) error {
	pods := c.Client.CoreV1().Pods(deploy.Namespace)
	if err := c.removeCleaners(ctx); err != nil { // of an uninstall that was interrupted
		return err
	}
	left := map[string]string{} // pod to node
	for _, node := range nodes {
		pod, err := cleaner(node, d)
		if err != nil {
			return err
		}
		if pod, err = pods.Create(ctx, pod, metav1.CreateOptions{}); err != nil {
			return explain("clean node "+node, err)
		}
		left[pod.Name] = node
	}
	err := await(ctx, say, func(ctx context.Context) (string, bool, error) {
		list, err := pods.List(ctx, metav1.ListOptions{LabelSelector: cleanerLabels})
		if err != nil {
			return "", false, err
		}
		for i := range list.Items {
			p := &list.Items[i]
			node, waiting := left[p.Name]
			switch {
			case !waiting:
			case p.Status.Phase == corev1.PodFailed:
				return "", false, c.dirty(ctx, node, p)
			case p.Status.Phase == corev1.PodSucceeded:
				delete(left, p.Name)
				say("node " + node + ": " + c.lastWord(ctx, p))
			}
		}
		return "", len(left) == 0, nil
	})
	if errors.Is(err, context.DeadlineExceeded) {
		return c.unreached(left)
	}
	if err != nil {
		return err
	}
	return c.removeCleaners(ctx)
}

// unreached says which nodes did not answer in time.
func (c *Cluster) unreached(left map[string]string) error {
	var names []string
	for _, node := range left {
		names = append(names, node)
	}
	slices.Sort(names)
	return &output.Problem{What: "not cleaned in time: " + strings.Join(names, ", "), Cause: "these nodes do not run pods, or have not the agent's image",
		Next: "conduit uninstall --apply once more, when they are back; or on each of them: conduit-cni uninstall && conduit-agent --uninstall"}
}

// dirty says what a node could not be cleaned of.
func (c *Cluster) dirty(ctx context.Context, node string, p *corev1.Pod) error {
	return &output.Problem{What: "node " + node + " is not clean", Cause: c.lastWord(ctx, p),
		Next: "kubectl -n " + deploy.Namespace + " logs --all-containers " + p.Name}
}

// lastWord is the last line that a cleaning pod has written.
func (c *Cluster) lastWord(ctx context.Context, p *corev1.Pod) string {
	name := p.Spec.Containers[0].Name
	for _, s := range p.Status.InitContainerStatuses {
		if s.State.Terminated != nil && s.State.Terminated.ExitCode != 0 {
			name = s.Name
		}
	}
	limit, lines := int64(maxSaid), int64(20)
	said, err := c.Client.CoreV1().Pods(p.Namespace).GetLogs(p.Name, &corev1.PodLogOptions{Container: name, LimitBytes: &limit, TailLines: &lines}).DoRaw(ctx)
	if err != nil {
		return "its log cannot be read: " + err.Error()
	}
	all := strings.Split(strings.TrimSpace(string(said)), "\n")
	return all[len(all)-1]
}

func (c *Cluster) removeCleaners(ctx context.Context) error {
	now := int64(0)
	err := c.Client.CoreV1().Pods(deploy.Namespace).DeleteCollection(ctx, metav1.DeleteOptions{GracePeriodSeconds: &now}, metav1.ListOptions{LabelSelector: cleanerLabels})
	if err != nil && !apierrors.IsNotFound(err) {
		return explain("remove the pods that clean nodes", err)
	}
	return nil
}
