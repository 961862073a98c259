package h2

import (
	"conduit.io/conduit/proxy/compress"
	"conduit.io/conduit/proxy/exchange"

	"golang.org/x/net/http2/hpack"
)

// hpackState is both directions' compression of one connection.
type hpackState struct {
	lastID uint32 // highest stream that the peer has opened

	dec    *compress.Decoder
	decGen uint32
	cur    *block // scratch, for blocks that are not remembered
	blocks blockMemo

	enc    *compress.Encoder
	encGen uint32
	out    []byte
	heads  headMemo
}

// decode reads a header block. It must be called for every block, wanted or not: it carries the table's state.
// The result is valid until the next call.
func (h *hpackState) decode(pool *exchange.Pool, raw []byte) (*block, error) {
	b, slot := h.recall(raw)
	if b != nil {
		return b, nil
	}
	fields, complete, err := h.decoder().Decode(raw, pool.Fields[:0], maxFields, maxBlock)
	pool.Fields = fields[:0]
	if err != nil {
		return nil, fatal(codeCompression, "bad header block: "+err.Error())
	}
	h.scratch(block{fields: fields, big: !complete})
	if slot < 0 || h.cur.big {
		return h.cur, nil
	}
	return h.keep(slot, raw), nil
}

func (h *hpackState) scratch(b block) {
	if h.cur == nil {
		h.cur = &block{}
	}
	*h.cur = b
}

// rest gives up what makes blocks cheap that come again. It is called between blocks, when no more have come for a while.
func (h *hpackState) rest() {
	h.cur, h.blocks, h.heads = nil, blockMemo{}, nil
	if h.enc != nil {
		h.enc.Rest()
	}
	if h.dec != nil {
		h.dec.Rest()
	}
}

func (h *hpackState) decoder() *compress.Decoder {
	if h.dec == nil {
		h.dec = compress.NewDecoder(maxString)
	}
	return h.dec
}

// skim lets the table take notice of the next part of a header block that is too large to be wanted; skimmed ends it.
func (h *hpackState) skim(p []byte) error {
	if err := h.decoder().Skip(p); err != nil {
		return fatal(codeCompression, "bad header block: "+err.Error())
	}
	return nil
}

func (h *hpackState) skimmed() (*block, error) {
	h.decGen++
	if err := h.dec.Skipped(); err != nil {
		return nil, fatal(codeCompression, "bad header block: "+err.Error())
	}
	h.scratch(block{big: true})
	return h.cur, nil
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
	e := h.encoder()
	e.New = false
	h.out = e.Begin(pool.Bytes[:0])
}

func (h *hpackState) encoder() *compress.Encoder {
	if h.enc == nil {
		h.enc = compress.NewEncoder()
	}
	return h.enc
}

func (h *hpackState) finish(pool *exchange.Pool) []byte {
	b := h.out
	pool.Bytes, h.out = b, nil
	if !fixed(b) {
		h.encGen++
	}
	return b
}

// field encodes one field. Values that rarely repeat stay out of the dynamic table without being asked.
func (h *hpackState) field(f hpack.HeaderField) {
	switch f.Name {
	case ":path", "content-length", "date", "x-request-id", "traceparent", "tracestate", "grpc-timeout", "sec-websocket-key",
		"sec-websocket-accept", "grpc-message", "conduit-client", exchange.TimeField:
		h.out = h.enc.AppendUnique(h.out, f)
	default:
		h.out = h.enc.Append(h.out, f)
	}
}

// setPeerTable obeys the peer's SETTINGS_HEADER_TABLE_SIZE.
func (h *hpackState) setPeerTable(v uint32) {
	h.encoder().SetTableSize(v)
	h.encGen++
}
