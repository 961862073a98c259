package h1

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"conduit.io/conduit/proxy/exchange"
)

// dechunk feeds in to a decoder in pieces.
func dechunk(in []byte, size int) (body []byte, used int, done bool, err error) {
	return dechunkBy((*chunked).next, in, size)
}

func dechunkBy(next func(*chunked, []byte) (int, []byte, bool, error), in []byte, size int) (body []byte, used int, done bool, err error) {
	var d chunked
	for used < len(in) && !done && err == nil {
		p := in[used:min(len(in), used+size)]
		for len(p) > 0 && !done && err == nil {
			var n int
			var b []byte
			n, b, done, err = next(&d, p)
			body = append(body, b...)
			used += n
			p = p[n:]
		}
	}
	if done {
		_, err = d.fields(exchange.NewPool(), false)
	}
	return body, used, done, err
}

func FuzzChunked(f *testing.F) {
	for _, s := range []string{"0\r\n\r\n", "3\r\nabc\r\n0\r\n\r\nrest", "A;x=y\r\n0123456789\r\n0\r\na: b\r\n\r\n", "\r\n\r\n", "fffffffffffffff\r\n",
		"3\r\nabcX\r\n", "0\r\n bad\r\n\r\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		body, used, done, err := dechunk(in, len(in)+1)
		if len(body) > len(in) || used > len(in) {
			t.Fatalf("%q: %d bytes of body, %d used", in, len(body), used)
		}
		for _, size := range []int{1, 2, 5, len(in) + 1} {
			for _, next := range []func(*chunked, []byte) (int, []byte, bool, error){(*chunked).next, (*chunked).gather} {
				b, u, d, e := dechunkBy(next, bytes.Clone(in), size) // gather writes to it
				if !bytes.Equal(b, body) || d != done || (e == nil) != (err == nil) || e == nil && u != used {
					t.Fatalf("%q in pieces of %d: %q %d %v %v, whole: %q %d %v %v", in, size, b, u, d, e, body, used, done, err)
				}
			}
		}
	})
}

func TestChunkSizeNeedsDigits(t *testing.T) {
	for _, in := range []string{"\r\n\r\n", ";a\r\n\r\n", "0000000000000000\r\n\r\n"} {
		if _, _, done, err := dechunk([]byte(in), 100); done || err == nil {
			t.Errorf("%q was accepted", in)
		}
	}
}

// A client that signs each of its chunks may upload as much as it likes; one that sends little but extensions may not.
func TestExtensionsAreBoundedByData(t *testing.T) {
	chunks := func(n, size, ext int) []byte {
		var b bytes.Buffer
		for range n {
			fmt.Fprintf(&b, "%x;s=%s\r\n%s\r\n", size, strings.Repeat("e", ext), strings.Repeat("d", size))
		}
		b.WriteString("0\r\n\r\n")
		return b.Bytes()
	}
	if body, _, done, err := dechunk(chunks(1000, 200, 100), 4096); err != nil || !done || len(body) != 200000 {
		t.Errorf("%d bytes, done %v, %v", len(body), done, err)
	}
	if _, _, _, err := dechunk(chunks(1000, 1, 100), 4096); err == nil {
		t.Error("100 bytes of extension for each byte of data were accepted")
	}
}
