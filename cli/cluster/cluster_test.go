package cluster

import (
	"testing"

	"conduit.io/conduit/api/kube"
	"conduit.io/conduit/deploy"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

func TestRollouts(t *testing.T) {
	replicas := int32(2)
	for name, tc := range map[string]struct {
		generation int64
		status     appsv1.DeploymentStatus
		ready      int32
	}{
		"not seen yet":          {2, appsv1.DeploymentStatus{ObservedGeneration: 1, Replicas: 2, UpdatedReplicas: 2, AvailableReplicas: 2}, 0},
		"old ones are counted":  {2, appsv1.DeploymentStatus{ObservedGeneration: 2, Replicas: 3, UpdatedReplicas: 1, AvailableReplicas: 2}, 0},
		"an old one still ends": {2, appsv1.DeploymentStatus{ObservedGeneration: 2, Replicas: 3, UpdatedReplicas: 2, AvailableReplicas: 3}, 1},
		"one is not ready":      {2, appsv1.DeploymentStatus{ObservedGeneration: 2, Replicas: 2, UpdatedReplicas: 2, AvailableReplicas: 1}, 1},
		"all":                   {2, appsv1.DeploymentStatus{ObservedGeneration: 2, Replicas: 2, UpdatedReplicas: 2, AvailableReplicas: 2}, 2},
	} {
		d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Generation: tc.generation}, Spec: appsv1.DeploymentSpec{Replicas: &replicas}, Status: tc.status}
		if ready, want := deployed(d); ready != tc.ready || want != 2 {
			t.Errorf("%s: %d of %d ready, want %d of 2", name, ready, want, tc.ready)
		}
	}
	d := &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Generation: 2}, Status: appsv1.DaemonSetStatus{ObservedGeneration: 1, DesiredNumberScheduled: 3,
		UpdatedNumberScheduled: 1, NumberAvailable: 3}}
	if _, _, seen := spread(d); seen {
		t.Error("the status of before was taken for that of now")
	}
	d.Status.ObservedGeneration = 2
	if ready, want, seen := spread(d); ready != 1 || want != 3 || !seen {
		t.Errorf("%d of %d nodes ready, want 1 of 3", ready, want)
	}
}

// What cleans a node runs the installed image, by the agent's rights on the node and no others.
func TestCleaner(t *testing.T) {
	objects, err := deploy.Render(map[string]any{"image": map[string]any{"tag": "v1"}, "cni": map[string]any{"confDir": "/etc/other/net.d"}})
	if err != nil {
		t.Fatal(err)
	}
	var d appsv1.DaemonSet
	for _, o := range objects {
		if o.GetKind() == "DaemonSet" {
			if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, &d); err != nil {
				t.Fatal(err)
			}
		}
	}
	p, err := cleaner("n1", &d)
	if err != nil {
		t.Fatal(err)
	}
	cni, node := p.Spec.InitContainers[0], p.Spec.Containers[0]
	if diff := cmp.Diff([]string{"/usr/bin/conduit-cni", "uninstall", "--conf-dir=/etc/other/net.d", "--bin-dir=/host/cni/bin", "--lock=/run/conduit/cni.lock"}, append(cni.Command, cni.Args...)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"--uninstall"}, node.Args); diff != "" || node.Image != "localhost/conduit-agent:v1" || len(node.Command) > 0 {
		t.Errorf("%s %v %v", node.Image, node.Command, node.Args)
	}
	if p.Spec.NodeName != "n1" || *p.Spec.AutomountServiceAccountToken || !p.Spec.HostNetwork || node.SecurityContext.Privileged != nil {
		t.Errorf("%+v", p.Spec)
	}
	volumes := map[string]bool{}
	for _, v := range p.Spec.Volumes {
		volumes[v.Name] = true
	}
	for _, m := range append(cni.VolumeMounts, node.VolumeMounts...) {
		if !volumes[m.Name] {
			t.Errorf("%s is mounted, and no volume", m.Name)
		}
	}
	d.Spec.Template.Spec.Containers = d.Spec.Template.Spec.Containers[:1]
	if _, err := cleaner("n1", &d); err == nil {
		t.Error("a DaemonSet without the installer was taken for Conduit's")
	}
}

func TestTrouble(t *testing.T) {
	pod := func(s corev1.ContainerStatus) *corev1.Pod {
		s.Name = "agent"
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: corev1.PodSpec{NodeName: "n1"},
			Status: corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{s}}}
	}
	died := corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 1, Message: "one\nthe kernel is too old\n"}}
	for _, tc := range []struct {
		pod  *corev1.Pod
		want string
	}{
		{pod(corev1.ContainerStatus{State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}), ""},
		{pod(corev1.ContainerStatus{State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ContainerCreating"}}}), ""},
		{pod(corev1.ContainerStatus{State: died}), "pod p on node n1: container agent: it ended with exit code 1: the kernel is too old"},
		{pod(corev1.ContainerStatus{State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff"}}, LastTerminationState: died}),
			"pod p on node n1: container agent: it ended with exit code 1: the kernel is too old"},
		{&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Status: corev1.PodStatus{Conditions: []corev1.PodCondition{
			{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Message: "0/3 nodes are available"}}}}, "pod p: 0/3 nodes are available"},
		{&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Status: corev1.PodStatus{Conditions: []corev1.PodCondition{
			{Type: kube.ConditionWired, Status: corev1.ConditionFalse, Reason: "PluginNotInPlace", Message: "nobody keeps it"},
			{Type: corev1.PodReady, Status: corev1.ConditionFalse, Message: "containers with unready status: [agent]"}}}},
			"pod p: containers with unready status: [agent]; the agent says: PluginNotInPlace: nobody keeps it"},
	} {
		if got := Trouble(tc.pod); got != tc.want {
			t.Errorf("%q, want %q", got, tc.want)
		}
	}
}
