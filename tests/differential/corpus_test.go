package differential

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
)

// dice decides what a generated case looks like: n gives a number in [0, n).
type dice interface{ n(n int) int }

// seeded is dice that fall the same way for the same seed.
type seeded struct{ *rand.Rand }

func newSeeded(seed uint64) seeded { return seeded{rand.New(rand.NewPCG(seed, 1))} }

func (s seeded) n(n int) int { return s.IntN(n) }

func one[T any](d dice, of []T) T { return of[d.n(len(of))] }

// often is true k times in n.
func often(d dice, k, n int) bool { return d.n(n) < k }

var methods = []string{"GET", "GET", "GET", "HEAD", "POST", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "PROPFIND",
	"M-SEARCH", "get", "X", "!#$%&'*+-.^_`|~09", "VERY-LONG-METHOD-OF-NOBODY"}

var targets = []string{"/", "/a", "/a/b/c", "/a?b=c&d=e", "/?", "/??", "/a?b?c", "/a;p=1/b;q", "//", "//host/path", "/a//b///",
	"/.", "/..", "/a/../../b", "/./a/.", "/%2e%2E/%2f", "/%00", "/%zz", "/%", "/a%20b?c%26d", "/a+b", "/a:b@c", "/[::1]",
	"/a|b\\c^d`e", "/\"<>{}", "/~user/(x)!*'$,", "/\xc3\xa4?\xff", "/a#fragment", "/?http://x/y", "/http://x/", "/*", "/a=b&c", "/;"}

var authorities = []string{"h", "app.example", "APP.Example:8080", "127.0.0.1", "127.0.0.1:80", "[::1]:443", "a-b_c.d:1", "xn--e1afmkfd.example"}

var names = []string{"X-Plain", "x-lower", "X-UPPER", "Accept", "User-Agent", "Content-Type", "Via", "Forwarded", "X-Forwarded-For",
	"Authorization", "Proxy-Authorization", "Range", "If-None-Match", "Cache-Control", "Content-Encoding", "Accept-Encoding",
	"Max-Forwards", "Date", "Warning", "Pragma", "Origin", "Trailer", "Content-Location", "!#$%&'*+-.^_`|~0", "X", "From",
	"Content-Range", "Content-Length-X", "Traceparent", "Grpc-Timeout", "Priority", "Alt-Svc", "Upgrade-Insecure-Requests", "Host2"}

var answers = []string{"Server", "Date", "Content-Type", "ETag", "Location", "Set-Cookie", "Set-Cookie", "Vary", "WWW-Authenticate",
	"Proxy-Authenticate", "Via", "Age", "Link", "Retry-After", "Allow", "Last-Modified", "Cache-Control", "X-Plain", "Trailer",
	"Content-Encoding", "Accept-Ranges", "Strict-Transport-Security", "Alt-Svc", "Grpc-Status", "Content-Range", "Expires"}

var values = []string{"", "v", "a, b,c ,,d", "text with  inner   spaces", "tab\tinside", `"quoted, comma"; q=1`, "0", "-1", "gzip, chunked",
	"close", "\xe4\xf6\xfc obs-text \xff", "(comment \\( nested)", "Mon, 01 Jan 2024 00:00:00 GMT", "a=b; c=d", "=?utf-8?q?x?=", "%0d%0a",
	"text/html; charset=\"utf-8\"", "1.1 a, 1.0 b (c)", "<x>; rel=y", "100-continue", "trailers", "*/*;q=0.1", ":", "::1", "a:b"}

// fields makes fields; some names come more than once.
func fields(d dice, from []string) []field {
	var out []field
	for range d.n(7) {
		f := field{one(d, from), one(d, values)}
		if often(d, 1, 40) {
			f.value = strings.Repeat("long ", 200+d.n(1200)) + "end"
		}
		out = append(out, f)
		if often(d, 1, 4) {
			out = append(out, field{f.name, one(d, values)})
		}
	}
	if often(d, 1, 30) {
		for i := range 100 {
			out = append(out, field{fmt.Sprintf("X-Many-%d", i), one(d, values)})
		}
	}
	return out
}

// connection adds fields that concern one connection only.
func connection(d dice, fs []field, isRequest bool) []field {
	switch d.n(12) {
	case 0:
		return append(fs, field{"Connection", "X-Hop"}, field{"X-Hop", "1"})
	case 1:
		return append(fs, field{"X-Hop", "1"}, field{"connection", "keep-alive, x-hop"}, field{"Keep-Alive", "timeout=5"})
	case 2:
		return append(fs, field{"Proxy-Connection", "keep-alive"}, field{"Conduit-Client", "1.2.3.4:5"}, field{"Conduit-Reason", "forged"})
	case 3:
		if isRequest {
			return append(fs, field{"TE", "trailers"}, field{"Connection", "TE"})
		}
	case 4:
		if isRequest {
			return append(fs, field{"TE", "gzip;q=0.5, Trailers"}, field{"Connection", "te"})
		}
	case 5:
		if isRequest {
			return append(fs, field{"Upgrade", "h2c"}, field{"HTTP2-Settings", "AAMAAABkAAQAAP__"}, field{"Connection", "Upgrade, HTTP2-Settings"})
		}
	case 6:
		if isRequest {
			return append(fs, field{"Upgrade", "websocket"}) // Connection does not name it
		}
	}
	return fs
}

