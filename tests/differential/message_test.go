package differential

import (
	"fmt"
	"slices"
	"strings"
)

// field is a header or trailer field, as it was sent or as it arrived.
type field struct{ name, value string }

// framing is how a message's body is delimited in HTTP/1.1. In HTTP/2 only length makes a difference: it announces.
type framing int

const (
	none framing = iota
	length
	chunked
	untilClose // responses only
)

// request is what a client sends. The renderers leave out what their protocol has no place for.
type request struct {
	method    string
	scheme    string
	authority string
	path      string // with the query
	absolute  bool   // HTTP/1.1: absolute-form
	minor     int    // HTTP/1.x
	noHost    bool   // HTTP/1.0: without Host
	fields    []field
	framing   framing
	body      []byte
	cuts      []int  // sizes of the pieces of the body, the last one again and again
	extension string // of every chunk
	trailers  []field
	wait      bool // the body is sent only after a 100 response, or a final one
	lone      bool // pipelined requests are not sent before the response to this one
}

// response is what the server answers.
type response struct {
	interims []interim
	status   int
	phrase   string
	fields   []field
	framing  framing
	body     []byte
	cuts     []int
	trailers []field
	old      bool // HTTP/1.0
	early    bool // sent before the body of the request has been read, and nothing is read of it
	truncate int  // > 0: the response ends, incomplete, after one byte less of the body
}

type interim struct {
	status int
	fields []field
}

// exchange is a request and the response to it.
type exchange struct {
	req request
	res response
}

// message is a request or a response as it arrived.
type message struct {
	line     string // request: method, scheme, authority and path; response: status
	fields   []field
	body     []byte
	trailers []field
	interims []message
	end      string // whole, or how it broke off
}

const whole = "whole"

func (m *message) get(name string) string {
	for _, f := range m.fields {
		if strings.EqualFold(f.name, name) {
			return f.value
		}
	}
	return ""
}

// pieces cuts b by the sizes in cuts.
func pieces(b []byte, cuts []int) [][]byte {
	var out [][]byte
	n := len(b)
	for i := 0; len(b) > 0; i++ {
		if len(cuts) > 0 {
			n = max(1, cuts[min(i, len(cuts)-1)])
		}
		n = min(n, len(b))
		out = append(out, b[:n])
		b = b[n:]
	}
	return out
}

// String shows the parts in which messages are compared.
func (m *message) String() string {
	if m == nil {
		return "(nothing)"
	}
	var b strings.Builder
	for _, i := range m.interims {
		fmt.Fprintf(&b, "interim %s %s\n", i.line, show(i.fields))
	}
	fmt.Fprintf(&b, "%s\n%s\n", m.line, show(m.fields))
	body := m.body
	if len(body) > 64 {
		body = body[:64]
	}
	fmt.Fprintf(&b, "body: %d bytes %q\ntrailers: %s\nend: %s", len(m.body), body, show(m.trailers), m.end)
	return b.String()
}

func show(fs []field) string {
	var b strings.Builder
	for _, f := range fs {
		v := f.value
		if len(v) > 120 {
			v = fmt.Sprintf("%s...(%d bytes)", v[:120], len(v))
		}
		fmt.Fprintf(&b, "  %q=%q", f.name, v)
	}
	return b.String()
}

// sorted orders fields by name; those of one name keep their order (RFC 9110, 5.3).
func sorted(fs []field) []field {
	out := slices.Clone(fs)
	slices.SortStableFunc(out, func(a, b field) int { return strings.Compare(a.name, b.name) })
	return out
}
