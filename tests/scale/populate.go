package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"conduit.io/conduit/api/kube"
	"conduit.io/conduit/deploy"

	authv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// each calls do for 0 to n-1, by so many at a time, and returns the first error.
func each(ctx context.Context, n, workers int, do func(ctx context.Context, i int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var next atomic.Int64
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n && ctx.Err() == nil; i = int(next.Add(1)) - 1 {
				if err := do(ctx, i); err != nil {
					cancel(err)
				}
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

// populate writes all objects of the town, with what kubelets and controllers of Kubernetes would write. It returns the UIDs of
// the pods, and how many writes it took.
func (s *site) populate(ctx context.Context, t town, writers int) (uids []types.UID, written int, err error) {
	namespaces := (t.services() + perNamespace - 1) / perNamespace
	err = each(ctx, namespaces, writers, func(ctx context.Context, i int) error {
		_, err := s.client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespaceOf(i * perNamespace),
			Labels: map[string]string{kube.LabelMesh: kube.Enabled}}}, metav1.CreateOptions{})
		return err
	})
	if err != nil {
		return nil, 0, err
	}
	if err := os.MkdirAll(filepath.Join(s.dir, "tokens"), 0o755); err != nil {
		return nil, 0, err
	}
	err = each(ctx, t.nodes, writers, func(ctx context.Context, n int) error {
		if err := s.node(ctx, n); err != nil {
			return fmt.Errorf("node %d: %w", n, err)
		}
		return s.agentPod(ctx, n)
	})
	if err != nil {
		return nil, 0, err
	}
	uids = make([]types.UID, t.pods())
	err = each(ctx, t.services(), writers, func(ctx context.Context, i int) error {
		if err := s.service(ctx, t, i, uids); err != nil {
			return fmt.Errorf("service %d: %w", i, err)
		}
		return nil
	})
	return uids, namespaces + 5*t.nodes + 2*t.services() + 2*t.pods(), err
}

func (s *site) node(ctx context.Context, n int) error {
	o, err := s.client.CoreV1().Nodes().Create(ctx, &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: nodeName(n), Labels: map[string]string{corev1.LabelTopologyZone: fmt.Sprint("zone-", n%3)}},
		Spec:       corev1.NodeSpec{Taints: []corev1.Taint{{Key: kube.TaintNotReady, Effect: corev1.TaintEffectNoSchedule}}}}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	o.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: nodeAddr(n).String()}}
	_, err = s.client.CoreV1().Nodes().UpdateStatus(ctx, o, metav1.UpdateOptions{})
	return err
}

// agentPod is the pod that the agent's token is bound to. The token goes into a file.
func (s *site) agentPod(ctx context.Context, n int) error {
	o, err := s.pod(ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: agentName(n), Namespace: deploy.Namespace},
		Spec: corev1.PodSpec{NodeName: nodeName(n), HostNetwork: true, ServiceAccountName: deploy.Agent}}, nodeAddr(n).String())
	if err != nil {
		return err
	}
	token, err := s.token(ctx, deploy.Agent, "conduit", &authv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: o.Name, UID: o.UID})
	if err != nil {
		return err
	}
	return os.WriteFile(s.tokenFile(n), []byte(token), 0o600)
}

func (s *site) tokenFile(n int) string { return filepath.Join(s.dir, "tokens", nodeName(n)) }

// pod creates one that runs.
func (s *site) pod(ctx context.Context, o *corev1.Pod, ip string) (*corev1.Pod, error) {
	o.Spec.Containers = []corev1.Container{{Name: "app", Image: "registry.example/app:v1"}}
	o, err := s.client.CoreV1().Pods(o.Namespace).Create(ctx, o, metav1.CreateOptions{})
	if err != nil {
		return nil, err
	}
	now := metav1.NewTime(time.Now())
	o.Status.Phase, o.Status.StartTime = corev1.PodRunning, &now
	o.Status.PodIP, o.Status.PodIPs = ip, []corev1.PodIP{{IP: ip}}
	o.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: now}}
	return s.client.CoreV1().Pods(o.Namespace).UpdateStatus(ctx, o, metav1.UpdateOptions{})
}

// service writes a service, its pods, and the slice of their endpoints.
func (s *site) service(ctx context.Context, t town, i int, uids []types.UID) error {
	ns, name, port := namespaceOf(i), serviceName(i), int32(8080)
	labels := map[string]string{"app": name, "pod-template-hash": "6d4cf56db6"}
	_, err := s.client.CoreV1().Services(ns).Create(ctx, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.ServiceSpec{ClusterIP: serviceAddr(i).String(), Selector: map[string]string{"app": name},
			Ports: []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromInt32(port)}}}}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	slice := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Name: name + "-1", Labels: map[string]string{discoveryv1.LabelServiceName: name,
		discoveryv1.LabelManagedBy: "endpointslice-controller.k8s.io"}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: new("http"), Port: &port, Protocol: new(corev1.ProtocolTCP)}}}
	for p := i * podsPerService; p < (i+1)*podsPerService; p++ {
		o, err := s.pod(ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: podName(p), Namespace: ns, Labels: labels,
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: name + "-6d4cf56db6", UID: types.UID("rs-" + name), Controller: new(true)}}},
			Spec: corev1.PodSpec{NodeName: nodeName(t.nodeOf(p)), ServiceAccountName: name}}, podAddr(p).String())
		if err != nil {
			return err
		}
		uids[p] = o.UID
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{podAddr(p).String()}, NodeName: new(nodeName(t.nodeOf(p))),
			Zone: new(fmt.Sprint("zone-", t.nodeOf(p)%3)), Conditions: discoveryv1.EndpointConditions{Ready: new(true), Serving: new(true), Terminating: new(false)},
			TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: ns, Name: o.Name, UID: o.UID}})
	}
	_, err = s.client.DiscoveryV1().EndpointSlices(ns).Create(ctx, slice, metav1.CreateOptions{})
	return err
}
