package manifest

import (
	"context"
	"fmt"
	"time"

	"github.com/fsnotify/fsnotify"
)

const (
	quiet = 50 * time.Millisecond  // a burst of changes ends with this much silence
	most  = 500 * time.Millisecond // a burst is not waited out for longer than this
	// rescan catches what the kernel's notifications miss: an overflow, a directory that was made anew, a linked
	// file outside the directory.
	rescan = 10 * time.Second
)

// Watch calls changed after every change of the snapshot in force, until ctx ends.
func (s *Source) Watch(ctx context.Context, changed func()) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch manifests: %w", err)
	}
	defer w.Close()
	if err := w.Add(s.dir); err != nil {
		return fmt.Errorf("watch manifests in %s: %w", s.dir, err)
	}
	scan := func() {
		if s.Scan() {
			changed()
		}
	}
	scan() // what happened since Open
	tick := time.NewTicker(rescan)
	defer tick.Stop()
	var settle <-chan time.Time
	var burst time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-settle:
			settle = nil
			scan()
		case <-tick.C:
			_ = w.Add(s.dir) // once more, in case the directory was replaced; harmless otherwise
			scan()
		case <-w.Events:
			if settle == nil {
				burst = time.Now()
			}
			settle = time.After(max(0, min(quiet, most-time.Since(burst))))
		case err := <-w.Errors:
			s.log.Warn("manifest watch failed; the directory is read again", "error", err)
			scan()
		}
	}
}
