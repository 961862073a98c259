package exchange

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

// TestQueue compares the queue with a slice.
func TestQueue(t *testing.T) {
	var q queue
	p := NewPool()
	var want []byte
	data := make([]byte, 3*pieceSize)
	for i := range data {
		data[i] = byte(i * 7)
	}
	some := func(max int) []byte {
		at := rand.IntN(100)
		return data[at : at+1+rand.IntN(max)]
	}
	for range 20_000 {
		op := rand.IntN(6)
		if rand.IntN(200) == 0 || len(want) > 8*pieceSize {
			op = 6
		}
		switch op {
		case 0, 1, 2:
			d := some([]int{10, 2 * pieceSize}[rand.IntN(2)])
			q.push(p, d)
			want = append(want, d...)
		case 3:
			d := some(replayMax)
			q.unshift(p, d)
			want = append(bytes.Clone(d), want...)
		case 4, 5:
			if f := q.front(); len(f) > 0 {
				n := 1 + rand.IntN(len(f))
				if !bytes.Equal(f[:n], want[:n]) {
					t.Fatal("other bytes at the front")
				}
				q.pop(p, n)
				want = want[n:]
			}
		case 6:
			q.reset(p)
			want = nil
		}
		if p.Held() != q.memory() || p.Held() < len(want) {
			t.Fatalf("the pool knows of %d bytes; %d of %d are taken", p.Held(), len(want), q.memory())
		}
		if q.len() != len(want) || (q.head == nil) != (len(want) == 0) || (q.tail == nil) != (len(want) == 0) {
			t.Fatalf("%d bytes, want %d", q.len(), len(want))
		}
	}
}
