package agent

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"conduit.io/conduit/agent/enrol"
	"conduit.io/conduit/agent/manifest"
	"conduit.io/conduit/api/kube"
	"conduit.io/conduit/api/nodev1"
	"conduit.io/conduit/identity"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestPodState(t *testing.T) {
	for _, tc := range []struct {
		status enrol.PodStatus
		want   nodev1.PodState_Enrolment
	}{
		{enrol.PodStatus{Wanted: true, Enrolled: true}, nodev1.PodState_ENROLMENT_ENROLLED},
		{enrol.PodStatus{Enrolled: true}, nodev1.PodState_ENROLMENT_ENROLLED}, // the kernel's word counts
		{enrol.PodStatus{Wanted: true}, nodev1.PodState_ENROLMENT_PENDING},
		{enrol.PodStatus{Leaving: true}, nodev1.PodState_ENROLMENT_LEAVING},
		{enrol.PodStatus{}, nodev1.PodState_ENROLMENT_NOT_MESHED},
	} {
		if got := podState(&tc.status).Enrolment; got != tc.want {
			t.Errorf("%+v is %v, want %v", tc.status, got, tc.want)
		}
	}
}

// Certificates that are not renewed are an alarm before they end, and not when it was the first try that failed.
func TestCertificatesThatAreNotRenewed(t *testing.T) {
	now, fault := time.Now(), errors.New("there is no issuer yet")
	for _, tc := range []struct {
		name  string
		c     identity.Summary
		alarm bool
	}{
		{"none", identity.Summary{}, false},
		{"fresh", identity.Summary{Expiry: now.Add(identity.LeafLife)}, false},
		{"time to renew it, and no luck yet", identity.Summary{Expiry: now.Add(identity.LeafLife / 3), Fault: fault}, false},
		{"no luck for hours", identity.Summary{Expiry: now.Add(identity.LeafLife / 5), Fault: fault}, true},
		{"over", identity.Summary{Expiry: now.Add(-time.Minute), Fault: fault}, true},
		{"as short as its issuer's", identity.Summary{Expiry: now.Add(time.Hour)}, false},
	} {
		reason, message := overdue(tc.c, now)
		if (reason == "CertificatesNotRenewed") != tc.alarm || tc.alarm != strings.Contains(message, fault.Error()) {
			t.Errorf("%s: %q, %q", tc.name, reason, message)
		}
	}
}

func TestUnwired(t *testing.T) {
	mesh := func(v string) metav1.ObjectMeta {
		return metav1.ObjectMeta{Namespace: "shop", Name: "web", UID: "u", Generation: 3, Labels: map[string]string{kube.LabelMesh: v}}
	}
	meshed := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop", Labels: map[string]string{kube.LabelMesh: kube.Enabled}}}
	strays := map[manifest.Name]enrol.Stray{{Namespace: "shop", Name: "lost"}: {Reason: "NetworkNotFound", Message: "nobody knows it"}}
	lost := mesh("")
	lost.Name = "lost"
	running, pending, over := corev1.PodStatus{Phase: corev1.PodRunning}, corev1.PodStatus{Phase: corev1.PodPending}, corev1.PodStatus{Phase: corev1.PodSucceeded}
	for _, tc := range []struct {
		name   string
		ns     *corev1.Namespace
		pod    corev1.Pod
		reason string // empty: nothing is said of the pod
		as     nodev1.PodState_Enrolment
	}{
		{"not asked for", nil, corev1.Pod{ObjectMeta: mesh(""), Status: running}, "", 0},
		{"opted out", meshed, corev1.Pod{ObjectMeta: mesh(kube.Disabled), Status: running}, "OptedOut", nodev1.PodState_ENROLMENT_NOT_MESHED},
		{"opted out of nothing", nil, corev1.Pod{ObjectMeta: mesh(kube.Disabled), Status: running}, "", 0},
		{"opted out on the host network", meshed, corev1.Pod{ObjectMeta: mesh(kube.Disabled), Spec: corev1.PodSpec{HostNetwork: true}, Status: running}, "OptedOut", nodev1.PodState_ENROLMENT_NOT_MESHED},
		{"opted out and over", meshed, corev1.Pod{ObjectMeta: mesh(kube.Disabled), Status: over}, "", 0},
		{"a label that says nothing", meshed, corev1.Pod{ObjectMeta: mesh("perhaps"), Status: running}, "NoNetwork", nodev1.PodState_ENROLMENT_PENDING},
		{"over", meshed, corev1.Pod{ObjectMeta: mesh(""), Status: over}, "", 0},
		{"host network", meshed, corev1.Pod{ObjectMeta: mesh(""), Spec: corev1.PodSpec{HostNetwork: true}, Status: running}, "HostNetwork", nodev1.PodState_ENROLMENT_REFUSED},
		{"before the plugin", meshed, corev1.Pod{ObjectMeta: lost, Status: running}, "NetworkNotFound", nodev1.PodState_ENROLMENT_PENDING},
		{"by its own label", nil, corev1.Pod{ObjectMeta: mesh(kube.Enabled), Status: pending}, "NoNetwork", nodev1.PodState_ENROLMENT_PENDING},
	} {
		t.Run(tc.name, func(t *testing.T) {
			objects := &manifest.Objects{Namespaces: map[string]*corev1.Namespace{}}
			if tc.ns != nil {
				objects.Namespaces["shop"] = tc.ns
			}
			switch p := unwired(objects, &tc.pod, strays); {
			case tc.reason == "" && p != nil:
				t.Errorf("%v", p)
			case tc.reason != "" && (p == nil || p.Reason != tc.reason || p.Enrolment != tc.as || p.ObservedGeneration != 3 || p.Message == ""):
				t.Errorf("%v", p)
			}
		})
	}
}

func TestBypassesAreNoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bypasses
		later := func(d time.Duration) { <-time.After(d) } // on the bubble's clock
		see := func(unseen, local uint64) *nodev1.PodState {
			p := &nodev1.PodState{Uid: "u", Enrolment: nodev1.PodState_ENROLMENT_ENROLLED,
				Sockets: &nodev1.Sockets{Bypassed: map[string]uint64{"unseen": unseen, "local": local}}}
			b.look([]*nodev1.PodState{p}, time.Now())
			return p
		}
		if p := see(7, 1); p.Enrolment != nodev1.PodState_ENROLMENT_ENROLLED {
			t.Errorf("what was counted before this agent: %v", p)
		}
		if p := see(7, 100); p.Enrolment != nodev1.PodState_ENROLMENT_ENROLLED {
			t.Errorf("connections to the pod itself: %v", p)
		}
		if p := see(9, 100); p.Enrolment != nodev1.PodState_ENROLMENT_BYPASSED || p.Message[:9] != "2 unseen:" {
			t.Errorf("two connections past the proxy: %v", p)
		}
		later(remembered - time.Second)
		if p := see(9, 100); p.Enrolment != nodev1.PodState_ENROLMENT_BYPASSED || p.Message[:9] != "2 unseen:" {
			t.Errorf("soon after: %v", p)
		}
		later(2 * time.Second)
		if p := see(9, 100); p.Enrolment != nodev1.PodState_ENROLMENT_ENROLLED || p.Message != "" {
			t.Errorf("long after: %v", p)
		}
		b.look(nil, time.Now())
		if len(b.pods) != 0 {
			t.Error("a pod that is gone is remembered")
		}
	})
}

// A new agent tells what has happened while there was none, and not what was told before.
func TestBypassesBetweenAgents(t *testing.T) {
	path := filepath.Join(t.TempDir(), bypassFile)
	agent := func() *bypasses {
		b := &bypasses{path: path, log: slog.New(slog.DiscardHandler)}
		b.load()
		return b
	}
	see := func(b *bypasses, n uint64) *nodev1.PodState {
		p := &nodev1.PodState{Uid: "u", Enrolment: nodev1.PodState_ENROLMENT_ENROLLED, Sockets: &nodev1.Sockets{Bypassed: map[string]uint64{"unrouted": n}}}
		other := &nodev1.PodState{Uid: "v", Enrolment: nodev1.PodState_ENROLMENT_ENROLLED, Sockets: &nodev1.Sockets{}}
		stray := &nodev1.PodState{Uid: "w", Enrolment: nodev1.PodState_ENROLMENT_PENDING}
		b.look([]*nodev1.PodState{other, p, stray}, time.Now())
		return p
	}
	for i, step := range []struct {
		counted uint64
		says    string
	}{{3, ""}, {3, ""}, {5, "2 unrouted:"}, {5, ""}} {
		if p := see(agent(), step.counted); !strings.HasPrefix(p.Message, step.says) || (p.Enrolment == nodev1.PodState_ENROLMENT_BYPASSED) != (step.says != "") {
			t.Errorf("agent %d: %v, want %q", i+1, p, step.says)
		}
	}
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if p := see(agent(), 9); p.Enrolment != nodev1.PodState_ENROLMENT_ENROLLED {
		t.Errorf("after a file that cannot be read: %v", p)
	}
}
