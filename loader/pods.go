package loader

import (
	"errors"
	"fmt"
	"net/netip"

	"conduit.io/conduit/api/kernel"

	"github.com/cilium/ebpf"
)

// Pod is how the kernel treats one enrolled pod.
type Pod struct {
	// Addrs are the pod's addresses: 1 to kernel.MaxAddrs, without loopback and link-local ones, which are known.
	Addrs []netip.Addr
	// OutOpen lets outbound connections go on directly while no proxy is alive; otherwise they are refused.
	OutOpen bool
	// InOpen lets inbound connections go to the application while no proxy is alive; otherwise they are refused.
	InOpen bool
	// Probes are the ports at which the node's kubelet reaches the application: those that the pod's own probes and hooks name,
	// at most kernel.MaxProbes.
	Probes []uint16
}

// Enrol starts steering the pod's new connections, or changes how an enrolled pod is treated. Everything else of it
// (rules, routes, listeners, lookup program) must be in place before.
func (d *Datapath) Enrol(cookie uint64, p Pod) error {
	v, err := p.encode()
	if err == nil && len(p.Probes) > kernel.MaxProbes {
		err = fmt.Errorf("%d ports to probe: want at most %d", len(p.Probes), kernel.MaxProbes)
	}
	if err != nil {
		return fmt.Errorf("enrol pod %d: %w", cookie, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return fmt.Errorf("enrol pod %d: %w", cookie, err)
	}
	err = d.maps["cdt_counters"].Update(cookie, make([]kernel.Counters, cpus), ebpf.UpdateNoExist)
	if err != nil && !errors.Is(err, ebpf.ErrKeyExist) {
		return fmt.Errorf("enrol pod %d: make counters: %w", cookie, err)
	}
	probes := kernel.Probes{Nports: uint32(len(p.Probes))}
	copy(probes.Ports[:], p.Probes)
	if err := d.maps["cdt_probes"].Put(cookie, &probes); err != nil {
		return fmt.Errorf("enrol pod %d: ports to probe: %w", cookie, err)
	}
	if err := d.maps["cdt_pods"].Put(cookie, &v); err != nil {
		return fmt.Errorf("enrol pod %d: %w", cookie, err)
	}
	return nil
}

// Unenrol stops steering the pod's new connections, in one step; established ones go on. While the lookup program is
// attached the pod's addresses stay known to it, so that a socket marked before cannot reach the pod itself instead of
// its destination. A pod that is not enrolled is no error.
func (d *Datapath) Unenrol(cookie uint64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var v kernel.Pod
	err := d.maps["cdt_pods"].Lookup(cookie, &v)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("un-enrol pod %d: %w", cookie, err)
	}
	if !exists(d.pins.lookup(cookie)) {
		return d.forget(cookie)
	}
	v.Flags |= kernel.PodFlagLeft
	if err := d.maps["cdt_pods"].Update(cookie, &v, ebpf.UpdateExist); err != nil {
		return fmt.Errorf("un-enrol pod %d: %w", cookie, err)
	}
	return nil
}

// Enrolled are the pods whose connections the kernel steers now.
func (d *Datapath) Enrolled() (map[uint64]Pod, error) {
	pods := map[uint64]Pod{}
	err := d.eachPod(func(cookie uint64, v *kernel.Pod) {
		if v.Flags&kernel.PodFlagLeft == 0 {
			pods[cookie] = decodePod(v)
		}
	})
	for cookie, p := range pods {
		var probes kernel.Probes
		perr := d.maps["cdt_probes"].Lookup(cookie, &probes)
		if errors.Is(perr, ebpf.ErrKeyNotExist) {
			continue // enrolled by an earlier version
		}
		err = errors.Join(err, perr)
		p.Probes = append(p.Probes, probes.Ports[:min(int(probes.Nports), kernel.MaxProbes)]...)
		pods[cookie] = p
	}
	return pods, err
}

func (d *Datapath) eachPod(f func(cookie uint64, v *kernel.Pod)) error {
	var (
		cookie uint64
		v      kernel.Pod
	)
	it := d.maps["cdt_pods"].Iterate()
	for it.Next(&cookie, &v) {
		f(cookie, &v)
	}
	if err := it.Err(); err != nil {
		return fmt.Errorf("read pods: %w", err)
	}
	return nil
}

// forget deletes the pod's entries.
func (d *Datapath) forget(cookie uint64) error {
	for _, name := range []string{"cdt_pods", "cdt_probes"} {
		err := d.maps[name].Delete(cookie)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("forget pod %d: %s: %w", cookie, name, err)
		}
	}
	return nil
}

// sweep forgets everything of a pod whose namespace is gone. Its listeners went with it.
func (d *Datapath) sweep(cookie uint64) error {
	d.cfg.Log.Info("sweeping pod of a dead namespace", "netns_cookie", cookie)
	return errors.Join(d.forget(cookie), d.DropCounters(cookie))
}

// sweepLeft forgets the pods that have left and have no lookup program any more.
func (d *Datapath) sweepLeft(pinned map[uint64]bool) error {
	var stale []uint64
	err := d.eachPod(func(cookie uint64, v *kernel.Pod) {
		if v.Flags&kernel.PodFlagLeft != 0 && !pinned[cookie] {
			stale = append(stale, cookie)
		}
	})
	for _, cookie := range stale {
		err = errors.Join(err, d.forget(cookie))
	}
	return err
}

func (p Pod) encode() (kernel.Pod, error) {
	if len(p.Addrs) == 0 || len(p.Addrs) > kernel.MaxAddrs {
		return kernel.Pod{}, fmt.Errorf("%d addresses: want 1 to %d", len(p.Addrs), kernel.MaxAddrs)
	}
	v := kernel.Pod{Naddrs: uint32(len(p.Addrs))}
	for i, a := range p.Addrs {
		if !a.IsValid() || a.IsUnspecified() || a.IsMulticast() {
			return kernel.Pod{}, fmt.Errorf("address %v is not one a pod can have", a)
		}
		v.Addrs[i] = kernel.AddrFrom(a)
	}
	if p.OutOpen {
		v.Flags |= kernel.PodFlagOutOpen
	}
	if p.InOpen {
		v.Flags |= kernel.PodFlagInOpen
	}
	return v, nil
}

func decodePod(v *kernel.Pod) Pod {
	p := Pod{
		OutOpen: v.Flags&kernel.PodFlagOutOpen != 0,
		InOpen:  v.Flags&kernel.PodFlagInOpen != 0,
	}
	for _, a := range v.Addrs[:min(int(v.Naddrs), kernel.MaxAddrs)] {
		p.Addrs = append(p.Addrs, a.Netip())
	}
	return p
}
