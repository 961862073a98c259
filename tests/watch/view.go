package main

import (
	"fmt"
	"io"
	"net/netip"

	"conduit.io/conduit/api/discoveryv1"
)

// view is what a client holds of the controller's answers.
type view struct {
	at        *discoveryv1.Position // to resume at; nil: nothing is held
	answers   map[string]*discoveryv1.Answer
	services  map[string]*discoveryv1.Service
	endpoints map[string]map[string]*discoveryv1.Endpoint // by service, and id
	workloads map[string]*discoveryv1.Workload
	said      map[string]string // of each address, last
}

func newView() *view {
	v := &view{said: map[string]string{}}
	v.reset()
	return v
}

func (v *view) reset() {
	v.answers, v.services = map[string]*discoveryv1.Answer{}, map[string]*discoveryv1.Service{}
	v.endpoints, v.workloads = map[string]map[string]*discoveryv1.Endpoint{}, map[string]*discoveryv1.Workload{}
}

// name is an address as people write it.
func name(a *discoveryv1.Address) string {
	ip, _ := netip.AddrFromSlice(a.GetIp())
	return netip.AddrPortFrom(ip, uint16(a.GetPort())).String()
}

// apply takes one response in, as WatchResponse says.
func (v *view) apply(m *discoveryv1.WatchResponse) {
	if m.Reset_ {
		v.reset()
	}
	for _, w := range m.Workloads {
		v.workloads[w.Uid] = w
	}
	for _, s := range m.Services {
		v.services[s.Key] = s
	}
	for _, u := range m.Endpoints {
		if u.Replace || v.endpoints[u.Service] == nil {
			v.endpoints[u.Service] = map[string]*discoveryv1.Endpoint{}
		}
		for _, e := range u.Endpoints {
			v.endpoints[u.Service][e.Id] = e
		}
		for _, id := range u.Removed {
			delete(v.endpoints[u.Service], id)
		}
	}
	for _, a := range m.Answers {
		v.answers[name(a.Address)] = a
	}
	if !m.More { // in the middle of a version there is nothing to resume, and nothing to drop
		v.at = m.Position
		v.drop()
	}
}

// drop lets go of what nothing leads to any more: no more will be heard of it.
func (v *view) drop() {
	services, workloads := map[string]bool{}, map[string]bool{}
	for _, a := range v.answers {
		services[a.Service], workloads[a.Workload] = true, true
	}
	for key, all := range v.endpoints {
		if !services[key] {
			delete(v.endpoints, key)
			continue
		}
		for _, e := range all {
			workloads[e.Workload] = true
		}
	}
	for key := range v.services {
		if !services[key] {
			delete(v.services, key)
		}
	}
	for uid := range v.workloads {
		if !workloads[uid] {
			delete(v.workloads, uid)
		}
	}
}

// say writes a line for each address of which there is something else to say than before.
func (v *view) say(addresses []*discoveryv1.Address, out io.Writer) {
	for _, address := range addresses {
		n := name(address)
		if line := v.line(v.answers[n]); line != v.said[n] {
			v.said[n] = line
			fmt.Fprintf(out, "%s  %s\n", n, line)
		}
	}
}

func (v *view) line(a *discoveryv1.Answer) string {
	switch a.GetKind() {
	case discoveryv1.Answer_KIND_SERVICE:
		ready, encrypted := 0, 0
		for _, e := range v.endpoints[a.Service] {
			if e.Ready {
				ready++
				if mTLS(v.workloads[e.Workload]) {
					encrypted++
				}
			}
		}
		return fmt.Sprintf("Service %s: %d endpoints are ready, mTLS reaches %d", a.Service, ready, encrypted)
	case discoveryv1.Answer_KIND_WORKLOAD:
		w := v.workloads[a.Workload]
		return fmt.Sprintf("pod %s/%s on node %s, mTLS reaches it: %v", w.GetNamespace(), w.GetName(), w.GetNode(), mTLS(w))
	case discoveryv1.Answer_KIND_NODE:
		return "a node"
	}
	return "nobody"
}

// mTLS reports whether it reaches a workload, as Workload.enrolment says.
func mTLS(w *discoveryv1.Workload) bool {
	return w.GetMeshed() && (w.Enrolment == discoveryv1.Workload_ENROLMENT_ENROLLED || w.MtlsMode == discoveryv1.Workload_MTLS_MODE_STRICT)
}
