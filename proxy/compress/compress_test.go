package compress

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/http2/hpack"
)

// reference is the decoder of golang.org/x/net.
type reference struct {
	d      *hpack.Decoder
	fields []hpack.HeaderField
}

func newReference(maxString int) *reference {
	r := &reference{}
	r.d = hpack.NewDecoder(TableSize, func(f hpack.HeaderField) { r.fields = append(r.fields, f) })
	r.d.SetMaxStringLength(maxString)
	return r
}

func (r *reference) decode(b []byte) ([]hpack.HeaderField, error) {
	r.fields = nil
	_, err := r.d.Write(b)
	if err == nil {
		err = r.d.Close()
	}
	return r.fields, err
}

const unbounded = 1 << 30

// random is a field out of few, many or very many.
func random() hpack.HeaderField {
	names := []string{":method", ":path", ":status", "accept", "content-type", "x-a", "x-b", "x-long-name-that-is-longer", "", "cookie"}
	f := hpack.HeaderField{Name: names[rand.IntN(len(names))], Sensitive: rand.IntN(20) == 0}
	switch rand.IntN(4) {
	case 0:
		f.Value = "GET"
	case 1:
		f.Value = fmt.Sprint(rand.IntN(30))
	case 2:
		f.Value = fmt.Sprint("value ", rand.Int())
	case 3:
		f.Value = strings.Repeat("v", rand.IntN(5000))
	}
	return f
}

// TestEncoderIsUnderstood decodes with another decoder what the encoder makes, over changes of the table's size.
func TestEncoderIsUnderstood(t *testing.T) {
	for range 50 {
		e, ref, own := NewEncoder(), newReference(0), NewDecoder(unbounded)
		for range 300 {
			for rand.IntN(20) == 0 {
				e.SetTableSize(uint32(rand.IntN(6000)))
			}
			if rand.IntN(20) == 0 {
				e.Rest()
			}
			if rand.IntN(10) == 0 {
				own.Rest()
			}
			var want []hpack.HeaderField
			b := e.Begin(nil)
			for range rand.IntN(8) {
				f := random()
				want = append(want, f)
				if rand.IntN(4) == 0 {
					b = e.AppendUnique(b, f)
				} else {
					b = e.Append(b, f)
				}
			}
			got, err := ref.decode(b)
			plain(want)
			if plain(got); err != nil || !slices.Equal(got, want) {
				t.Fatalf("%v\n got %v\nwant %v", err, got, want)
			}
			got, complete, err := own.Decode(b, nil, 1000, unbounded)
			if plain(got); err != nil || !complete || !slices.Equal(got, want) {
				t.Fatalf("own: %v %v\n got %v\nwant %v", complete, err, got, want)
			}
		}
	}
}

// TestRest: a decoder at rest has room for what it must know, an encoder for nothing.
func TestRest(t *testing.T) {
	e, d := NewEncoder(), NewDecoder(unbounded)
	for n := range 10 {
		for i := range n {
			for range 2 {
				f := hpack.HeaderField{Name: "x", Value: fmt.Sprint(i)}
				if _, _, err := d.Decode(e.Append(e.Begin(nil), f), nil, 10, unbounded); err != nil {
					t.Fatal(err)
				}
			}
		}
		if e.t.n != n || d.t.n != n {
			t.Fatalf("%d and %d entries are in the tables, want %d", e.t.n, d.t.n, n)
		}
		e.Rest()
		d.Rest()
		if e.t.ring != nil || e.seen != nil || len(d.t.ring) >= 2*max(n, 1) {
			t.Errorf("with %d entries, the encoder keeps %d places, the decoder %d", n, len(e.t.ring), len(d.t.ring))
		}
	}
}

// plain forgets that a field is sensitive if it is one of the static table, which there is nothing to hide of.
func plain(all []hpack.HeaderField) {
	for i := range all {
		if _, whole := inStatic(&all[i]); whole {
			all[i].Sensitive = false
		}
	}
}

// TestOnlyWhatComesAgainIsIndexed counts the bytes of blocks with a field that repeats beside one that never does.
func TestOnlyWhatComesAgainIsIndexed(t *testing.T) {
	e := NewEncoder()
	sizes := make([]int, 100)
	for i := range sizes {
		b := e.Append(e.Begin(nil), hpack.HeaderField{Name: "x-same", Value: "the same value"})
		b = e.Append(b, hpack.HeaderField{Name: "x-id", Value: fmt.Sprintf("%016d", i)})
		sizes[i] = len(b)
	}
	if sizes[99] > 25 || e.t.n != 1 {
		t.Errorf("the last block has %d bytes, and %d fields are in the table", sizes[99], e.t.n)
	}
}

