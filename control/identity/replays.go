package identity

import (
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"sync"
	"time"
)

// maxReplays bounds the keys that are remembered: twice 2^16 of 32 bytes, a day's renewals of a large cluster.
const maxReplays = 1 << 16

// replays remembers the keys that were certified, so that none is certified twice. A second certificate would be
// harmless, for only the owner of the key could use it, but nobody who is honest asks for one: agents make a new key for
// every request. Each replica remembers what it signed itself, for the life of a leaf at least, unless there is too much.
type replays struct {
	life time.Duration
	now  func() time.Time

	mu          sync.Mutex
	young, old  map[[32]byte]bool
	youngsBegin time.Time
}

func newReplays(life time.Duration, now func() time.Time) *replays {
	return &replays{life: life, now: now, young: map[[32]byte]bool{}, youngsBegin: now()}
}

// claim reports whether the key has not been certified. From then on it has, until it is released.
func (r *replays) claim(key crypto.PublicKey) (hash [32]byte, ok bool) {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return hash, false
	}
	hash = sha256.Sum256(der)
	r.mu.Lock()
	defer r.mu.Unlock()
	if now := r.now(); len(r.young) >= maxReplays || now.Sub(r.youngsBegin) > r.life {
		r.young, r.old, r.youngsBegin = map[[32]byte]bool{}, r.young, now
	}
	if r.young[hash] || r.old[hash] {
		return hash, false
	}
	r.young[hash] = true
	return hash, true
}

// release forgets a key that was not certified after all.
func (r *replays) release(hash [32]byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.young, hash)
	delete(r.old, hash)
}
