package main

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"conduit.io/conduit/agent/controlplane"
	"conduit.io/conduit/api/kube"
	"conduit.io/conduit/api/nodev1"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
)

// report has the agents report, until stop, that all their pods are enrolled. Traffic makes the counts of their sockets grow.
func (f *fleet) report(ctx context.Context, uids []types.UID) {
	for _, a := range f.agents {
		var looks atomic.Uint64
		r := controlplane.NewReporter(a.config, func(context.Context) controlplane.Report {
			n := looks.Add(1)
			st := a.dir.Status()
			out := controlplane.Report{Agent: &nodev1.AgentState{Version: "scale", Instance: nodeName(a.number), Ready: true, Kernel: "6.18",
				Proxy: &nodev1.ProxyState{Up: true, Starts: 1}, DiscoveryEpoch: st.Epoch, DiscoveryVersion: st.Version}}
			for _, p := range f.town.podsOn(a.number) {
				out.Pods = append(out.Pods, &nodev1.PodState{Uid: string(uids[p]), Namespace: namespaceOf(p / podsPerService), Name: podName(p),
					Enrolment: nodev1.PodState_ENROLMENT_ENROLLED, ObservedGeneration: 1, Sockets: &nodev1.Sockets{Created: 7 * n, Steered: 7 * n}})
			}
			return out
		})
		f.working.Go(func() { r.Run(ctx) })
	}
}

// asked is what the API server was asked for, as it counts itself.
type asked struct{ conditions, nodes, patchedNodes, all int }

func (s *site) asked(ctx context.Context) (asked, error) {
	client, err := rest.HTTPClientFor(s.config)
	if err != nil {
		return asked{}, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.config.Host+"/metrics", nil)
	if err != nil {
		return asked{}, err
	}
	res, err := client.Do(req)
	if err != nil {
		return asked{}, err
	}
	defer res.Body.Close()
	const family = "apiserver_request_total"
	text, err := readSamples(bufio.NewScanner(res.Body), func(name string) bool { return strings.HasPrefix(name, family+"{") })
	count := func(labels ...string) int { return int(text.sum(family, labels...)) }
	return asked{conditions: count(`resource="pods"`, `subresource="status"`, `verb="PATCH"`), nodes: count(`resource="nodes"`, `verb="GET"`),
		patchedNodes: count(`resource="nodes"`, `verb="PATCH"`), all: count()}, err
}

// enrolled is how many pods have the condition that they are enrolled.
func (s *site) enrolled(ctx context.Context) (n int, err error) {
	for next := ""; ; {
		list, err := s.client.CoreV1().Pods("").List(ctx, metav1.ListOptions{Limit: 500, Continue: next})
		if err != nil {
			return n, err
		}
		for i := range list.Items {
			if slices.ContainsFunc(list.Items[i].Status.Conditions, func(c corev1.PodCondition) bool {
				return c.Type == kube.ConditionEnrolled && c.Status == corev1.ConditionTrue
			}) {
				n++
			}
		}
		if next = list.Continue; next == "" {
			return n, nil
		}
	}
}

// look is how often the counts of the API server are read.
const look = time.Second

// enrol has the agents begin to report, and waits until nothing more is written.
func (r *run) enrol(ctx context.Context) error {
	e := &r.out.Enrol
	start, err := r.site.asked(ctx)
	if err != nil {
		return err
	}
	before, err := r.cpus()
	if err != nil {
		return err
	}
	began := time.Now()
	r.fleet.report(r.running, r.uids)
	last, lastAt, still := start, began, 0
	for still < 5 {
		if err := pause(ctx, look); err != nil {
			return fmt.Errorf("%d conditions of %d are written: %w", last.conditions-start.conditions, r.town.pods(), err)
		}
		now, err := r.site.asked(ctx)
		if err != nil {
			return err
		}
		at := time.Now()
		e.MostPerSec = max(e.MostPerSec, float64(now.conditions-last.conditions)/at.Sub(lastAt).Seconds())
		switch {
		case now.conditions > last.conditions || now.conditions-start.conditions < r.town.pods():
			still, e.Seconds = 0, at.Sub(began).Seconds()
		default:
			still++
		}
		last, lastAt = now, at
	}
	e.Writes, e.Untainted = last.conditions-start.conditions, last.patchedNodes-start.patchedNodes
	after, err := r.cpus()
	if err != nil {
		return err
	}
	e.CPU = takenOf(after.minus(before))
	e.Conditions, err = r.site.enrolled(ctx)
	return err
}
