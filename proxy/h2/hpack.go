package h2

import (
	"conduit.io/conduit/proxy/exchange"

	"golang.org/x/net/http2/hpack"
)

const tableSize = 4096 // HPACK dynamic tables, both directions

// hpackState is both directions' compression of one connection.
type hpackState struct {
	lastID uint32 // highest stream that the peer has opened

	dec    *hpack.Decoder
	decGen uint32
	size   int
	cur    block // scratch, for blocks that are not remembered
	blocks blockMemo

	enc    *hpack.Encoder
	encGen uint32
	resize bool // the encoder has a table size update to send
	out    appender
	heads  headMemo
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
	b, slot := h.recall(raw)
	if b != nil {
		return b, nil
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
	if slot < 0 || h.cur.big {
		return &h.cur, nil
	}
	return h.keep(slot, raw), nil
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
	case "x-request-id", "traceparent", "tracestate", "grpc-timeout", "sec-websocket-key",
		"sec-websocket-accept", "grpc-message", "conduit-client", exchange.TimeField:
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
