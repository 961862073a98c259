package exchange

import "sync"

const (
	// pieceSize makes a piece fit into one TLS record together with the header of its DATA frame.
	pieceSize = 16<<10 - 24
	// smallPiece is for a queue that begins with so little: many requests that wait for a connection have small bodies.
	smallPiece = 1 << 10
)

// queue is bytes on their way toward one side of a stream. Empty, it holds no memory.
type queue struct {
	head, tail *piece
	n          int
}

type piece struct {
	next *piece
	r, w int
	b    []byte
}

// Pools instead of lists of the shard's own: what a burst has needed goes back to the collector.
var (
	pieces = sync.Pool{New: func() any { return &piece{b: make([]byte, pieceSize)} }}
	smalls = sync.Pool{New: func() any { return &piece{b: make([]byte, smallPiece)} }}
)

// newPiece is for n bytes, or for the first of them.
func newPiece(p *Pool, n int) *piece {
	from := &pieces
	if n <= smallPiece {
		from = &smalls
	}
	k := from.Get().(*piece)
	k.next, k.r, k.w = nil, 0, 0
	p.Keep(len(k.b))
	return k
}

// memory is how much the queue takes.
func (q *queue) memory() (n int) {
	for k := q.head; k != nil; k = k.next {
		n += len(k.b)
	}
	return n
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
func (q *queue) push(p *Pool, d []byte) {
	q.n += len(d)
	for len(d) > 0 {
		switch {
		case q.head == nil:
			q.head = newPiece(p, len(d))
			q.tail = q.head
		case q.tail.w == len(q.tail.b): // it does not stay small
			q.tail.next = newPiece(p, pieceSize)
			q.tail = q.tail.next
		}
		m := copy(q.tail.b[q.tail.w:], d)
		q.tail.w += m
		d = d[m:]
	}
}

// unshift copies d, not longer than a piece, to the front.
func (q *queue) unshift(p *Pool, d []byte) {
	k := newPiece(p, len(d))
	k.w = copy(k.b[:], d)
	k.next = q.head
	if q.head = k; q.tail == nil {
		q.tail = k
	}
	q.n += len(d)
}

// pop drops n bytes of the first piece.
func (q *queue) pop(p *Pool, n int) {
	if n == 0 {
		return
	}
	q.n -= n
	if q.head.r += n; q.head.r == q.head.w {
		q.free(p)
	}
}

// free gives the first piece back.
func (q *queue) free(p *Pool) {
	k := q.head
	if q.head = k.next; q.head == nil {
		q.tail = nil
	}
	p.Keep(-len(k.b))
	if len(k.b) == smallPiece {
		smalls.Put(k)
	} else {
		pieces.Put(k)
	}
}

func (q *queue) reset(p *Pool) {
	for q.head != nil {
		q.free(p)
	}
	q.n = 0
}