// content makes a body.
func content(d dice) []byte {
	switch d.n(10) {
	case 0:
		return nil
	case 1:
		return bytes.Repeat([]byte("0123456789abcdef"), 1<<(6+d.n(8))) // 1 KiB to 128 KiB
	case 2:
		return []byte("\x00\r\n\r\nGET / HTTP/1.1\r\n\r\n0\r\n\r\n")
	case 3:
		return bytes.Repeat([]byte("x"), one(d, []int{16383, 16384, 16385, 65535, 65536, 40000}))
	}
	b := make([]byte, 1+d.n(300))
	for i := range b {
		b[i] = byte('a' + i%26)
	}
	return b
}

// cuts says in what pieces a body of n bytes is sent: large ones in few.
func cuts(d dice, n int) []int {
	small := max(1, n/40)
	return one(d, [][]int{nil, {1, 1, small}, {small}, {16384}, {100, 3, 20000}, {1 << 20}})
}

func trailers(d dice) []field {
	if often(d, 1, 2) {
		return nil
	}
	return one(d, [][]field{{{"X-Sum", "abc"}}, {{"X-A", "1"}, {"X-A", "2"}, {"x-b", ""}}, {{"Grpc-Status", "0"}, {"grpc-message", "a%20b"}},
		{{"Content-Length", "5"}, {"X-Left", "1"}}, {{"ETag", "\"\xe4\""}}})
}

// newRequest makes a request.
func newRequest(d dice) request {
	r := request{method: one(d, methods), scheme: "http", authority: one(d, authorities), path: one(d, targets), minor: 1}
	r.absolute = often(d, 1, 6)
	switch {
	case r.method == "OPTIONS" && often(d, 1, 2):
		r.path = "*"
		if r.absolute {
			r.path = "" // RFC 9112, 3.2.4
		}
	case often(d, 1, 30):
		r.path = "/" + strings.Repeat("segment/", 100+d.n(800)) + "?q"
	}
	r.fields = connection(d, fields(d, names), true)
	if often(d, 1, 4) {
		r.fields = append(r.fields, field{"Cookie", "a=1; b=2"})
		if often(d, 1, 2) {
			r.fields = append(r.fields, field{"X-Between", ""}, field{"Cookie", "c=\"3\""})
		}
	}
	r.framing = one(d, []framing{none, none, length, chunked})
	if r.framing != none {
		r.body = content(d)
		r.cuts = cuts(d, len(r.body))
	}
	if r.framing == chunked {
		r.trailers = trailers(d)
		r.extension = one(d, []string{"", "", ";a", ";a=b;c=\"d;e\"", ";\tx = y"})
	}
	if r.framing != none && often(d, 1, 8) {
		r.fields = append(r.fields, field{"Expect", "100-continue"})
		r.wait = true
	}
	r.lone = often(d, 1, 2)
	if often(d, 1, 15) {
		r.fields = append(r.fields, field{"Connection", one(d, []string{"close", "Close", "x, close"})})
	}
	if often(d, 1, 12) {
		r.minor = 0
		r.lone = true
		if r.framing == chunked {
			r.framing, r.trailers = length, nil
		}
		if r.wait { // HTTP/1.0 knows no interim responses
			r.wait = false
		}
		if often(d, 1, 2) {
			r.fields = append(r.fields, field{"Connection", "keep-alive"})
		}
		r.noHost = !r.absolute && often(d, 1, 3)
	}
	return r
}

var statuses = []int{200, 200, 200, 200, 201, 202, 203, 204, 205, 206, 207, 299, 300, 301, 302, 304, 307, 400, 401, 403, 404, 405, 407, 408,
	409, 412, 413, 416, 418, 421, 429, 431, 451, 500, 501, 502, 503, 504, 505, 511, 599, 600, 999}

// newResponse makes a response to r.
func newResponse(d dice, r *request) response {
	res := response{status: one(d, statuses), phrase: one(d, []string{"OK", "", "Some Other Words", "\xe4"})}
	res.fields = connection(d, fields(d, answers), false)
	res.framing = one(d, []framing{length, length, chunked, untilClose})
	res.body = content(d)
	res.cuts = cuts(d, len(res.body))
	if res.framing == chunked {
		res.trailers = trailers(d)
	}
	res.old = res.framing != chunked && often(d, 1, 10)
	if res.status == 204 { // it has no body to delimit
		res.framing = none
	}
	if r.wait {
		if often(d, 3, 4) {
			res.interims = []interim{{status: 100}}
		} else {
			res.status, res.framing, res.early = 417, length, true
		}
	} else if often(d, 1, 8) {
		res.interims = append(res.interims, interim{103, []field{{"Link", "</a.css>; rel=preload"}, {"Link", "</b>"}}})
		if often(d, 1, 2) {
			res.interims = append(res.interims, interim{102, nil}, interim{199, []field{{"X-Odd", "\xff"}}})
		}
	}
	if often(d, 1, 20) && len(res.body) > 0 && r.minor > 0 && r.method != "HEAD" && res.framing != untilClose && res.framing != none && res.status != 304 {
		res.truncate = 1 + d.n(len(res.body))
	}
	return res
}

// newCase makes the exchanges of one connection.
func newCase(d dice) []exchange {
	var xs []exchange
	for range 1 + d.n(3) {
		x := exchange{req: newRequest(d)}
		x.res = newResponse(d, &x.req)
		xs = append(xs, x)
	}
	return xs
}
