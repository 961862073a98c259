package h1

import (
	"bytes"
	"errors"
	"strings"

	"conduit.io/conduit/proxy/exchange"

	"golang.org/x/net/http2/hpack"
)

const (
	maxHead   = 64 << 10 // bytes of a header section
	maxFields = 256
)

// Errors of the parser. Where refuse.go has no better answer for one, it is 400.
var (
	errTooLarge   = errors.New("header section is too large")
	errLongLine   = errors.New("request line is too long")
	errBareLF     = errors.New("a line does not end with CR LF")
	errLine       = errors.New("malformed request line")
	errVersion    = errors.New("HTTP version is not supported")
	errStatusLine = errors.New("malformed status line")
	errField      = errors.New("malformed header field")
	errFold       = errors.New("folded header field")
	errHost       = errors.New("missing, repeated or malformed Host")
	errTarget     = errors.New("malformed request target")
	errLength     = errors.New("malformed or repeated Content-Length")
	errCoding     = errors.New("transfer coding does not frame the message")
	errCodings    = errors.New("transfer coding is not supported")
	errBothLength = errors.New("both Content-Length and Transfer-Encoding")
)

// framing is what a header section says about its message and its connection.
type framing struct {
	chunked   bool
	length    int64 // -1: none
	close     bool
	keepAlive bool
	upgrade   string // the Upgrade field, if Connection names it
	coding    bool   // a Transfer-Encoding field was there
}

// scanHead looks for the empty line that ends a header section at the start of b, of which the first from bytes are
// known not to hold it. It returns the length of the section with the empty line, or 0.
func scanHead(b []byte, from int) (int, error) {
	for {
		i := bytes.IndexByte(b[from:], '\n')
		if i < 0 {
			if len(b) > maxHead {
				return 0, oversize(b)
			}
			return 0, nil
		}
		i += from
		if i == 0 || b[i-1] != '\r' {
			return 0, errBareLF
		}
		if i >= maxHead {
			return 0, oversize(b)
		}
		if i >= 3 && b[i-2] == '\n' {
			return i + 1, nil
		}
		from = i + 1
	}
}

// oversize says what of a head is over the limit: its first line alone, or all of it.
func oversize(b []byte) error {
	if bytes.IndexByte(b[:maxHead], '\n') < 0 {
		return errLongLine
	}
	return errTooLarge
}

