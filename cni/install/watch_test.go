package install

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"
)

// watched runs Watch until the test ends, and gives its reports.
func watched(t *testing.T, in Installer) <-chan string {
	t.Helper()
	return watchedBy(t, in, fsnotify.NewWatcher)
}

func watchedBy(t *testing.T, in Installer, watcher func() (*fsnotify.Watcher, error)) <-chan string {
	t.Helper()
	reports := make(chan string, 100)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- in.watch(ctx, watcher, func(st State, err error) {
			switch {
			case errors.Is(err, ErrNoConfig):
				reports <- "waiting"
			case err != nil:
				reports <- "error"
			default:
				reports <- filepath.Base(st.File)
			}
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return reports
}

func wantReport(t *testing.T, reports <-chan string, want string) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	var others []string
	for {
		select {
		case r := <-reports:
			if r == want {
				return
			}
			others = append(others, r)
		case <-deadline:
			t.Fatalf("no report %q in 20 s, but %v", want, others)
		}
	}
}

// locked reports whether somebody keeps the file locked, as agents ask.
func locked(t *testing.T, path string) bool {
	t.Helper()
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return false
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	held := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &held); err != nil {
		t.Fatal(err)
	}
	return held.Type != unix.F_UNLCK
}

// The lock tells whether the plugin is in place, and that somebody keeps it there.
func TestWatchLocks(t *testing.T) {
	in := installer(t)
	in.Lock = filepath.Join(t.TempDir(), "lock")
	t.Run("watching", func(t *testing.T) {
		reports := watched(t, in)
		wantReport(t, reports, "waiting")
		if locked(t, in.Lock) {
			t.Error("locked while there is no configuration")
		}
		put(t, in.conf("10-net.conflist"), bridgeList)
		wantReport(t, reports, "10-net.conflist")
		if !locked(t, in.Lock) {
			t.Error("not locked while the plugin is in place")
		}
		put(t, in.conf("01-broken.conf"), "{") // the runtime would use this one
		wantReport(t, reports, "error")
		if locked(t, in.Lock) {
			t.Error("locked while the plugin is not in place")
		}
		if err := os.Remove(in.conf("01-broken.conf")); err != nil {
			t.Fatal(err)
		}
		wantReport(t, reports, "10-net.conflist")
		if !locked(t, in.Lock) {
			t.Error("not locked although the plugin is in place again")
		}
		t.Run("taken over", func(t *testing.T) { // the other one comes before this one has ended, and goes
			wantReport(t, watched(t, in), "10-net.conflist")
		})
		if !locked(t, in.Lock) {
			t.Error("not locked although one still watches")
		}
	})
	if locked(t, in.Lock) {
		t.Error("locked although nobody watches")
	}
}

func TestWatchRepairs(t *testing.T) {
	in := installer(t)
	reports := watched(t, in)
	wantReport(t, reports, "waiting")

	put(t, in.conf("10-net.conflist"), bridgeList) // the primary plugin comes
	wantReport(t, reports, "10-net.conflist")

	put(t, in.conf("10-net.conflist"), bridgeList) // and writes its file anew
	wantReport(t, reports, "10-net.conflist")
	if data, err := os.ReadFile(in.conf("10-net.conflist")); err != nil || !bytes.Contains(data, []byte(PluginType)) {
		t.Errorf("not repaired: %s, %v", data, err)
	}

	put(t, in.conf("05-new.conf"), bridgeConf) // another one comes first
	wantReport(t, reports, "05-new.conflist")

	put(t, in.conf("01-broken.conf"), "{")
	wantReport(t, reports, "error")
	if err := os.Remove(in.conf("01-broken.conf")); err != nil {
		t.Fatal(err)
	}
	wantReport(t, reports, "05-new.conflist")

	if err := os.Remove(filepath.Join(in.BinDir, PluginType)); err != nil {
		t.Fatal(err)
	}
	wantReport(t, reports, "05-new.conflist")
	if _, err := os.Stat(filepath.Join(in.BinDir, PluginType)); err != nil {
		t.Errorf("the program is not back: %v", err)
	}
}

// A node may have no inotify instance to spare: kubelets and others take many of the 128 that a user has.
func TestWatchWithoutInotify(t *testing.T) {
	in := installer(t)
	reports := watchedBy(t, in, func() (*fsnotify.Watcher, error) { return nil, unix.EMFILE })
	wantReport(t, reports, "waiting")
	for range 2 {
		put(t, in.conf("10-net.conflist"), bridgeList)
		wantReport(t, reports, "10-net.conflist")
	}
}

// The directory itself may come later, as on a node whose primary plugin is a DaemonSet.
func TestWatchWaitsForTheDirectory(t *testing.T) {
	in := installer(t)
	if err := os.Remove(in.ConfDir); err != nil {
		t.Fatal(err)
	}
	reports := watched(t, in)
	wantReport(t, reports, "waiting")
	if err := os.Mkdir(in.ConfDir, 0o755); err != nil {
		t.Fatal(err)
	}
	put(t, in.conf("10-net.conf"), bridgeConf)
	wantReport(t, reports, "10-net.conflist")
}

func TestCommand(t *testing.T) {
	in := installer(t)
	flags := []string{"--conf-dir", in.ConfDir, "--bin-dir", in.BinDir, "--plugin", in.Plugin, "--agent-socket", "/a/b"}
	run := func(verb string) (int, string) {
		var out bytes.Buffer
		code := Main(append([]string{verb}, flags...), &out, &out)
		return code, out.String()
	}
	if code, out := run("install"); code != exitWaiting || !strings.Contains(out, "no network configuration") {
		t.Errorf("install into nothing: %d, %s", code, out)
	}
	put(t, in.conf("10-net.conflist"), bridgeList)
	before := in.tree(t)
	if code, out := run("install"); code != exitOK || out != fmt.Sprintf("installed in %s\n", in.conf("10-net.conflist")) {
		t.Errorf("install: %d, %s", code, out)
	}
	if data, err := os.ReadFile(in.conf("10-net.conflist")); err != nil || !bytes.Contains(data, []byte(`{"type":"conduit-cni","agentSocket":"/a/b"}`)) {
		t.Errorf("%s, %v", data, err)
	}
	if code, out := run("uninstall"); code != exitOK || in.tree(t) != before {
		t.Errorf("uninstall: %d, %s", code, out)
	}
	for _, args := range [][]string{nil, {"fly"}, {"install", "now"}, {"install", "--no-such-flag"}} {
		var out bytes.Buffer
		if code := Main(args, &out, &out); code != exitUsage || out.Len() == 0 {
			t.Errorf("%v: %d, %s", args, code, &out)
		}
	}
}
