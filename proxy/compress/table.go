// Package compress is HPACK (RFC 7541) for a proxy: header blocks are decoded without a search structure and nearly
// without allocation, and fields go into the encoder's table only when they come again, so that what is unique to a
// request neither drives out what is not nor costs the peer anything. A Decoder or an Encoder belongs to one connection.
package compress

import "golang.org/x/net/http2/hpack"

// TableSize is the size of the dynamic tables of both directions (RFC 7541, 4.1), which is the default of HTTP/2.
const TableSize = 4096

// table is a dynamic table: a ring of which first is the oldest entry.
type table struct {
	ring  []entry // a power of two
	first int
	n     int
	size  uint32
	max   uint32
}

type entry struct {
	hpack.HeaderField
	mark uint32 // the Encoder's, by which it is found
}

// get is an entry by its age, 0 for the youngest.
func (t *table) get(age int) *entry {
	return &t.ring[(t.first+t.n-1-age)&(len(t.ring)-1)]
}

// resize changes the size that the table may have (RFC 7541, 4.3).
func (t *table) resize(max uint32) {
	t.max = max
	for t.size > t.max {
		t.evict()
	}
}

func (t *table) evict() {
	f := &t.ring[t.first]
	t.size -= f.Size()
	*f = entry{}
	t.first = (t.first + 1) & (len(t.ring) - 1)
	t.n--
}

// add makes f the youngest entry; one that is larger than the table empties it (RFC 7541, 4.4).
func (t *table) add(f entry) {
	size := f.Size()
	for t.n > 0 && t.size+size > t.max {
		t.evict()
	}
	if size > t.max {
		return
	}
	if t.n == len(t.ring) {
		t.move(max(4, 2*t.n))
	}
	t.ring[(t.first+t.n)&(len(t.ring)-1)] = f
	t.n++
	t.size += size
}

// move takes the entries into another ring.
func (t *table) move(size int) {
	ring := make([]entry, size)
	for i := range t.n {
		ring[i] = t.ring[(t.first+i)&(len(t.ring)-1)]
	}
	t.ring, t.first = ring, 0
}

// rest has the ring be no larger than it needs to be.
func (t *table) rest() {
	size := 1
	for size < t.n {
		size *= 2
	}
	switch {
	case t.n == 0:
		t.ring, t.first = nil, 0
	case size < len(t.ring):
		t.move(size)
	}
}

// static is the static table (RFC 7541, Appendix A); the first index is 1.
var static = [...]hpack.HeaderField{
	{Name: ":authority"}, {Name: ":method", Value: "GET"}, {Name: ":method", Value: "POST"}, {Name: ":path", Value: "/"},
	{Name: ":path", Value: "/index.html"}, {Name: ":scheme", Value: "http"}, {Name: ":scheme", Value: "https"},
	{Name: ":status", Value: "200"}, {Name: ":status", Value: "204"}, {Name: ":status", Value: "206"},
	{Name: ":status", Value: "304"}, {Name: ":status", Value: "400"}, {Name: ":status", Value: "404"},
	{Name: ":status", Value: "500"}, {Name: "accept-charset"}, {Name: "accept-encoding", Value: "gzip, deflate"},
	{Name: "accept-language"}, {Name: "accept-ranges"}, {Name: "accept"}, {Name: "access-control-allow-origin"},
	{Name: "age"}, {Name: "allow"}, {Name: "authorization"}, {Name: "cache-control"}, {Name: "content-disposition"},
	{Name: "content-encoding"}, {Name: "content-language"}, {Name: "content-length"}, {Name: "content-location"},
	{Name: "content-range"}, {Name: "content-type"}, {Name: "cookie"}, {Name: "date"}, {Name: "etag"}, {Name: "expect"},
	{Name: "expires"}, {Name: "from"}, {Name: "host"}, {Name: "if-match"}, {Name: "if-modified-since"},
	{Name: "if-none-match"}, {Name: "if-range"}, {Name: "if-unmodified-since"}, {Name: "last-modified"}, {Name: "link"},
	{Name: "location"}, {Name: "max-forwards"}, {Name: "proxy-authenticate"}, {Name: "proxy-authorization"},
	{Name: "range"}, {Name: "referer"}, {Name: "refresh"}, {Name: "retry-after"}, {Name: "server"}, {Name: "set-cookie"},
	{Name: "strict-transport-security"}, {Name: "transfer-encoding"}, {Name: "user-agent"}, {Name: "vary"}, {Name: "via"},
	{Name: "www-authenticate"},
}

// staticNames gives the first index of each name.
var staticNames = func() map[string]int {
	m := make(map[string]int, len(static))
	for i := len(static) - 1; i >= 0; i-- {
		m[static[i].Name] = i + 1
	}
	return m
}()

// inStatic is the index of f in the static table, whole if it has the value as well, or 0.
func inStatic(f *hpack.HeaderField) (index int, whole bool) {
	index = staticNames[f.Name]
	if index == 0 || index > 14 && index != 16 { // those alone have a value
		return index, false
	}
	for i := index; i <= len(static) && static[i-1].Name == f.Name; i++ {
		if static[i-1].Value == f.Value {
			return i, static[i-1].Value != ""
		}
	}
	return index, false
}
