package compress

import (
	"errors"

	"golang.org/x/net/http2/hpack"
)

// The errors of Decoder; each is a COMPRESSION_ERROR of the connection (RFC 9113, 4.3).
var (
	errIndex     = errors.New("an index is not in the table")
	errInteger   = errors.New("an integer is too large")
	errTruncated = errors.New("the block ends within a field")
	errUpdate    = errors.New("a table size update is not allowed here")
	errString    = errors.New("a string is too long")
)

// Decoder decodes the header blocks of one connection, in their order.
type Decoder struct {
	t         table
	maxString int
	begun     bool   // a field of the current block has been read
	rest      []byte // of Skip: the begin of a field
	scratch   []byte

	// Of Decode:
	fields    []hpack.HeaderField
	room      int // for what the fields may take together
	maxFields int
	complete  bool
	text      string // the block, of which strings are parts
}

// NewDecoder makes a decoder that takes a longer string than maxString for an error.
func NewDecoder(maxString int) *Decoder {
	return &Decoder{t: table{max: TableSize}, maxString: maxString}
}

// Decode appends the fields of a whole block to fields. complete is false when they would be more than maxFields, or
// larger together than maxSize (RFC 9113, 6.5.2, SETTINGS_MAX_HEADER_LIST_SIZE): those beyond are dropped, but the table
// has taken notice of them. The strings do not refer to block.
func (d *Decoder) Decode(block []byte, fields []hpack.HeaderField, maxFields, maxSize int) (all []hpack.HeaderField, complete bool, err error) {
	d.fields, d.maxFields, d.room, d.complete = fields, maxFields, maxSize, true
	d.text, d.begun = "", false
	for i := 0; i < len(block) && err == nil; {
		i, err = d.field(block, i, true)
	}
	all, complete = d.fields, d.complete
	d.fields, d.text = nil, ""
	return all, complete, err
}

// Rest gives up what is needed only while a block is read, or was.
func (d *Decoder) Rest() {
	d.scratch = nil
	d.t.rest()
}

// Skip lets the table take notice of the next part of a block; Skipped ends the block.
func (d *Decoder) Skip(p []byte) error {
	if len(d.rest) > 0 {
		p = append(d.rest, p...)
		d.rest = nil
	}
	for i := 0; i < len(p); {
		n, err := d.field(p, i, false)
		if errors.Is(err, errTruncated) && len(p)-i <= 2*(d.maxString+8) {
			d.rest = append([]byte(nil), p[i:]...)
			return nil
		}
		if err != nil {
			return err
		}
		i = n
	}
	return nil
}

// Skipped ends a block.
func (d *Decoder) Skipped() error {
	d.begun = false
	if len(d.rest) > 0 {
		d.rest = nil
		return errTruncated
	}
	return nil
}

// field reads the representation that begins at b[i] and returns where the next one does (RFC 7541, 6).
func (d *Decoder) field(b []byte, i int, want bool) (int, error) {
	c := b[i]
	switch {
	case c&0x80 != 0:
		index, i, err := integer(b, i, 0x7f)
		if err != nil {
			return i, err
		}
		f := d.at(index)
		if f == nil {
			return i, errIndex
		}
		d.begun = true
		if want {
			d.emit(*f)
		}
		return i, nil
	case c&0xc0 == 0x40:
		return d.literal(b, i, 0x3f, want, true)
	case c&0xe0 == 0x20:
		size, i, err := integer(b, i, 0x1f)
		if err == nil && (size > TableSize || d.begun) { // it stands before all fields (RFC 7541, 4.2)
			err = errUpdate
		}
		if err == nil {
			d.t.resize(uint32(size))
		}
		return i, err
	}
	return d.literal(b, i, 0x0f, want, false)
}

func (d *Decoder) literal(b []byte, i int, mask byte, want, keep bool) (int, error) {
	f := hpack.HeaderField{Sensitive: b[i]&0xf0 == 0x10}
	index, i, err := integer(b, i, mask)
	if err != nil {
		return i, err
	}
	if index > 0 {
		named := d.at(index)
		if named == nil {
			return i, errIndex
		}
		f.Name = named.Name
	} else if f.Name, i, err = d.string(b, i, want, keep); err != nil {
		return i, err
	}
	if f.Value, i, err = d.string(b, i, want, keep); err != nil {
		return i, err
	}
	d.begun = true
	if keep {
		d.t.add(entry{HeaderField: f})
	}
	if want {
		d.emit(f)
	}
	return i, nil
}

// at is the field with an index in both tables (RFC 7541, 2.3.3), or nil.
func (d *Decoder) at(index int) *hpack.HeaderField {
	switch {
	case index == 0:
		return nil
	case index <= len(static):
		return &static[index-1]
	case index-len(static) <= d.t.n:
		return &d.t.get(index - len(static) - 1).HeaderField
	}
	return nil
}

func (d *Decoder) emit(f hpack.HeaderField) {
	d.room -= int(f.Size())
	if d.room < 0 || len(d.fields) >= d.maxFields {
		d.complete = false
		return
	}
	d.fields = append(d.fields, f)
}

// string reads a string literal (RFC 7541, 5.2). One for the table has memory of its own, so that it does not keep a
// whole block; the others of a block share one copy of it.
func (d *Decoder) string(b []byte, i int, want, keep bool) (string, int, error) {
	if i >= len(b) {
		return "", i, errTruncated
	}
	huffman := b[i]&0x80 != 0
	n, i, err := integer(b, i, 0x7f)
	switch {
	case err != nil:
		return "", i, err
	case n > d.maxString:
		return "", i, errString
	case n > len(b)-i:
		return "", i, errTruncated
	}
	end := i + n
	switch {
	case huffman:
		d.scratch = d.scratch[:0]
		if _, err := hpack.HuffmanDecode((*appender)(&d.scratch), b[i:end]); err != nil {
			return "", i, err
		}
		if len(d.scratch) > d.maxString {
			return "", i, errString
		}
		s := ""
		if want || keep {
			s = string(d.scratch)
		}
		if cap(d.scratch) > 1<<10 {
			d.scratch = nil
		}
		return s, end, nil
	case keep:
		return string(b[i:end]), end, nil
	case !want:
		return "", end, nil
	}
	if d.text == "" {
		d.text = string(b)
	}
	return d.text[i:end], end, nil
}

// integer reads an integer with a prefix (RFC 7541, 5.1) and returns where it ends.
func integer(b []byte, i int, mask byte) (n, next int, err error) {
	n = int(b[i] & mask)
	i++
	if n < int(mask) {
		return n, i, nil
	}
	for shift := 0; ; shift += 7 {
		if i >= len(b) {
			return 0, i, errTruncated
		}
		if shift > 28 {
			return 0, i, errInteger
		}
		c := b[i]
		i++
		n += int(c&0x7f) << shift
		if c&0x80 == 0 {
			return n, i, nil
		}
	}
}

type appender []byte

func (a *appender) Write(p []byte) (int, error) {
	*a = append(*a, p...)
	return len(p), nil
}
