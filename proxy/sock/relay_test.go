package sock

import (
	"crypto/sha256"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"conduit.io/conduit/proxy/flow"
)

const relaySize = 64 << 20

// exchange opens one connection, and has both sides send relaySize bytes, end their direction, and read to the end.
func exchange(t *testing.T, dial, accept func() (net.Conn, error)) {
	t.Helper()
	var wg sync.WaitGroup
	var sent, got [2]hash.Hash
	for side, open := range []func() (net.Conn, error){dial, accept} {
		sent[side], got[side] = sha256.New(), sha256.New()
		wg.Go(func() {
			c, err := open()
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(2 * time.Minute))
			finished := make(chan struct{})
			go func() {
				defer close(finished)
				if err := send(c, sent[side], uint64(side)); err != nil {
					t.Errorf("side %d: send: %v", side, err)
				}
				if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
					t.Errorf("side %d: close: %v", side, err)
				}
			}()
			if n, err := receive(c, got[side]); err != nil || n != relaySize {
				t.Errorf("side %d: received %d bytes, %v", side, n, err)
			}
			<-finished
		})
	}
	wg.Wait()
	for side := range sent {
		if string(sent[side].Sum(nil)) != string(got[1-side].Sum(nil)) {
			t.Errorf("what side %d sent is not what the other received", side)
		}
	}
}

func send(w io.Writer, h hash.Hash, seed uint64) error {
	src := rand.NewChaCha8([32]byte{byte(seed)})
	buf := make([]byte, 128<<10)
	for left := relaySize; left > 0; {
		n := min(left, 1+rand.IntN(len(buf)))
		_, _ = src.Read(buf[:n])
		_, _ = h.Write(buf[:n])
		if _, err := w.Write(buf[:n]); err != nil {
			return err
		}
		left -= n
	}
	return nil
}

// receive is slow in places: it lets the sender run against a full queue.
func receive(r io.Reader, h hash.Hash) (int, error) {
	buf := make([]byte, 96<<10)
	total := 0
	for {
		n, err := r.Read(buf)
		total += n
		_, _ = h.Write(buf[:n])
		if rand.IntN(20) == 0 {
			for range 50 {
				runtime.Gosched()
			}
		}
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

func checkBacklog(t *testing.T, most int) {
	t.Helper()
	t.Logf("greatest backlog: %d bytes", most)
	if limit := flow.HighWater + turnBytes; most > limit {
		t.Errorf("backlog of %d bytes, want at most %d", most, limit)
	}
	if most <= flow.HighWater {
		t.Log("the readers were never slow enough for the backlog to pass HighWater")
	}
}
