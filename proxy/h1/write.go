package h1

import (
	"strconv"

	"conduit.io/conduit/proxy/exchange"
	"conduit.io/conduit/proxy/flow"

	"golang.org/x/net/http2/hpack"
)

type bodyMode uint8

const (
	modeNone    bodyMode = iota // no body: HEAD, 204, 304; bytes are dropped
	modeLength                  // announced
	modeChunked                 //
	modeClose                   // until the connection ends
	modeTunnel                  // bytes both ways; the end is FIN
	modeHold                    // a tunnel that the server has not accepted yet
)

// body writes message bodies.
type body struct {
	c     flow.Conn
	mode  bodyMode
	hdr   [20]byte
	taken uint64 // bytes of bodies written
}

// write implements exchange.Half's Write.
func (o *body) write(p []byte, end bool) int {
	n := len(p)
	switch o.mode {
	case modeNone:
	case modeHold:
		return 0
	case modeChunked:
		n = o.chunks(p)
	default:
		n = exchange.WriteBounded(o.c, p)
	}
	o.taken += uint64(n)
	if end && n == len(p) {
		switch o.mode {
		case modeChunked:
			o.c.Write(append(o.hdr[:0], "0\r\n\r\n"...))
		case modeTunnel:
			o.c.CloseWrite()
		}
	}
	return n
}

func (o *body) chunks(p []byte) int {
	n := 0
	for n < len(p) && o.c.Backlog() <= flow.HighWater {
		k := min(16<<10, len(p)-n)
		o.c.Write(append(strconv.AppendInt(o.hdr[:0], int64(k), 16), '\r', '\n'))
		o.c.Write(p[n : n+k])
		o.c.Write(append(o.hdr[:0], '\r', '\n'))
		n += k
	}
	return n
}

// trailers ends the body; only the chunked coding has a place for the fields.
func (o *body) trailers(pool *exchange.Pool, f []hpack.HeaderField) {
	if o.mode != modeChunked {
		o.write(nil, true)
		return
	}
	b := append(pool.Bytes[:0], "0\r\n"...)
	for i := range f {
		if !misplaced(f[i].Name) {
			b = appendField(b, f[i].Name, f[i].Value)
		}
	}
	b = append(b, '\r', '\n')
	pool.Bytes = b
	o.c.Write(b)
}

func appendField(b []byte, name, value string) []byte {
	b = append(b, name...)
	b = append(b, ':', ' ')
	b = append(b, value...)
	return append(b, '\r', '\n')
}

// appendFields writes fields for which skip is false. HTTP/2 splits Cookie fields; here they are one (RFC 9113, 8.2.3).
func appendFields(b []byte, f []hpack.HeaderField, skip func(name string) bool) []byte {
	cookies := false
	for i := range f {
		name := f[i].Name
		if name == "cookie" {
			if !cookies {
				cookies = true
				b = appendCookies(b, f[i:])
			}
			continue
		}
		if name == "te" || skip(name) {
			continue
		}
		b = appendField(b, name, f[i].Value)
	}
	return b
}

func appendCookies(b []byte, f []hpack.HeaderField) []byte {
	b = append(b, "cookie: "...)
	first := true
	for i := range f {
		if f[i].Name != "cookie" {
			continue
		}
		if !first {
			b = append(b, "; "...)
		}
		first = false
		b = append(b, f[i].Value...)
	}
	return append(b, '\r', '\n')
}

// appendRequest writes the head of req and returns how its body is to be framed.
func (cl *Client) appendRequest(b []byte, req *exchange.Head, extra []hpack.HeaderField, ended bool) ([]byte, bodyMode) {
	upgrade := req.Protocol != ""
	connect := req.Method == "CONNECT" && !upgrade
	target, method := req.Path, req.Method
	switch {
	case connect:
		target = req.Authority
	case upgrade && method == "CONNECT": // RFC 8441, 5
		method = "GET"
	}
	b = append(append(b, method...), ' ')
	if req.Absolute || req.Major == 2 && req.Get(exchange.TargetForm) == "absolute" {
		b = append(append(append(b, req.Scheme...), "://"...), req.Authority...)
		if target == "*" { // OPTIONS for the server itself has no path in this form (RFC 9112, 3.2.4)
			target = ""
		}
	}
	b = append(append(b, target...), " HTTP/1.1\r\n"...)
	host := req.Authority
	if host == "" && req.Minor == 0 { // from HTTP/1.0 or HTTP/2, which need not name one; here some servers insist
		host = cl.c.RemoteAddr().String()
	}
	b = appendField(b, "host", host)
	mode := modeChunked
	skip := func(name string) bool {
		if name == "content-length" {
			mode = modeLength
			return connect || upgrade
		}
		return name == "host" || !cl.o.Internal && exchange.MeshField(name)
	}
	b = appendFields(b, req.Fields, skip)
	b = appendFields(b, extra, func(string) bool { return false })
	switch {
	case upgrade:
		b = cl.prove(b, req)
		b = appendField(appendField(b, "connection", "upgrade"), "upgrade", req.Protocol)
		mode = modeHold
	case connect:
		mode = modeHold
	case req.Get("te") != "":
		b = appendField(appendField(b, "te", "trailers"), "connection", "te")
	}
	if mode == modeChunked {
		switch {
		case !ended:
			b = append(b, "transfer-encoding: chunked\r\n"...)
		case method == "POST" || method == "PUT" || method == "PATCH":
			b = append(b, "content-length: 0\r\n"...)
			mode = modeLength
		default:
			mode = modeLength
		}
	}
	return append(b, '\r', '\n'), mode
}

func appendStatus(b []byte, status int) []byte {
	b = append(b, "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(status), 10)
	b = append(b, ' ')
	b = append(b, phrase(status)...)
	return append(b, '\r', '\n')
}

var phrases = map[int]string{
	100: "Continue", 101: "Switching Protocols", 102: "Processing", 103: "Early Hints",
	200: "OK", 201: "Created", 202: "Accepted", 203: "Non-Authoritative Information", 204: "No Content",
	205: "Reset Content", 206: "Partial Content", 207: "Multi-Status",
	300: "Multiple Choices", 301: "Moved Permanently", 302: "Found", 303: "See Other", 304: "Not Modified",
	307: "Temporary Redirect", 308: "Permanent Redirect",
	400: "Bad Request", 401: "Unauthorized", 402: "Payment Required", 403: "Forbidden", 404: "Not Found",
	405: "Method Not Allowed", 406: "Not Acceptable", 407: "Proxy Authentication Required", 408: "Request Timeout",
	409: "Conflict", 410: "Gone", 411: "Length Required", 412: "Precondition Failed", 413: "Content Too Large",
	414: "URI Too Long", 415: "Unsupported Media Type", 416: "Range Not Satisfiable", 417: "Expectation Failed",
	421: "Misdirected Request", 422: "Unprocessable Content", 423: "Locked", 425: "Too Early", 426: "Upgrade Required",
	428: "Precondition Required", 429: "Too Many Requests", 431: "Request Header Fields Too Large",
	500: "Internal Server Error", 501: "Not Implemented", 502: "Bad Gateway", 503: "Service Unavailable",
	504: "Gateway Timeout", 505: "HTTP Version Not Supported", 507: "Insufficient Storage",
	511: "Network Authentication Required",
}

func phrase(status int) string {
	if p := phrases[status]; p != "" {
		return p
	}
	return "Status"
}
