package access

import (
	"maps"
	"sync"
	"time"
)

const (
	// quiet is how long the same refusal of the same caller is not told again.
	quiet = 10 * time.Minute
	// maxTold bounds the refusals that are remembered as told, and with it the lines of a log in that time.
	maxTold = 1024
)

// Told remembers what has been told, so that the log has each refusal once, whatever comes. The zero Told is ready; it is
// safe for concurrent use.
type Told struct {
	mu sync.Mutex
	at map[string]time.Time
}

// First reports whether key is to be told now: it was not for a while, and there is room to remember it.
func (t *Told) First(key string, now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if at, ok := t.at[key]; ok && now.Sub(at) < quiet {
		return false
	}
	if len(t.at) >= maxTold {
		maps.DeleteFunc(t.at, func(_ string, at time.Time) bool { return now.Sub(at) >= quiet })
		if len(t.at) >= maxTold {
			return false
		}
	}
	if t.at == nil {
		t.at = map[string]time.Time{}
	}
	t.at[key] = now
	return true
}
