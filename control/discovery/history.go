package discovery

import "time"

// history remembers when the newest versions came to be.
type history struct {
	at [1024]struct {
		version uint64
		time    time.Time
	}
	next int
}

func (h *history) add(version uint64, t time.Time) {
	h.at[h.next].version, h.at[h.next].time = version, t
	h.next = (h.next + 1) % len(h.at)
}

// age is how long ago the version came to be; false: too long ago to know, or never.
func (x *Index) age(version uint64) (time.Duration, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for i := range x.times.at {
		if e := &x.times.at[i]; e.version == version && version != 0 {
			return time.Since(e.time), true
		}
	}
	return 0, false
}
