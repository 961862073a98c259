package h2

import (
	"bytes"

	"golang.org/x/net/http2/hpack"
)

// Field is a header field.
type Field = hpack.HeaderField

// allIndexed reports whether a block is made of references to the tables alone: it then neither changes the dynamic
// table nor, until another block does, its meaning.
func allIndexed(block []byte) bool {
	for _, b := range block {
		if b < 0x80 || b == 0xff { // literals, size updates, indices of several bytes
			return false
		}
	}
	return true
}

// encoder writes header blocks. Blocks that are all references are remembered, by a number that the caller gives to
// lists of fields that it sends again and again.
type encoder struct {
	buf  bytes.Buffer
	enc  *hpack.Encoder
	memo map[int][]byte
	calm bool // the block before was all references: remembering is worth its cost
}

func newEncoder() *encoder {
	e := &encoder{memo: map[int][]byte{}}
	e.enc = hpack.NewEncoder(&e.buf)
	return e
}

// tableSize takes the peer's SETTINGS_HEADER_TABLE_SIZE.
func (e *encoder) tableSize(n uint32) {
	e.enc.SetMaxDynamicTableSizeLimit(n)
	clear(e.memo)
}

// block encodes fields; its result is valid until the next call. key is 0 for fields that are sent once.
func (e *encoder) block(key int, fields []Field) []byte {
	if b := e.memo[key]; b != nil && key != 0 {
		return b
	}
	e.buf.Reset()
	for _, f := range fields {
		_ = e.enc.WriteField(f) // a bytes.Buffer takes everything
	}
	b := e.buf.Bytes()
	indexed := allIndexed(b)
	switch {
	case !indexed && len(e.memo) > 0:
		clear(e.memo)
	case indexed && e.calm && key != 0:
		e.memo[key] = bytes.Clone(b)
	}
	e.calm = indexed
	return b
}

// Fields are a header block.
type Fields struct {
	List []Field
	// Ctx is for the receiver, who sees the same Fields again when a block repeats.
	Ctx any
}

// Get is the value of the first field of that name, or "".
func (f *Fields) Get(name string) string {
	for i := range f.List {
		if f.List[i].Name == name {
			return f.List[i].Value
		}
	}
	return ""
}

type decoder struct {
	dec  *hpack.Decoder
	cur  *Fields
	memo map[string]*Fields
	calm bool // as in encoder
}

func newDecoder() *decoder {
	d := &decoder{cur: &Fields{}, memo: map[string]*Fields{}}
	d.dec = hpack.NewDecoder(4096, func(f Field) { d.cur.List = append(d.cur.List, f) })
	return d
}

// maxMemo bounds the remembered blocks.
const maxMemo = 64

// block decodes a header block. The result is valid until the next call.
func (d *decoder) block(b []byte) (*Fields, error) {
	if f := d.memo[string(b)]; f != nil {
		return f, nil
	}
	indexed := allIndexed(b)
	if !indexed && len(d.memo) > 0 {
		clear(d.memo)
	}
	f := d.cur
	f.List, f.Ctx = f.List[:0], nil
	if _, err := d.dec.Write(b); err != nil {
		return nil, err
	}
	if err := d.dec.Close(); err != nil {
		return nil, err
	}
	if indexed && d.calm && len(d.memo) < maxMemo {
		d.memo[string(b)] = f
		d.cur = &Fields{}
	}
	d.calm = indexed
	return f, nil
}
