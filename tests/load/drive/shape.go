package drive

import (
	"encoding/hex"
	"math/rand/v2"
	"strconv"

	"conduit.io/conduit/tests/load/h2"
)

// shape is what the requests of a load look like.
type shape struct {
	fields  []h2.Field // of HTTP/2
	path    int        // index of :path
	head    []byte     // of HTTP/1.1: up to the path, in full when nothing is unique
	tail    []byte     // from behind the path to the last field
	body    h2.Content
	unique  bool
	grpc    bool
	scratch []byte
}

func (s *shape) make(c *Config) {
	s.unique, s.grpc = c.Unique, c.Protocol == GRPC
	s.body = h2.Content{Chunks: 1, Size: c.Body, GRPC: s.grpc}
	authority := c.Authority
	if authority == "" {
		authority = c.Target.String()
	}
	s.fields = []h2.Field{{Name: ":method", Value: c.Method}, {Name: ":scheme", Value: "http"},
		{Name: ":path", Value: c.Path}, {Name: ":authority", Value: authority}, {Name: "user-agent", Value: "conduit-load"}}
	s.path = 2
	s.head = []byte(c.Method + " " + c.Path)
	tail := " HTTP/1.1\r\nhost: " + authority + "\r\nuser-agent: conduit-load\r\n"
	switch {
	case s.grpc:
		s.fields = append(s.fields, h2.Field{Name: "content-type", Value: "application/grpc"}, h2.Field{Name: "te", Value: "trailers"})
	case c.Body > 0:
		s.fields = append(s.fields, h2.Field{Name: "content-length", Value: strconv.Itoa(c.Body)})
	}
	if c.Body > 0 || c.Method == "POST" || c.Method == "PUT" {
		tail += "content-length: " + strconv.Itoa(c.Body) + "\r\n"
	}
	s.tail = []byte(tail)
	if !s.unique {
		s.head = append(append(s.head, s.tail...), "\r\n"...)
	}
	s.fields = s.fields[:len(s.fields):len(s.fields)]
}

// appendID appends n random bytes in hexadecimal; n is at most 16.
func appendID(b []byte, n int) []byte {
	var id [16]byte
	for i := 0; i < n; i += 8 {
		v := rand.Uint64()
		for k := range 8 {
			id[i+k] = byte(v >> (8 * k))
		}
	}
	return hex.AppendEncode(b, id[:n])
}

func appendTrace(b []byte) []byte {
	b = append(b, "00-"...)
	b = append(appendID(b, 16), '-')
	return append(appendID(b, 8), "-01"...)
}

// h2 is the header list of the next request, and the number under which it is sent again and again.
func (s *shape) h2() (key int, fields []h2.Field) {
	if !s.unique {
		return 1, s.fields
	}
	fields = append(s.fields, h2.Field{Name: "traceparent", Value: string(appendTrace(s.scratch[:0]))},
		h2.Field{Name: "x-request-id", Value: string(appendID(s.scratch[:0], 16))})
	if !s.grpc { // a method of gRPC has no query
		b := append(s.scratch[:0], s.fields[s.path].Value...)
		fields[s.path].Value = string(appendID(append(b, "?id="...), 8))
	}
	return 0, fields
}

// h1 appends the next request, but not its body.
func (s *shape) h1(b []byte) []byte {
	b = append(b, s.head...)
	if !s.unique {
		return b
	}
	b = appendID(append(b, "?id="...), 8)
	b = append(b, s.tail...)
	b = appendTrace(append(b, "traceparent: "...))
	b = appendID(append(b, "\r\nx-request-id: "...), 16)
	return append(b, "\r\n\r\n"...)
}
