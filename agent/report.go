package agent

import (
	"context"
	"crypto/rand"
	"fmt"
	"time"

	"conduit.io/conduit/agent/controlplane"
	"conduit.io/conduit/agent/enrol"
	"conduit.io/conduit/agent/manifest"
	"conduit.io/conduit/agent/proxylink"
	"conduit.io/conduit/api/kube"
	"conduit.io/conduit/api/nodev1"
	"conduit.io/conduit/identity"
	"conduit.io/conduit/mesh"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"
	corev1 "k8s.io/api/core/v1"
)

// observer sees for the controller what there is on the node.
type observer struct {
	instance   string
	started    time.Time
	kernel     string
	objects    enrol.Objects
	manager    *enrol.Manager
	ready      readiness
	supervisor *proxylink.Supervisor
	directory  *controlplane.Directory
	passed     bypasses
}

func newObserver(w *surroundings, ready readiness, s *proxylink.Supervisor, told bypasses) *observer {
	o := &observer{instance: rand.Text(), started: time.Now(), objects: w.objects, manager: ready.manager, ready: ready, supervisor: s, directory: w.directory, passed: told}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		o.kernel = unix.ByteSliceToString(u.Release[:])
	}
	return o
}

func (o *observer) look(ctx context.Context) controlplane.Report {
	return controlplane.Report{Agent: o.agent(ctx), Pods: o.pods()}
}

func (o *observer) agent(ctx context.Context) *nodev1.AgentState {
	follows := o.directory.Status()
	a := &nodev1.AgentState{
		Version: mesh.Version(), Instance: o.instance, StartedAt: timestamppb.New(o.started), Kernel: o.kernel, Ready: true,
		Proxy:          &nodev1.ProxyState{Starts: uint32(o.supervisor.Served())},
		DiscoveryEpoch: follows.Epoch, DiscoveryVersion: follows.Version,
	}
	if l := o.manager.Link(); l != nil {
		a.Proxy.Up, a.Proxy.Version = true, l.Hello().Build
	}
	certificates := o.manager.Summary().Certificates
	if !certificates.Expiry.IsZero() {
		a.CertificatesExpireAt = timestamppb.New(certificates.Expiry)
	}
	if reason, err := o.ready.check(ctx); err != nil {
		a.Ready, a.Reason, a.Message = false, reason, err.Error()
	} else {
		a.Reason, a.Message = overdue(certificates, time.Now())
	}
	return a
}

// overdueWithin is how long before the end of a certificate it is an alarm that there is none to follow it: they are renewed when a third
// of their life is left.
const overdueWithin = identity.LeafLife / 4

// overdue says that certificates are not renewed, and will soon have ended; empty: it is not so.
func overdue(c identity.Summary, now time.Time) (reason, message string) {
	if c.Fault == nil || c.Expiry.Sub(now) > overdueWithin {
		return "", ""
	}
	return "CertificatesNotRenewed", fmt.Sprintf("the first certificate ends at %s, and is not renewed: %v", c.Expiry.UTC().Format(time.RFC3339), c.Fault)
}

// pods are those that have been wired, as the kernel has them, and those that are to be and cannot.
func (o *observer) pods() []*nodev1.PodState {
	objects, _ := o.objects.Objects()
	wired, err := o.manager.Pods()
	if err != nil {
		return nil // without the kernel's word nobody is enrolled
	}
	seen, strays := map[string]bool{}, o.manager.Strays()
	var out []*nodev1.PodState
	for i := range wired {
		p := podState(&wired[i])
		if seen[p.Uid] {
			continue // an older sandbox of the same pod
		}
		seen[p.Uid] = true
		if d := objects.Pods[manifest.Name{Namespace: p.Namespace, Name: p.Name}]; d != nil && string(d.UID) == p.Uid {
			p.ObservedGeneration = d.Generation
			if p.Enrolment == nodev1.PodState_ENROLMENT_NOT_MESHED && optedOut(objects, d) {
				p.Reason, p.Message = reasonOptedOut, messageOptedOut
			}
		}
		out = append(out, p)
	}
	for _, d := range objects.Pods {
		if p := unwired(objects, d, strays); p != nil && !seen[p.Uid] {
			out = append(out, p)
		}
	}
	o.passed.look(out, time.Now())
	return out
}

// podState is the state of a pod that was wired, or is remembered so that it can be.
func podState(s *enrol.PodStatus) *nodev1.PodState {
	p := &nodev1.PodState{Uid: s.UID, Namespace: s.Namespace, Name: s.Name, Message: s.Error,
		Sockets: &nodev1.Sockets{Created: s.Counters.Created, Steered: s.Counters.Steered, Bypassed: s.Counters.Bypassed}}
	switch {
	case s.Enrolled:
		p.Enrolment = nodev1.PodState_ENROLMENT_ENROLLED
	case s.Leaving:
		p.Enrolment = nodev1.PodState_ENROLMENT_LEAVING
	case s.Wanted:
		p.Enrolment = nodev1.PodState_ENROLMENT_PENDING
	default:
		p.Enrolment = nodev1.PodState_ENROLMENT_NOT_MESHED
	}
	return p
}

// wantedBy reports whether the pod's namespace asks for its pods to be in the mesh.
func wantedBy(objects *manifest.Objects, d *corev1.Pod) bool {
	ns := objects.Namespaces[d.Namespace]
	return ns != nil && kube.Says(ns).Mesh == kube.Enabled
}

const (
	reasonOptedOut  = "OptedOut"
	messageOptedOut = "its label " + kube.LabelMesh + " wins over that of its namespace"
)

// optedOut reports whether the pod stays out of the mesh that its namespace is in.
func optedOut(objects *manifest.Objects, d *corev1.Pod) bool {
	return kube.Says(d).Mesh == kube.Disabled && wantedBy(objects, d)
}

// unwired is the state of a pod of which nobody has told: one that is to be in the mesh, or opted out of it; nil for any other.
func unwired(objects *manifest.Objects, d *corev1.Pod, strays map[manifest.Name]enrol.Stray) *nodev1.PodState {
	says := kube.Says(d).Mesh
	wanted := says == kube.Enabled || says == "" && wantedBy(objects, d)
	if !wanted && !optedOut(objects, d) || kube.Ended(d) {
		return nil
	}
	p := &nodev1.PodState{Uid: string(d.UID), Namespace: d.Namespace, Name: d.Name, ObservedGeneration: d.Generation}
	stray, found := strays[manifest.Name{Namespace: d.Namespace, Name: d.Name}]
	switch {
	case !wanted:
		p.Enrolment, p.Reason, p.Message = nodev1.PodState_ENROLMENT_NOT_MESHED, reasonOptedOut, messageOptedOut
	case d.Spec.HostNetwork:
		p.Enrolment, p.Reason = nodev1.PodState_ENROLMENT_REFUSED, "HostNetwork"
		p.Message = "a pod on the node's own network shares its addresses, and cannot be told from the node"
	case found:
		p.Enrolment, p.Reason, p.Message = nodev1.PodState_ENROLMENT_PENDING, stray.Reason, stray.Message
	default:
		p.Enrolment, p.Reason = nodev1.PodState_ENROLMENT_PENDING, "NoNetwork"
		p.Message = "the agent does not know its network yet"
	}
	return p
}
