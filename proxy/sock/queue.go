package sock

import (
	"sync"

	"golang.org/x/sys/unix"
)

const (
	smallChunk = 4 << 10
	largeChunk = 16 << 10 // the most that a TLS record carries (RFC 8446, 5.1): a full chunk is one record
	maxIovecs  = 16
)

// chunk is a piece of a queue.
type chunk struct {
	next *chunk
	r, w int
	b    []byte
}

// Pools instead of lists of the loop's own: what a burst has needed goes back to the collector.
var (
	smallPool = sync.Pool{New: func() any { return &chunk{b: make([]byte, smallChunk)} }}
	largePool = sync.Pool{New: func() any { return &chunk{b: make([]byte, largeChunk)} }}
)

func newChunk(size int) *chunk {
	if size <= smallChunk {
		return smallPool.Get().(*chunk)
	}
	return largePool.Get().(*chunk)
}

func (k *chunk) free() {
	k.next, k.r, k.w = nil, 0, 0
	if len(k.b) == smallChunk {
		smallPool.Put(k)
	} else {
		largePool.Put(k)
	}
}

// queue is bytes that wait to be written. Empty, it holds no memory.
type queue struct {
	head, tail *chunk
	n          int
}

// append copies p to the end.
func (q *queue) append(p []byte) {
	q.n += len(p)
	for len(p) > 0 {
		if q.tail == nil || q.tail.w == len(q.tail.b) {
			size := len(p)
			if q.tail != nil {
				size = largeChunk // it did not stay small
			}
			k := newChunk(size)
			if q.tail == nil {
				q.head = k
			} else {
				q.tail.next = k
			}
			q.tail = k
		}
		m := copy(q.tail.b[q.tail.w:], p)
		q.tail.w += m
		p = p[m:]
	}
}

// skip drops n bytes from the front.
func (q *queue) skip(n int) {
	q.n -= n
	for n > 0 {
		k := q.head
		m := min(n, k.w-k.r)
		k.r += m
		n -= m
		if k.r == k.w {
			q.pop()
		}
	}
}

// take moves n bytes from the front to the end of p.
func (q *queue) take(p []byte, n int) []byte {
	for n > 0 {
		k := q.head
		m := min(n, k.w-k.r)
		p = append(p, k.b[k.r:k.r+m]...)
		q.skip(m)
		n -= m
	}
	return p
}

// pop frees the first chunk.
func (q *queue) pop() {
	k := q.head
	q.head = k.next
	if q.head == nil {
		q.tail = nil
	}
	k.free()
}

// reset frees everything.
func (q *queue) reset() {
	for q.head != nil {
		q.pop()
	}
	q.n = 0
}

// iovecs fills v with the front of the queue.
func (q *queue) iovecs(v *[maxIovecs]unix.Iovec) []unix.Iovec {
	i := 0
	for k := q.head; k != nil && i < maxIovecs; k = k.next {
		v[i].Base = &k.b[k.r]
		v[i].SetLen(k.w - k.r)
		i++
	}
	return v[:i]
}
