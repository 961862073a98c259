// Package kubelet has the kernel vouch for the kubelet of this node: its probes reach the applications of enrolled pods in
// plaintext, which nobody else of the node may send them.
//
// The kubelet is the process that serves the kubelet's port. To know that process, the agent connects to the port, and the
// kernel says who has accepted. So the agent needs to see neither the node's processes nor its PID namespace, and no process
// can pass for another. Ports can be taken by anybody while their owner is away, so that the process must be root's, and in
// the node's PID namespace: that is the agent's own, or the one above it where the agent is in a container. Whoever is both
// may enter the pods anyway.
package kubelet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"conduit.io/conduit/api/kernel"
	"conduit.io/conduit/loader"
)

// DefaultPort is the kubelet's, unless its configuration says another.
const DefaultPort = 10250

// lookEvery is how often the port's listeners are looked at: the time in which probes fail after the kubelet was started
// again. Most have a period of 10 s, and fail three times before anything happens.
const lookEvery = time.Second

// Kernel is what the Watcher needs of loader.Datapath.
type Kernel interface {
	AskAcceptor(cookie uint64, from, to netip.AddrPort) error
	Acceptor() (loader.Acceptor, bool, error)
	SetKubelet(cookie uint64, p kernel.Process) error
	Kubelet(cookie uint64) (kernel.Process, bool, error)
	ForgetKubelet() error
}

// Watcher follows the kubelet. The agent must be in the node's network namespace.
type Watcher struct {
	port   uint16
	kernel Kernel
	log    *slog.Logger

	cookie uint64
	own    loader.Acceptor
	asked  []listener // that were looked at
	said   string     // the fault that was logged last
	known  atomic.Bool
}

// New makes a Watcher of a port; 0 has the kernel vouch for nobody. Run does the work.
func New(port uint16, k Kernel, log *slog.Logger) *Watcher {
	return &Watcher{port: port, kernel: k, log: log}
}

// Known reports whether the kernel vouches for the process that serves the port now.
func (w *Watcher) Known() bool { return w.known.Load() }

// Run watches until ctx ends. What the kernel was told stays in force: a dead process is nobody.
func (w *Watcher) Run(ctx context.Context) {
	if w.port == 0 {
		if err := w.kernel.ForgetKubelet(); err != nil {
			w.log.Error("an earlier agent's kubelet is still vouched for", "error", err)
		}
		return
	}
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		w.note(w.look(ctx))
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// errNone is no fault by itself: a kubelet may be away, and a node without Kubernetes has none.
var errNone = errors.New("nobody listens on the kubelet's port")

// note logs what is wrong when it is new.
func (w *Watcher) note(err error) {
	w.known.Store(err == nil)
	switch {
	case err == nil:
		w.said = ""
	case err.Error() == w.said || errors.Is(err, context.Canceled):
	case errors.Is(err, errNone):
		w.said = err.Error()
		w.log.Info("no kubelet on this node; its probes would be refused as any plaintext", "port", w.port)
	default:
		w.said = err.Error()
		w.log.Error("kubelet not known; probes of STRICT pods are refused", "port", w.port, "error", err)
	}
}

// look finds the kubelet again when the sockets that listen on its port are others than before.
func (w *Watcher) look(ctx context.Context) error {
	if w.cookie == 0 {
		if err := w.introduce(ctx); err != nil {
			return err
		}
	}
	found, err := listeners(w.port)
	if err != nil {
		return err
	}
	if len(found) == 0 {
		w.asked = nil
		return errNone
	}
	if slices.Equal(found, w.asked) {
		return nil
	}
	p, err := w.owner(ctx, found)
	if err != nil {
		w.asked = nil
		return err // who was vouched for still is what it was, or has ended, and then is nobody
	}
	before, ok, err := w.kernel.Kubelet(w.cookie)
	if err != nil {
		return err
	}
	if !ok || before != p {
		if err := w.kernel.SetKubelet(w.cookie, p); err != nil {
			return err
		}
		w.log.Info("kubelet found; its probes reach enrolled pods", "port", w.port, "pid", p.Tgid, "replaced", ok)
	}
	w.asked = found
	return nil
}

// introduce learns the namespaces that the agent itself is in.
func (w *Watcher) introduce(ctx context.Context) error {
	netns, err := os.Open("/proc/self/ns/net")
	if err != nil {
		return fmt.Errorf("open the node's network namespace: %w", err)
	}
	defer netns.Close()
	cookie, err := loader.NetnsCookie(netns)
	if err != nil {
		return err
	}
	if w.own, err = self(ctx, w.kernel, cookie); err != nil {
		return fmt.Errorf("learn the agent's own PID namespace: %w", err)
	}
	w.cookie = cookie
	return nil
}

// owner is the process that serves all the listeners, if the kernel may vouch for it.
func (w *Watcher) owner(ctx context.Context, all []listener) (kernel.Process, error) {
	var owner loader.Acceptor
	for i, l := range all {
		a, err := acceptor(ctx, w.kernel, w.cookie, l.dial())
		if err != nil {
			return kernel.Process{}, fmt.Errorf("ask who serves %v: %w", l.addr, err)
		}
		if i > 0 && a != owner {
			return kernel.Process{}, fmt.Errorf("two processes listen on port %d: pid %d and %d", w.port, owner.Process.Tgid, a.Process.Tgid)
		}
		owner = a
	}
	return owner.Process, trustworthy(owner, w.own)
}

// trustworthy is nil for a process of the node's root.
func trustworthy(a, agent loader.Acceptor) error {
	if a.UID != 0 {
		return fmt.Errorf("pid %d serves the kubelet's port, and belongs to uid %d: it is not the kubelet", a.Process.Tgid, a.UID)
	}
	if a.PIDNamespace != agent.PIDNamespace && a.PIDNamespace != agent.ParentPIDNamespace {
		return fmt.Errorf("pid %d serves the kubelet's port from a container (PID namespace %d): it is not the kubelet", a.Process.Tgid, a.PIDNamespace)
	}
	return nil
}