// TestLimits: what is too much is dropped or refused, and the table stays what the peer thinks it is.
func TestLimits(t *testing.T) {
	e, d := hpackBlock(), NewDecoder(100)
	big := e.block("x-a", strings.Repeat("a", 90), "x-b", strings.Repeat("b", 90), "x-c", "c")
	got, complete, err := d.Decode(big, nil, 10, 200)
	if err != nil || complete || len(got) != 1 {
		t.Errorf("%d fields, complete %v, %v", len(got), complete, err)
	}
	got, complete, err = d.Decode(e.block("x-c", "c", "x-b", strings.Repeat("b", 90)), nil, 10, 200)
	if err != nil || !complete || len(got) != 2 || got[0].Value != "c" || got[1].Name != "x-b" {
		t.Errorf("after what was dropped: %v, complete %v, %v", got, complete, err)
	}
	if _, complete, _ := d.Decode(e.block("x-c", "c", "x-c", "c"), nil, 1, 200); complete {
		t.Error("two fields where one is allowed")
	}
	for name, b := range map[string][]byte{
		"string":            append([]byte{0, 1, 'a', 0x7f, 1}, make([]byte, 200)...),
		"index 0":           {0x80},
		"index not in use":  {0xff, 0x7f},
		"huge integer":      {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f},
		"cut integer":       {0xff, 0x80},
		"cut string":        {0, 5, 'a'},
		"no value":          {0, 1, 'a'},
		"update too large":  {0x3f, 0xe2, 0x1f},
		"update after":      {0x82, 0x20},
		"Huffman padding":   {0, 1, 'a', 0x81, 0x00},
		"Huffman EOS":       {0, 1, 'a', 0x84, 0xff, 0xff, 0xff, 0xff},
		"name of no entry":  {0x7f, 0x40, 1, 'a'},
		"literal of name 0": {0},
	} {
		if _, _, err := NewDecoder(100).Decode(b, nil, 10, unbounded); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// blocks makes blocks with the encoder of golang.org/x/net, which puts every field into its table.
type blocks struct {
	b []byte
	e *hpack.Encoder
}

func hpackBlock() *blocks {
	k := &blocks{}
	k.e = hpack.NewEncoder(k)
	return k
}

func (k *blocks) Write(p []byte) (int, error) {
	k.b = append(k.b, p...)
	return len(p), nil
}

func (k *blocks) block(kv ...string) []byte {
	k.b = nil
	for i := 0; i < len(kv); i += 2 {
		_ = k.e.WriteField(hpack.HeaderField{Name: kv[i], Value: kv[i+1]})
	}
	return k.b
}

// TestSkip: a block that is skipped in pieces leaves the table as if it had been decoded.
func TestSkip(t *testing.T) {
	for range 200 {
		e, d := hpackBlock(), NewDecoder(unbounded)
		for range 20 {
			var kv []string
			for range 1 + rand.IntN(6) {
				f := random()
				kv = append(kv, f.Name, f.Value)
			}
			b := e.block(kv...)
			if rand.IntN(2) == 0 {
				for len(b) > 0 {
					n := 1 + rand.IntN(min(len(b), 1000))
					if err := d.Skip(b[:n]); err != nil {
						t.Fatal(err)
					}
					b = b[n:]
				}
				if err := d.Skipped(); err != nil {
					t.Fatal(err)
				}
				continue
			}
			got, _, err := d.Decode(b, nil, 1000, unbounded)
			if err != nil || len(got) != len(kv)/2 {
				t.Fatalf("%d fields, want %d: %v", len(got), len(kv)/2, err)
			}
			for i, f := range got {
				if f.Name != kv[2*i] || f.Value != kv[2*i+1] {
					t.Fatalf("got %q %q, want %q %q", f.Name, f.Value, kv[2*i], kv[2*i+1])
				}
			}
		}
	}
	d := NewDecoder(10)
	if err := d.Skip([]byte{0, 5, 'a'}); err != nil {
		t.Fatal(err)
	}
	if err := d.Skipped(); !errors.Is(err, errTruncated) {
		t.Errorf("a field that was cut: %v", err)
	}
}

// FuzzDecode compares the decoder with golang.org/x/net's over two blocks of one connection.
func FuzzDecode(f *testing.F) {
	e := hpackBlock()
	f.Add(e.block(":method", "GET", "x-a", "1"), e.block(":method", "GET", "x-a", "1", "x-b", "2"))
	f.Add([]byte{0x20, 0x3f, 0x01, 0x40, 1, 'a', 1, 'b'}, []byte{0xbe, 0x10, 1, 'c', 0})
	f.Add([]byte{0x00, 0x81, 0x1f, 0x01, 'b'}, []byte{0x7f, 0x00, 0x81, 0xff})
	f.Fuzz(func(t *testing.T, first, second []byte) {
		d, ref := NewDecoder(1000), newReference(1000)
		for _, b := range [][]byte{first, second} {
			got, complete, err := d.Decode(b, nil, 1<<20, unbounded)
			if errors.Is(err, errUpdate) || errors.Is(err, errInteger) {
				return // stricter than the other
			}
			want, other := ref.decode(b)
			if (err == nil) != (other == nil) {
				t.Fatalf("%x: %v, the other says %v", b, err, other)
			}
			if err != nil {
				return
			}
			if !complete || !slices.Equal(got, want) || d.t.size > d.t.max {
				t.Fatalf("%x:\n got %v\nwant %v", b, got, want)
			}
		}
	})
}

func BenchmarkDecodeUnique(b *testing.B) {
	e, d := hpackBlock(), NewDecoder(1<<16)
	var all [64][]byte
	for i := range all {
		all[i] = e.block(":method", "POST", ":scheme", "http", ":path", "/a.B/C", ":authority", "b.demo", "content-type", "application/grpc",
			"te", "trailers", "traceparent", fmt.Sprintf("00-%032d-%016d-01", i, i), "x-request-id", fmt.Sprint("request ", i))
	}
	var fields []hpack.HeaderField
	b.ReportAllocs()
	for i := range b.N {
		if i%64 == 0 {
			d = NewDecoder(1 << 16)
		}
		fields, _, _ = d.Decode(all[i%64], fields[:0], 100, 1<<16)
	}
}
