package h2

import (
	"hash/maphash"

	"conduit.io/conduit/proxy/exchange"

	"golang.org/x/net/http2/hpack"
)

const (
	tableSize = 4096 // HPACK dynamic tables, both directions
	memoSlots = 16
	memoBlock = 512 // longest block that is remembered
	memoHeads = 64  // heads whose encoding is remembered
	// memoSize is the longest such encoding: a short block may stand for a long one.
	memoSize = 4 << 10
)

var seed = maphash.MakeSeed()

// block is a decoded header block. One that is remembered answers for identical blocks as long as the decoder's
// dynamic table stays as it is.
type block struct {
	raw    []byte
	gen    uint32
	fields []hpack.HeaderField
	big    bool // over the limits; fields are incomplete

	built bool // head, length and err are what the fields mean as a request or a response
	head  *exchange.Head
	left  int64
	err   error
}

type encoded struct {
	gen uint32
	b   []byte
}

// hpackState is both directions' compression of one connection.
type hpackState struct {
	lastID uint32 // highest stream that the peer has opened

	dec    *hpack.Decoder
	decGen uint32
	size   int
	cur    block // scratch, for blocks that are not remembered
	memo   []*block
	seen   []uint64

	enc    *hpack.Encoder
	encGen uint32
	resize bool // the encoder has a table size update to send
	out    appender
	heads  map[*exchange.Head]encoded
}

type appender struct{ b []byte }

func (a *appender) Write(p []byte) (int, error) {
	a.b = append(a.b, p...)
	return len(p), nil
}

// decode reads a header block. It must be called for every block, wanted or not: it carries the table's state.
// The result is valid until the next call.
func (h *hpackState) decode(pool *exchange.Pool, raw []byte) (*block, error) {
	h.decoder()
	slot, remember := -1, false
	if fixed(raw) {
		if len(raw) <= memoBlock {
			sum := maphash.Bytes(seed, raw)
			slot = int(sum % memoSlots)
			if h.memo == nil {
				h.memo, h.seen = make([]*block, memoSlots), make([]uint64, memoSlots)
			}
			if b := h.memo[slot]; b != nil && b.gen == h.decGen && string(b.raw) == string(raw) {
				if b.head != nil {
					b.head.Repeated = true
				}
				return b, nil
			}
			remember = h.seen[slot] == sum
			h.seen[slot] = sum
		}
	} else {
		h.decGen++
	}
	h.cur = block{fields: pool.Fields[:0]}
	h.size = 0
	_, err := h.dec.Write(raw)
	if err == nil {
		err = h.dec.Close()
	}
	pool.Fields = h.cur.fields[:0]
	if err != nil {
		return nil, fatal(codeCompression, "bad header block: "+err.Error())
	}
	if !remember || h.cur.big {
		return &h.cur, nil
	}
	b := &block{gen: h.decGen, raw: append([]byte(nil), raw...), fields: append([]hpack.HeaderField(nil), h.cur.fields...)}
	h.memo[slot] = b
	return b, nil
}

func (h *hpackState) decoder() {
	if h.dec == nil {
		h.dec = hpack.NewDecoder(tableSize, h.emit)
		h.dec.SetMaxStringLength(maxString)
	}
}

// skim lets the table take notice of the next part of a header block that is too large to be wanted; skimmed ends it.
func (h *hpackState) skim(p []byte) error {
	h.decoder()
	h.dec.SetEmitEnabled(false)
	if _, err := h.dec.Write(p); err != nil {
		return fatal(codeCompression, "bad header block: "+err.Error())
	}
	return nil
}

func (h *hpackState) skimmed() (*block, error) {
	h.decGen++
	h.dec.SetEmitEnabled(true)
	if err := h.dec.Close(); err != nil {
		return nil, fatal(codeCompression, "bad header block: "+err.Error())
	}
	h.cur = block{big: true}
	return &h.cur, nil
}

func (h *hpackState) emit(f hpack.HeaderField) {
	h.size += int(f.Size())
	if h.size > maxBlock || len(h.cur.fields) >= maxFields {
		h.cur.big = true
		return
	}
	h.cur.fields = append(h.cur.fields, f)
}

// fixed reports whether a header block leaves the dynamic table alone: indexed fields, and literals that are not
// indexed (RFC 7541, 6).
func fixed(b []byte) bool {
	for i := 0; i < len(b); {
		c := b[i]
		switch {
		case c&0x80 != 0:
			i = skipInt(b, i, 0x7f)
		case c&0x60 != 0: // incremental indexing, or a table size update
			return false
		default:
			name := c&0x0f == 0
			if i = skipInt(b, i, 0x0f); name {
				i = skipString(b, i)
			}
			i = skipString(b, i)
		}
	}
	return true
}

