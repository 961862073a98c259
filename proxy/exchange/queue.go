package exchange

import "sync"

// pieceSize makes a piece take 16 KiB of memory, and fit into one TLS record together with the header of its DATA frame.
const pieceSize = 16<<10 - 24

// queue is bytes on their way toward one side of a stream. Empty, it holds no memory.
type queue struct {
	head, tail *piece
	n          int
}

type piece struct {
	next *piece
	r, w int
	b    [pieceSize]byte
}

// A pool instead of a list of the shard's own: what a burst has needed goes back to the collector.
var pieces = sync.Pool{New: func() any { return new(piece) }}

func newPiece() *piece {
	k := pieces.Get().(*piece)
	k.next, k.r, k.w = nil, 0, 0
	return k
}

func (q *queue) len() int { return q.n }

// front is the bytes of the first piece.
func (q *queue) front() []byte {
	if q.head == nil {
		return nil
	}
	return q.head.b[q.head.r:q.head.w]
}

// push copies d to the end.
func (q *queue) push(d []byte) {
	q.n += len(d)
	for len(d) > 0 {
		switch {
		case q.head == nil:
			q.head = newPiece()
			q.tail = q.head
		case q.tail.w == pieceSize:
			q.tail.next = newPiece()
			q.tail = q.tail.next
		}
		m := copy(q.tail.b[q.tail.w:], d)
		q.tail.w += m
		d = d[m:]
	}
}

// unshift copies d, not longer than a piece, to the front.
func (q *queue) unshift(d []byte) {
	k := newPiece()
	k.w = copy(k.b[:], d)
	k.next = q.head
	if q.head = k; q.tail == nil {
		q.tail = k
	}
	q.n += len(d)
}

// pop drops n bytes of the first piece.
func (q *queue) pop(n int) {
	if n == 0 {
		return
	}
	q.n -= n
	if q.head.r += n; q.head.r == q.head.w {
		q.free()
	}
}

// free gives the first piece back.
func (q *queue) free() {
	k := q.head
	if q.head = k.next; q.head == nil {
		q.tail = nil
	}
	pieces.Put(k)
}

func (q *queue) reset() {
	for q.head != nil {
		q.free()
	}
	q.n = 0
}
