package enrol

import (
	"errors"
	"net/netip"
	"testing"

	"conduit.io/conduit/agent/proxylink"
	"conduit.io/conduit/loader"
	"conduit.io/conduit/mesh"
)

// A pod that is as it should be is left alone, or every change of one would cost a look at all; whatever may have changed is seen to.
func TestSettled(t *testing.T) {
	addrs := []netip.Addr{netip.MustParseAddr("10.1.0.7")}
	for name, tc := range map[string]struct {
		change func(*Manager, *pod)
		want   bool
	}{
		"as it should be":              {func(*Manager, *pod) {}, true},
		"outside of the mesh":          {func(_ *Manager, p *pod) { p.workload.Meshed, p.enrolled, p.held = false, false, false }, true},
		"to be compared":               {func(_ *Manager, p *pod) { p.doubtful = true }, false},
		"failed":                       {func(_ *Manager, p *pod) { p.fault = errors.New("x") }, false},
		"to be enrolled":               {func(_ *Manager, p *pod) { p.enrolled = false }, false},
		"to leave":                     {func(_ *Manager, p *pod) { p.workload.Meshed = false }, false},
		"leaving":                      {func(_ *Manager, p *pod) { p.workload.Meshed, p.enrolled, p.leaving = false, false, true }, false},
		"without a proxy":              {func(m *Manager, _ *pod) { m.link = nil }, false},
		"not held by the proxy":        {func(_ *Manager, p *pod) { p.held = false }, false},
		"another mode for the proxy":   {func(_ *Manager, p *pod) { p.workload.Mode = mesh.Strict }, false},
		"lost by the kernel":           {func(_ *Manager, p *pod) { p.kernel = loader.Pod{} }, false},
		"another address":              {func(_ *Manager, p *pod) { p.kernelAddrs = nil }, false},
		"other ports that are probed":  {func(_ *Manager, p *pod) { p.probes = append(p.probes, 8080) }, false},
		"another word on a dead proxy": {func(_ *Manager, p *pod) { p.workload.Down, p.told.Down = mesh.DownClosed, mesh.DownClosed }, false},
	} {
		t.Run(name, func(t *testing.T) {
			m := New(Config{})
			m.link = &proxylink.Link{}
			w := mesh.Workload{Name: "web", Meshed: true, Mode: mesh.Permissive, Down: mesh.DownOpen, Addrs: addrs}
			p := &pod{cookie: 1, workload: w, told: w, kernelAddrs: addrs, enrolled: true, held: true}
			p.kernel = kernelPod(p)
			tc.change(m, p)
			if got := m.settled(p); got != tc.want {
				t.Errorf("settled: %v", got)
			}
		})
	}
}