func skipInt(b []byte, i int, mask byte) int {
	if b[i]&mask != mask {
		return i + 1
	}
	for i++; i < len(b) && b[i]&0x80 != 0; i++ {
	}
	return i + 1
}

func skipString(b []byte, i int) int {
	if i >= len(b) {
		return i
	}
	n := int(b[i] & 0x7f)
	j := skipInt(b, i, 0x7f)
	if n == 0x7f {
		for k, shift := i+1, 0; k < j && k < len(b) && shift < 28; k, shift = k+1, shift+7 {
			n += int(b[k]&0x7f) << shift
		}
	}
	return j + n
}

// begin starts the encoding of a block; field adds to it, finish returns it, valid until pool.Bytes is used again.
func (h *hpackState) begin(pool *exchange.Pool) {
	if h.enc == nil {
		h.enc = hpack.NewEncoder(&h.out)
	}
	h.out.b = pool.Bytes[:0]
}

func (h *hpackState) finish(pool *exchange.Pool) []byte {
	b := h.out.b
	pool.Bytes, h.out.b = b, nil
	if !fixed(b) {
		h.encGen++
	}
	return b
}

// field encodes one field. Values that rarely repeat stay out of the dynamic table, so that they neither push others
// out of it nor invalidate what either side remembers.
func (h *hpackState) field(f hpack.HeaderField) {
	if f.Sensitive { // never to be indexed, on the next hop neither (RFC 7541, 6.2.3)
		h.resize = false
		h.enc.WriteField(f)
		return
	}
	switch f.Name {
	case ":path":
		h.literal(4, "", f.Value)
	case "content-length":
		h.literal(28, "", f.Value)
	case "date":
		h.literal(33, "", f.Value)
	case "x-request-id", "traceparent", "tracestate", "grpc-timeout", "conduit-client", "sec-websocket-key",
		"sec-websocket-accept", "grpc-message":
		h.literal(0, f.Name, f.Value)
	default:
		h.resize = false
		h.enc.WriteField(f)
	}
}

func (h *hpackState) literal(index byte, name, value string) {
	// A table size update must come first in a block, and only the encoder knows it (RFC 7541, 4.2).
	if index == 4 && (value == "/" || value == "/index.html") || h.resize {
		h.resize = false
		h.enc.WriteField(hpack.HeaderField{Name: staticName(index, name), Value: value})
		return
	}
	b := h.out.b
	if index < 15 {
		b = append(b, index)
	} else {
		b = append(b, 15, index-15)
	}
	if index == 0 {
		b = appendString(b, name)
	}
	h.out.b = appendString(b, value)
}

func staticName(index byte, name string) string {
	switch index {
	case 4:
		return ":path"
	case 28:
		return "content-length"
	case 33:
		return "date"
	}
	return name
}

// appendString writes a string literal without Huffman coding, which costs both sides more than the bytes it saves
// (RFC 7541, 5.2).
func appendString(b []byte, s string) []byte {
	n := len(s)
	if n < 0x7f {
		return append(append(b, byte(n)), s...)
	}
	b = append(b, 0x7f)
	for n -= 0x7f; n >= 0x80; n >>= 7 {
		b = append(b, 0x80|byte(n))
	}
	return append(append(b, byte(n)), s...)
}

// setPeerTable obeys the peer's SETTINGS_HEADER_TABLE_SIZE.
func (h *hpackState) setPeerTable(v uint32) {
	if h.enc == nil {
		h.enc = hpack.NewEncoder(&h.out)
	}
	h.enc.SetMaxDynamicTableSizeLimit(min(v, tableSize))
	h.enc.SetMaxDynamicTableSize(v) // it may grow again, too
	h.resize = true
	h.encGen++
}

// known returns the remembered encoding of a head, or nil.
func (h *hpackState) known(head *exchange.Head) []byte {
	if e, ok := h.heads[head]; ok && e.gen == h.encGen {
		return e.b
	}
	return nil
}

// remember keeps the encoding of a head that repeats, if it left the table alone.
func (h *hpackState) remember(head *exchange.Head, b []byte) {
	if !head.Repeated || len(b) > memoSize || !fixed(b) {
		return
	}
	if h.heads == nil {
		h.heads = make(map[*exchange.Head]encoded)
	}
	if len(h.heads) >= memoHeads {
		clear(h.heads)
	}
	h.heads[head] = encoded{h.encGen, append([]byte(nil), b...)}
}
