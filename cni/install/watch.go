package install

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
)

const (
	settle   = 50 * time.Millisecond // of quiet after a change, for programs that write a file in pieces
	settled  = 500 * time.Millisecond
	resync   = 30 * time.Second
	absentIn = time.Second // to look for directories that are not there yet
)

// Watch keeps the plugin installed until ctx ends: it runs Install now and after every change of the directories, such as a
// primary plugin that writes its configuration anew. It calls report, in its own goroutine, after each run that did or found
// something new: with ErrNoConfig while it waits for a primary plugin. It leaves the plugin installed. While it watches and the
// plugin is in place, in.Lock is locked. Where the node has no inotify instance to spare, it looks every second instead.
func (in Installer) Watch(ctx context.Context, report func(State, error)) error {
	return in.watch(ctx, fsnotify.NewWatcher, report)
}

func (in Installer) watch(ctx context.Context, watcher func() (*fsnotify.Watcher, error), report func(State, error)) error {
	w, err := watcher()
	if err != nil {
		w = nil
	} else {
		defer w.Close()
	}
	place := place{path: in.Lock}
	defer place.close()
	said := ""
	for {
		all := in.watchDirs(w) // before Install: what changes meanwhile is seen
		st, err := in.Install()
		if lerr := place.tell(err == nil); err == nil {
			err = lerr
		}
		if news := fmt.Sprint(st.File, err); st.Changed || news != said {
			said = news
			report(st, err)
		}
		pause := resync
		if !all {
			pause = absentIn
		}
		if !await(ctx, w, pause) {
			return nil
		}
	}
}

// watchDirs watches what is there, and tells whether that is all. A directory that is watched already stays so. w may be nil.
func (in Installer) watchDirs(w *fsnotify.Watcher) bool {
	if w == nil {
		return false
	}
	all := true
	dirs := []string{in.ConfDir, in.BinDir}
	if file, err := first(in.ConfDir); err == nil {
		if target, err := filepath.EvalSymlinks(file); err == nil && filepath.Dir(target) != filepath.Clean(in.ConfDir) {
			dirs = append(dirs, filepath.Dir(target))
		}
	}
	for _, dir := range dirs {
		if _, err := os.Stat(dir); err != nil || w.Add(dir) != nil {
			all = false
		}
	}
	return all
}

// await returns after a change and the quiet that follows it, or after pause; false when ctx has ended.
func await(ctx context.Context, w *fsnotify.Watcher, pause time.Duration) bool {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	var (
		until  time.Time
		events chan fsnotify.Event
		errs   chan error
	)
	if w != nil {
		events, errs = w.Events, w.Errors
	}
	for {
		select {
		case <-ctx.Done():
			return false
		case <-timer.C:
			return true
		case err := <-errs:
			if !errors.Is(err, fsnotify.ErrEventOverflow) {
				return true
			}
		case <-events:
		}
		if until.IsZero() {
			until = time.Now().Add(settled)
		}
		timer.Reset(min(settle, time.Until(until)))
	}
}