// text makes a string of a header section in which the field names are lower-case.
func text(pool *exchange.Pool, raw []byte) string {
	b := append(pool.Bytes[:0], raw...)
	pool.Bytes = b
	name := false // the first line has no name
	for i, c := range b {
		switch {
		case c == '\n':
			name = true
		case c == ':':
			name = false
		case name && c >= 'A' && c <= 'Z':
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}

// parseRequest reads a complete header section.
func parseRequest(pool *exchange.Pool, raw []byte, internal bool) (*exchange.Head, framing, error) {
	t := text(pool, raw)
	line, rest, _ := strings.Cut(t, "\r\n")
	h := &exchange.Head{Major: 1, Scheme: "http"}
	fr := framing{length: -1}
	target, err := requestLine(h, line)
	if err != nil {
		return nil, fr, err
	}
	host, hosts := "", 0
	h.Fields, err = parseFields(rest, &fr, internal, func(v string) { host = v; hosts++ })
	if err != nil {
		return nil, fr, err
	}
	if hosts > 1 || hosts == 0 && h.Minor > 0 || !exchange.ValidAuthority(host) {
		return nil, fr, errHost
	}
	h.Authority = host
	if !parseTarget(h, target) {
		return nil, fr, errTarget
	}
	if fr.coding && h.Minor == 0 {
		return nil, fr, errCoding
	}
	if h.Method == "CONNECT" && (fr.chunked || fr.length > 0) {
		return nil, fr, errLine
	}
	fr.close = fr.close || h.Minor == 0 && !fr.keepAlive
	if up := fr.upgrade; up != "" && h.Method != "CONNECT" && h.Minor > 0 && !fr.chunked && fr.length <= 0 &&
		exchange.ValidProtocol(up) && !strings.EqualFold(up, "h2c") {
		h.Protocol = up
	}
	return h, fr, nil
}

func requestLine(h *exchange.Head, line string) (target string, err error) {
	var version string
	var ok bool
	h.Method, line, ok = strings.Cut(line, " ")
	if !ok || !exchange.ValidToken(h.Method) {
		return "", errLine
	}
	target, version, ok = strings.Cut(line, " ")
	if !ok || !exchange.ValidTarget(target) {
		return "", errLine
	}
	h.Minor, ok = minor(version)
	if !ok {
		if strings.HasPrefix(version, "HTTP/") && !strings.Contains(version, " ") {
			return "", errVersion
		}
		return "", errLine
	}
	return target, nil
}

// minor reads HTTP/1.x; every minor version above 0 is 1 for us (RFC 9110, 2.5).
func minor(v string) (int, bool) {
	if len(v) != 8 || v[:7] != "HTTP/1." || v[7] < '0' || v[7] > '9' {
		return 0, false
	}
	return min(int(v[7]-'0'), 1), true
}

// parseTarget splits the request target by its form (RFC 9112, 3.2).
func parseTarget(h *exchange.Head, target string) bool {
	switch {
	case h.Method == "CONNECT": // authority-form
		h.Authority = target
		return exchange.ValidAuthority(target) && strings.LastIndexByte(target, ':') > 0
	case target[0] == '/':
		h.Path = target
		return true
	case target == "*":
		h.Path = target
		return h.Method == "OPTIONS"
	}
	scheme, rest, ok := strings.Cut(target, "://")
	if !ok || !strings.EqualFold(scheme, "http") && !strings.EqualFold(scheme, "https") {
		return false
	}
	h.Scheme, h.Absolute = strings.ToLower(scheme), true
	i := strings.IndexAny(rest, "/?#")
	if i < 0 {
		i = len(rest)
	}
	h.Authority, h.Path = rest[:i], rest[i:]
	switch {
	case h.Path == "" && h.Method == "OPTIONS":
		h.Path = "*"
	case h.Path == "" || h.Path[0] != '/':
		h.Path = "/" + h.Path
	}
	return h.Authority != "" && exchange.ValidAuthority(h.Authority)
}

// parseResponse reads a complete header section of a response.
func parseResponse(pool *exchange.Pool, raw []byte, internal bool) (*exchange.Head, framing, error) {
	t := text(pool, raw)
	line, rest, _ := strings.Cut(t, "\r\n")
	fr := framing{length: -1}
	h := &exchange.Head{Major: 1}
	version, line, ok := strings.Cut(line, " ")
	if !ok || len(line) < 3 || len(line) > 3 && line[3] != ' ' || !exchange.ValidValue(strings.TrimSpace(line)) {
		return nil, fr, errStatusLine
	}
	if h.Minor, ok = minor(version); !ok {
		return nil, fr, errVersion
	}
	for i := range 3 {
		if line[i] < '0' || line[i] > '9' {
			return nil, fr, errStatusLine
		}
		h.Status = h.Status*10 + int(line[i]-'0')
	}
	if h.Status < 100 {
		return nil, fr, errStatusLine
	}
	var err error
	h.Fields, err = parseFields(rest, &fr, internal, nil)
	if err == nil && fr.coding && h.Minor == 0 { // RFC 9112, 6.1
		err = errCoding
	}
	fr.close = fr.close || h.Minor == 0 && !fr.keepAlive
	return h, fr, err
}

// parseFields reads field lines up to and with the empty one. Fields of the connection go to fr; Host to host, if
// not nil.
func parseFields(t string, fr *framing, internal bool, host func(string)) ([]hpack.HeaderField, error) {
	n := strings.Count(t, "\n")
	if n > maxFields+1 {
		return nil, errTooLarge
	}
	f := make([]hpack.HeaderField, 0, n)
	var named string
	te := false
	for {
		line, rest, ok := strings.Cut(t, "\r\n")
		if !ok {
			return nil, errField
		}
		t = rest
		if line == "" {
			break
		}
		name, value, err := fieldLine(line)
		if err != nil {
			return nil, err
		}
		switch {
		case host != nil && name == "host":
			host(value)
			continue
		case name == "te":
			te = te || hasToken(value, "trailers")
			continue
		case exchange.HopByHop(name):
			if err := hopField(fr, &named, name, value); err != nil {
				return nil, err
			}
			continue
		case name == "content-length":
			l, ok := exchange.ParseLength(value)
			if !ok || fr.length >= 0 {
				return nil, errLength
			}
			fr.length = l
		case !internal && exchange.MeshField(name):
			continue
		}
		f = append(f, hpack.HeaderField{Name: name, Value: value})
	}
	if fr.coding && fr.length >= 0 {
		return nil, errBothLength
	}
	if named != "" {
		f = dropNamed(f, named)
	}
	if !hasToken(named, "upgrade") {
		fr.upgrade = ""
	}
	if te && host != nil {
		f = append(f, hpack.HeaderField{Name: "te", Value: "trailers"})
	}
	return f, nil
}

// fieldLine splits a field line (RFC 9112, 5).
func fieldLine(line string) (name, value string, err error) {
	if line[0] == ' ' || line[0] == '\t' {
		return "", "", errFold
	}
	name, value, ok := strings.Cut(line, ":")
	value = strings.Trim(value, " \t")
	if !ok || !exchange.ValidName(name) || !exchange.ValidValue(value) {
		return "", "", errField
	}
	return name, value, nil
}

func hopField(fr *framing, named *string, name, value string) error {
	switch name {
	case "connection":
		fr.close = fr.close || hasToken(value, "close")
		fr.keepAlive = fr.keepAlive || hasToken(value, "keep-alive")
		if *named == "" {
			*named = value
		} else {
			*named += "," + value
		}
	case "upgrade":
		if fr.upgrade != "" {
			value = fr.upgrade + ", " + value
		}
		fr.upgrade = value
	case "transfer-encoding":
		if fr.coding || !strings.EqualFold(value, "chunked") {
			return codingError(fr.coding, value)
		}
		fr.coding, fr.chunked = true, true
	}
	return nil
}

// codingError tells codings that are framed as they should be, and only not known here, from those that leave open where
// the body ends (RFC 9112, 6.1 and 6.3).
func codingError(again bool, value string) error {
	i := strings.LastIndexByte(value, ',')
	if !again && i >= 0 && strings.EqualFold(strings.Trim(value[i+1:], " \t"), "chunked") && !hasToken(value[:i], "chunked") {
		return errCodings
	}
	return errCoding
}

// dropNamed removes the fields that Connection names, except those that frame the message.
func dropNamed(f []hpack.HeaderField, named string) []hpack.HeaderField {
	if strings.EqualFold(named, "keep-alive") || strings.EqualFold(named, "close") {
		return f
	}
	out := f[:0]
	for _, x := range f {
		if x.Name == "content-length" || !hasToken(named, x.Name) {
			out = append(out, x)
		}
	}
	return out
}

// hasToken reports whether a comma-separated list holds a token, in any case.
func hasToken(list, token string) bool {
	for list != "" {
		var t string
		t, list, _ = strings.Cut(list, ",")
		t, _, _ = strings.Cut(t, ";")
		if strings.EqualFold(strings.Trim(t, " \t"), token) {
			return true
		}
	}
	return false
}
