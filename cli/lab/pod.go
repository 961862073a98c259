package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Pod is a network namespace that the node's CNI chain has wired.
type Pod struct {
	*Netns
	Node      *Node
	Namespace string
	PodName   string
	IPs       []netip.Addr    // in the order of the CNI result
	Result    *current.Result // what the chain's ADD returned

	containerID string
	uid         string
	opts        PodOptions
}

// PodOptions describe the pod's manifest.
type PodOptions struct {
	Labels         map[string]string
	Annotations    map[string]string
	ServiceAccount string           // default "default"
	Owner          string           // KIND/NAME of the owner, such as Deployment/web
	Ports          map[string]int32 // container ports by name
	Probe          int32            // port at which a kubelet would see whether it is ready; 0: none
	NoManifest     bool             // write none: the agents hear of the pod by CNI alone, or not at all
}

// retryFor bounds how often AddPod repeats an ADD that the chain told it to try again later: as with a real node, the
// agent may not have read the new pod's manifest yet.
const retryFor = 15 * time.Second

// serial makes container IDs unique in this process.
var serial atomic.Uint64

// AddPod makes a pod: its manifest on its own node, its namespace, CNI ADD as a runtime does it, and at last its
// manifest, with addresses, on the other nodes. On error nothing of it is left.
func (n *Node) AddPod(ctx context.Context, namespace, name string, opts PodOptions) (*Pod, error) {
	id := fmt.Sprintf("%s.%s.%s.%d", n.lab.cfg.Name, namespace, name, serial.Add(1))
	p := &Pod{Node: n, Namespace: namespace, PodName: name, containerID: id, uid: "uid-" + id, opts: opts}
	ns, err := createNetns(n.lab.cfg.Name + ".pod." + namespace + "." + name)
	if err != nil {
		return nil, fmt.Errorf("add pod %s: %w", p, err)
	}
	p.Netns = ns
	if err := p.wire(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("add pod %s on %s: %w", p, n.name, err), p.undo())
	}
	n.lab.mu.Lock()
	n.lab.pods = append(n.lab.pods, p)
	n.lab.mu.Unlock()
	if err := n.lab.publishPod(p); err != nil {
		return nil, errors.Join(fmt.Errorf("add pod %s: %w", p, err), p.Delete(context.WithoutCancel(ctx)))
	}
	n.lab.log.Info("pod added", "pod", p.String(), "node", n.name, "addresses", p.IPs, "netns", p.Path())
	return p, nil
}

// String is NAMESPACE/NAME.
func (p *Pod) String() string { return p.Namespace + "/" + p.PodName }

// Name is the pod's name, without its namespace's.
func (p *Pod) Name() string { return p.PodName }

// Addrs are the pod's addresses, in the order of the CNI result.
func (p *Pod) Addrs() []netip.Addr { return p.IPs }

// Get asks the agent of the pod's node (Node.Get).
func (p *Pod) Get(ctx context.Context, path string) (status int, body []byte, err error) {
	return p.Node.Get(ctx, path)
}

// IfName is the pod's interface.
func (p *Pod) IfName() string { return "eth0" }

// IP is the pod's first address of a family (IPv4 or IPv6), or the zero Addr.
func (p *Pod) IP(f Families) netip.Addr {
	for _, a := range p.IPs {
		if a.Is4() == (f == IPv4) {
			return a
		}
	}
	return netip.Addr{}
}

// wire does what a kubelet and its runtime do up to the point where containers could start.
func (p *Pod) wire(ctx context.Context) error {
	if err := p.InNetns(func() error { return linkUp("lo") }); err != nil {
		return err
	}
	if !p.opts.NoManifest {
		if err := p.Node.putManifest(p.manifestFile(), podManifest(p).forNode(p.Node)); err != nil {
			return err
		}
	}
	if err := p.add(ctx); err != nil {
		return err
	}
	return p.waitUsable(ctx)
}

// add is CNI ADD, repeated while the chain asks for patience.
func (p *Pod) add(ctx context.Context) error {
	deadline := time.Now().Add(retryFor)
	for {
		err := p.addOnce(ctx)
		var cerr *types.Error
		again := errors.As(err, &cerr) && cerr.Code == types.ErrTryAgainLater && !p.opts.NoManifest
		if !again || time.Now().After(deadline) {
			return err
		}
		// A runtime deletes the failed attachment before it tries again.
		if derr := p.del(ctx); derr != nil {
			return errors.Join(err, derr)
		}
		select {
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		case <-time.After(4 * pollInterval):
		}
	}
}

