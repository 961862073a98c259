package h2

import (
	"hash/maphash"

	"conduit.io/conduit/proxy/exchange"

	"golang.org/x/net/http2/hpack"
)

const (
	memoSlots = 16
	memoBlock = 512 // longest block that is remembered
	memoHeads = 64  // heads whose encoding is remembered; a power of two
	minHeads  = 4   // that a connection has room for at first
	// memoSize is the longest such encoding: a short block may stand for a long one.
	memoSize = 4 << 10
)

var seed = maphash.MakeSeed()

// block is a decoded header block. One that is remembered answers for identical blocks as long as the decoder's
// dynamic table stays as it is.
type block struct {
	raw    []byte // nil: not remembered
	gen    uint32
	fields []hpack.HeaderField
	big    bool // over the limits; fields are incomplete

	built bool // head, length and err are what the fields mean as a request or a response
	head  *exchange.Head
	left  int64
	err   error
}

// blockMemo is the blocks that have come twice.
type blockMemo struct {
	last  *block // the one that came last
	slots []*block
	seen  []uint64
}

// recall returns the decoded form of a block that has come twice already, and otherwise the slot in which it is to be
// kept, if any. A block that changes the dynamic table makes all others worthless.
func (h *hpackState) recall(raw []byte) (b *block, slot int) {
	m := &h.blocks
	if b = m.last; b != nil && b.gen == h.decGen && string(b.raw) == string(raw) {
		return b, -1
	}
	if !fixed(raw) {
		h.decGen++
		return nil, -1
	}
	if len(raw) > memoBlock {
		return nil, -1
	}
	if m.slots == nil {
		m.slots, m.seen = make([]*block, memoSlots), make([]uint64, memoSlots)
	}
	sum := maphash.Bytes(seed, raw)
	slot = int(sum % memoSlots)
	if b = m.slots[slot]; b != nil && b.gen == h.decGen && string(b.raw) == string(raw) {
		m.last = b
		return b, -1
	}
	if m.seen[slot] != sum {
		m.seen[slot] = sum
		return nil, -1
	}
	return nil, slot
}

// keep remembers the block in h.cur, and its encoded form.
func (h *hpackState) keep(slot int, raw []byte) *block {
	b := &block{gen: h.decGen, raw: append([]byte(nil), raw...), fields: append([]hpack.HeaderField(nil), h.cur.fields...)}
	h.blocks.slots[slot], h.blocks.last = b, b
	return b
}

// headMemo is what heads encode to, in a place that their ID gives them; those that share one drive each other out.
type headMemo []encoded

type encoded struct {
	head *exchange.Head
	gen  uint32
	b    []byte
}

// known returns the remembered encoding of a head, or nil.
func (h *hpackState) known(head *exchange.Head) []byte {
	if head.ID == 0 || len(h.heads) == 0 {
		return nil
	}
	e := &h.heads[head.ID%uint32(len(h.heads))]
	if e.head != head || e.gen != h.encGen {
		return nil
	}
	return e.b
}

// remember keeps the encoding of a head that repeats, if it is the last that it will have: it left the table alone.
func (h *hpackState) remember(head *exchange.Head, b []byte) {
	if head.ID == 0 || len(b) > memoSize || h.enc.New || !fixed(b) {
		return
	}
	if len(h.heads) == 0 {
		h.heads = make(headMemo, minHeads)
	}
	e := &h.heads[head.ID%uint32(len(h.heads))]
	for e.head != nil && e.head != head && e.gen == h.encGen && len(h.heads) < memoHeads {
		old := h.heads
		h.heads = make(headMemo, 2*len(old))
		for _, o := range old {
			if o.head != nil {
				h.heads[o.head.ID%uint32(len(h.heads))] = o
			}
		}
		e = &h.heads[head.ID%uint32(len(h.heads))]
	}
	*e = encoded{head, h.encGen, append([]byte(nil), b...)}
}
