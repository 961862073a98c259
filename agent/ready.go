package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync/atomic"
	"time"

	"conduit.io/conduit/agent/enrol"

	"golang.org/x/sys/unix"
)

// cniLock is the lock file's name where it is in the run directory.
const cniLock = "cni.lock"

// pluginEvery is how often the plugin is looked for: nobody tells of its lock.
const pluginEvery = time.Second

// readiness is whether the node is wired: pods that are made now become part of the mesh.
type readiness struct {
	manager *enrol.Manager
	trouble func() error // what went wrong with the proxy last, while it is not ready; nil: nothing is known
	lock    string       // the file that 'conduit-cni watch' locks; empty: the plugin is somebody else's matter
}

// check says why the node is not ready: a word in CamelCase, and an error. It has no reason, and nil, when it is.
func (r readiness) check(ctx context.Context) (reason string, err error) {
	if e := r.manager.Status(ctx); e != nil {
		if r.manager.Link() == nil {
			if why := r.trouble(); why != nil {
				return "ProxyNotReady", fmt.Errorf("%w: %w", e, why)
			}
			return "ProxyNotReady", e
		}
		return "NotWired", e
	}
	if n := r.manager.Elsewhere(); n > 0 { // in a rollout what was before is not ended then
		return "TakingOver", fmt.Errorf("%d pods are not with the new proxy yet: it may wait for certificates, or for the controller's word", n)
	}
	if err := r.plugin(); err != nil {
		return "PluginNotInPlace", err
	}
	return "", nil
}

// plugin says why the CNI plugin cannot be counted on.
func (r readiness) plugin() error {
	if r.lock == "" {
		return nil
	}
	f, err := os.Open(r.lock)
	if errors.Is(err, fs.ErrNotExist) {
		return errors.New("the CNI plugin is not in the node's configuration yet (see the log of conduit-cni watch, container cni)")
	}
	if err != nil {
		return fmt.Errorf("ask whether the CNI plugin is in place: %w", err)
	}
	defer f.Close()
	held := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &held); err != nil {
		return fmt.Errorf("ask whether the CNI plugin is in place: %s: %w", r.lock, err)
	}
	if held.Type == unix.F_UNLCK {
		return errors.New("nobody keeps the CNI plugin in the node's configuration (see the log of conduit-cni watch, container cni)")
	}
	return nil
}

// noting is check, and calls changed when the answer is another one than before: the controller hears it no later than the kubelet.
func (r readiness) noting(changed func()) func(context.Context) (string, error) {
	var was atomic.Pointer[string]
	return func(ctx context.Context) (string, error) {
		reason, err := r.check(ctx)
		if old := was.Swap(&reason); old == nil || *old != reason {
			changed()
		}
		return reason, err
	}
}

// watch calls changed when the plugin comes into its place, or is lost, until ctx ends.
func (r readiness) watch(ctx context.Context, changed func()) {
	if r.lock == "" {
		return
	}
	tick := time.NewTicker(pluginEvery)
	defer tick.Stop()
	for was := false; ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if is := r.plugin() == nil; is != was {
			was = is
			changed()
		}
	}
}
