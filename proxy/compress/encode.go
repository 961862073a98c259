package compress

import (
	"hash/maphash"
	"slices"

	"golang.org/x/net/http2/hpack"
)

// An encoder knows of seenSets times seenWays fields that they have come once.
const (
	seenSets = 16
	seenWays = 4
)

var seed = maphash.MakeSeed()

// Encoder encodes the header blocks of one connection. The order of the calls is that of the wire.
type Encoder struct {
	t    table
	seen *[seenSets][seenWays]uint32 // marks of fields that have come once
	turn uint8                       // the way that the next one goes into

	// New is set when a field was not taken from a table but may be when it comes again. Whoever cares resets it.
	New bool

	resized  bool
	smallest uint32 // size that the table had, since the last block
}

// NewEncoder makes an encoder for a peer that has said nothing of its table.
func NewEncoder() *Encoder { return &Encoder{t: table{max: TableSize}} }

// SetTableSize obeys the peer's SETTINGS_HEADER_TABLE_SIZE (RFC 9113, 6.5.2).
func (e *Encoder) SetTableSize(n uint32) {
	n = min(n, TableSize)
	if !e.resized {
		e.resized, e.smallest = true, n
	}
	e.smallest = min(e.smallest, n)
	e.t.resize(n)
}

// Rest gives up the table and all that is known of fields, until there is another block, which empties the peer's table.
func (e *Encoder) Rest() {
	if e.t.n > 0 {
		max := e.t.max
		e.SetTableSize(0)
		e.SetTableSize(max)
	}
	e.t.rest()
	e.seen = nil
}

// Begin starts a block: it appends the change of the table's size that the peer must be told of (RFC 7541, 4.2). Of a
// table that was smaller for a while the least size must be told as well; that is 0 here, because golang.org/x/net takes
// a second change for an error unless the table is empty.
func (e *Encoder) Begin(b []byte) []byte {
	if !e.resized {
		return b
	}
	e.resized = false
	size := e.t.max
	if e.smallest < size {
		e.t.resize(0)
		e.t.resize(size)
		b = append(b, 0x20)
	}
	return appendInteger(b, 0x20, 0x1f, int(size))
}

// Append encodes a field that may come again: the second time it goes into the table.
func (e *Encoder) Append(b []byte, f hpack.HeaderField) []byte {
	index, whole := inStatic(&f)
	switch {
	case whole:
		return appendInteger(b, 0x80, 0x7f, index)
	case f.Sensitive:
		return literal(b, 0x10, 0x0f, index, f)
	}
	var h maphash.Hash
	h.SetSeed(seed)
	_, _ = h.WriteString(f.Name)
	_ = h.WriteByte(0)
	_, _ = h.WriteString(f.Value)
	mark := uint32(h.Sum64())
	for age := range e.t.n {
		if k := e.t.get(age); k.mark == mark && k.Name == f.Name && k.Value == f.Value {
			return appendInteger(b, 0x80, 0x7f, len(static)+1+age)
		}
	}
	if f.Size() > e.t.max {
		return literal(b, 0, 0x0f, index, f)
	}
	e.New = true
	if e.seen == nil {
		e.seen = new([seenSets][seenWays]uint32)
	}
	if s := &e.seen[mark%seenSets]; !slices.Contains(s[:], mark) {
		e.turn++
		s[e.turn%seenWays] = mark
		return literal(b, 0, 0x0f, index, f)
	}
	b = literal(b, 0x40, 0x3f, index, f)
	e.t.add(entry{f, mark})
	return b
}

// AppendUnique encodes a field whose value rarely comes again: it leaves the table alone.
func (e *Encoder) AppendUnique(b []byte, f hpack.HeaderField) []byte {
	index, whole := inStatic(&f)
	switch {
	case whole:
		return appendInteger(b, 0x80, 0x7f, index)
	case f.Sensitive:
		return literal(b, 0x10, 0x0f, index, f)
	}
	return literal(b, 0, 0x0f, index, f)
}

// literal appends a field that is not in a table, its name by its index if that is not 0.
func literal(b []byte, pattern, mask byte, index int, f hpack.HeaderField) []byte {
	b = appendInteger(b, pattern, mask, index)
	if index == 0 {
		b = appendString(b, f.Name)
	}
	return appendString(b, f.Value)
}

// appendString writes a string literal without Huffman coding, which costs both sides more than the bytes it saves
// (RFC 7541, 5.2).
func appendString(b []byte, s string) []byte {
	return append(appendInteger(b, 0, 0x7f, len(s)), s...)
}

func appendInteger(b []byte, pattern, mask byte, n int) []byte {
	if n < int(mask) {
		return append(b, pattern|byte(n))
	}
	b = append(b, pattern|mask)
	for n -= int(mask); n >= 0x80; n >>= 7 {
		b = append(b, 0x80|byte(n))
	}
	return append(b, byte(n))
}