func (p *Pod) addOnce(ctx context.Context) error {
	return p.runtime(ctx, func(ctx context.Context, c *libcni.CNIConfig, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) error {
		raw, err := c.AddNetworkList(ctx, list, rt)
		if err != nil {
			return err
		}
		if p.Result, err = current.NewResultFromResult(raw); err != nil {
			return err
		}
		p.IPs = nil
		for _, ip := range p.Result.IPs {
			if a, ok := netip.AddrFromSlice(ip.Address.IP); ok {
				p.IPs = append(p.IPs, a.Unmap())
			}
		}
		return nil
	})
}

func (p *Pod) del(ctx context.Context) error {
	return p.runtime(ctx, func(ctx context.Context, c *libcni.CNIConfig, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) error {
		return c.DelNetworkList(ctx, list, rt)
	})
}

// Check is CNI CHECK.
func (p *Pod) Check(ctx context.Context) error {
	return p.runtime(ctx, func(ctx context.Context, c *libcni.CNIConfig, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) error {
		return c.CheckNetworkList(ctx, list, rt)
	})
}

func (p *Pod) runtime(ctx context.Context, fn func(context.Context, *libcni.CNIConfig, *libcni.NetworkConfigList, *libcni.RuntimeConf) error) error {
	rt := &libcni.RuntimeConf{ContainerID: p.containerID, NetNS: p.Path(), IfName: p.IfName(), Args: p.cniArgs()}
	return p.Node.runtime(ctx, func(ctx context.Context, c *libcni.CNIConfig, list *libcni.NetworkConfigList) error {
		return fn(ctx, c, list, rt)
	})
}

// cniArgs are the arguments that containerd and CRI-O pass.
func (p *Pod) cniArgs() [][2]string {
	return [][2]string{
		{"IgnoreUnknown", "1"},
		{"K8S_POD_NAMESPACE", p.Namespace},
		{"K8S_POD_NAME", p.PodName},
		{"K8S_POD_INFRA_CONTAINER_ID", p.containerID},
		{"K8S_POD_UID", p.uid},
	}
}

// waitUsable waits until duplicate address detection has let go of the pod's addresses.
func (p *Pod) waitUsable(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		tentative := false
		err := p.InNetns(func() error {
			addrs, err := netlink.AddrList(nil, netlink.FAMILY_V6)
			tentative = slices.ContainsFunc(addrs, func(a netlink.Addr) bool {
				ip, _ := netip.AddrFromSlice(a.IP)
				return a.Flags&unix.IFA_F_TENTATIVE != 0 && slices.Contains(p.IPs, ip)
			})
			return err
		})
		if err != nil || !tentative {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for duplicate address detection: %w", ctx.Err())
		case <-tick.C:
		}
	}
}

// Delete is CNI DEL, and then removes the pod's processes, namespace and manifests.
func (p *Pod) Delete(ctx context.Context) error {
	l := p.Node.lab
	l.mu.Lock()
	i := slices.Index(l.pods, p)
	if i >= 0 {
		l.pods = slices.Delete(l.pods, i, i+1)
	}
	l.mu.Unlock()
	if i < 0 {
		return nil // deleted before, or the lab is closed
	}
	errs := []error{p.del(ctx), killInside([]*Netns{p.Netns}), p.Netns.remove()}
	if !p.opts.NoManifest {
		errs = append(errs, l.RemoveManifest(p.manifestFile()))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("delete pod %s: %w", p, err)
	}
	l.log.Info("pod deleted", "pod", p.String())
	return nil
}

// undo removes what a failed AddPod has made.
func (p *Pod) undo() error {
	errs := []error{p.del(context.Background()), killInside([]*Netns{p.Netns}), p.Netns.remove()}
	if !p.opts.NoManifest {
		errs = append(errs, p.Node.RemoveManifest(p.manifestFile()))
	}
	return errors.Join(errs...)
}

// ForgetResult makes the runtime lose its record of the pod, as after the loss of its state directory: libcni no longer
// deletes the attachment by itself when CNIGC does not list it.
func (p *Pod) ForgetResult() error {
	results, err := filepath.Glob(filepath.Join(p.Node.cniCacheDir(), "results", "*-"+p.containerID+"-*"))
	if err != nil {
		return fmt.Errorf("forget result of %s: %w", p, err)
	}
	if len(results) != 1 {
		return fmt.Errorf("forget result of %s: the runtime has %d records of it, want 1", p, len(results))
	}
	return os.Remove(results[0])
}

// ForgetNetns makes the pod vanish as on a machine that has crashed: its processes and namespace go, without DEL.
// CNIGC is what should clean up after it.
func (p *Pod) ForgetNetns() error {
	l := p.Node.lab
	l.mu.Lock()
	l.pods = slices.DeleteFunc(l.pods, func(o *Pod) bool { return o == p })
	l.mu.Unlock()
	return errors.Join(killInside([]*Netns{p.Netns}), p.Netns.remove())
}
