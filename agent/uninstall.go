package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"conduit.io/conduit/agent/admin"
	"conduit.io/conduit/agent/podnet"
	"conduit.io/conduit/agent/proxylink"
	"conduit.io/conduit/agent/store"
	"conduit.io/conduit/api/node"
	"conduit.io/conduit/loader"
)

const (
	stopTimeout = 20 * time.Second
	killTimeout = 10 * time.Second
)

// uninstall removes everything that agents with this run directory and bpffs have made, and tells what it did. It goes
// as far as it can; the error joins what failed.
func uninstall(c config, out io.Writer) error {
	if os.Geteuid() != 0 {
		return errors.New("uninstall: it needs root; run it with sudo")
	}
	var errs []error
	did := func(what string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", what, err))
			fmt.Fprintf(out, "FAILED   %s: %v\n", what, err)
			return
		}
		fmt.Fprintf(out, "removed  %s\n", what)
	}
	var attachments []*store.Attachment
	var l *lock
	if _, err := os.Stat(c.runDir); err == nil {
		var pid int
		if l, pid, err = stop(c.runDir, stopTimeout); err != nil {
			return fmt.Errorf("uninstall: %w", err)
		}
		if pid > 0 {
			fmt.Fprintf(out, "stopped  agent (pid %d)\n", pid)
		}
		attachments = known(c.runDir, did)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("uninstall: %w", err)
	}
	// The kernel programs first: from here on nothing new is steered into a proxy that goes away.
	if _, err := os.Lstat(c.bpffs); err == nil {
		did("kernel programs, links, maps and pins below "+c.bpffs, loader.Remove(c.bpffs))
	} else if l == nil {
		fmt.Fprintf(out, "nothing  neither %s nor %s is there\n", c.runDir, c.bpffs)
	}
	if l != nil {
		if pid, err := proxylink.Running(c.runDir); err == nil {
			did(fmt.Sprintf("proxy (pid %d)", pid), stopProxy(c.runDir))
		}
	}
	for _, a := range attachments {
		unwire(a, did)
	}
	if l != nil {
		did("run directory "+c.runDir, clean(c, l))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("uninstall: not everything could be removed: %w", err)
	}
	return prove(c, attachments, out)
}

func known(runDir string, did func(string, error)) []*store.Attachment {
	s, err := store.Open(filepath.Join(runDir, podsDir))
	var all []*store.Attachment
	if err == nil {
		all, err = s.Load()
	}
	if err != nil {
		did("records of pods", err)
	}
	return all
}

// stopProxy asks the proxy to exit, and makes sure of it.
func stopProxy(runDir string) error {
	if l, err := proxylink.Connect(proxylink.Socket(runDir)); err == nil {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		_, err = l.Call(ctx, &node.Message{Shutdown: &node.Shutdown{}})
		if err == nil {
			select {
			case <-l.Done():
			case <-ctx.Done():
			}
		}
		cancel()
		l.Close()
	}
	return proxylink.Kill(runDir, killTimeout)
}

// unwire removes rules and routes from a pod's namespace, if it is still the one that was wired.
func unwire(a *store.Attachment, did func(string, error)) {
	netns, err := podnet.OpenAs(a.Netns, a.Cookie)
	if errors.Is(err, podnet.ErrGone) {
		return // if another namespace took the name, it was never wired, or has a record of its own
	}
	what := fmt.Sprintf("rules and routes of pod %s/%s (%s)", a.Namespace, a.Pod, a.Netns)
	if err != nil {
		did(what, err)
		return
	}
	defer netns.Close()
	did(what, podnet.Teardown(netns))
}

// clean removes what agents make in their run directory, and the directory when nothing else is in it. A certificate
// authority elsewhere is left: other nodes may trust it.
func clean(c config, l *lock) error {
	var errs []error
	names := append(proxylink.Files(), cniSocket, nextFile, cniLock, bypassFile, filepath.Base(admin.AddrFile(c.runDir)))
	for _, name := range names {
		for _, path := range []string{filepath.Join(c.runDir, name), filepath.Join(c.runDir, name+".new")} {
			if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, err)
			}
		}
	}
	errs = append(errs, os.RemoveAll(filepath.Join(c.runDir, podsDir)))
	if own := filepath.Join(c.runDir, defaultCA); c.caDir == own {
		errs = append(errs, os.RemoveAll(own))
	}
	l.release(true)
	errs = append(errs, removeIfEmpty(c.runDir))
	return errors.Join(errs...)
}

// prove looks once more, at the kernel and at the namespaces.
func prove(c config, attachments []*store.Attachment, out io.Writer) error {
	if left, err := loader.Leftovers(c.bpffs); err != nil || len(left) > 0 {
		return fmt.Errorf("uninstall: still there: %v (%v)", left, err)
	}
	for _, a := range attachments {
		netns, err := podnet.Open(a.Netns)
		if err != nil {
			continue
		}
		left, err := podnet.Leftovers(netns)
		netns.Close()
		if err != nil || left > 0 {
			return fmt.Errorf("uninstall: %d rules and routes are left in %s (%v)", left, a.Netns, err)
		}
	}
	if pid, err := proxylink.Running(c.runDir); err == nil {
		return fmt.Errorf("uninstall: the proxy (pid %d) is still running", pid)
	}
	_, err := fmt.Fprintln(out, "verified 0 programs, 0 links, 0 maps, 0 pins, 0 rules, 0 routes, 0 processes left")
	return err
}
