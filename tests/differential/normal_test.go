package differential

import (
	"slices"
	"strings"
)

// What may differ between a message that came directly and one that came through proxies. Everything else must not.

// hopFields are about one connection (RFC 9110, 7.6.1): each proxy takes them for itself, and says its own. With them
// goes what Connection names.
var hopFields = []string{"connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade", "http2-settings"}

// framingTrailers have no meaning behind a body, and some recipients of HTTP/1.1 merge trailers into the head: there, no
// proxy may pass on what would frame, route or authenticate (RFC 9110, 6.5.1).
var framingTrailers = []string{"content-length", "host", "trailer", "authorization", "content-encoding", "content-type",
	"content-range", "set-cookie"}

// normal gives a message without what may differ on p.
func normal(p path, m *message, isRequest bool) *message {
	if m == nil {
		return nil
	}
	out := *m
	out.fields = normalFields(m.fields, isRequest)
	out.trailers = nil
	for _, f := range normalFields(m.trailers, false) {
		if p.in == "http2" && p.out == "http2" || !slices.Contains(framingTrailers, f.name) {
			out.trailers = append(out.trailers, f)
		}
	}
	out.interims = nil
	for _, i := range m.interims {
		i.fields = normalFields(i.fields, false)
		out.interims = append(out.interims, i)
	}
	if isRequest {
		out.line = strings.TrimSuffix(strings.TrimSuffix(m.line, " origin"), " absolute")
	}
	// A body without bytes may be announced as such, or not at all (RFC 9110, 8.6): a request without content that
	// comes from HTTP/2 gets the length of 0 that HTTP/1.1 servers may insist on, and a response gets one so that the
	// connection survives it. 204 must not have one.
	if len(m.body) == 0 || m.line == "204" {
		out.fields = slices.DeleteFunc(out.fields, func(f field) bool {
			return f.name == "content-length" && (f.value == "0" || m.line == "204")
		})
	}
	return &out
}

// named is what the Connection fields name, in lower case.
func named(fs []field) (out []string) {
	for _, f := range fs {
		if strings.EqualFold(f.name, "connection") {
			for t := range strings.SplitSeq(f.value, ",") {
				out = append(out, strings.ToLower(strings.TrimSpace(t)))
			}
		}
	}
	return out
}

func normalFields(fs []field, isRequest bool) []field {
	named := named(fs)
	var out []field
	var cookies []string
	for _, f := range fs {
		f.name = strings.ToLower(f.name) // RFC 9110, 5.1
		switch {
		case slices.Contains(hopFields, f.name), f.name == caseField:
			continue
		case f.name == "te": // only what goes on to the server by itself: that trailers are welcome (RFC 9110, 10.1.4)
			if !strings.Contains(strings.ToLower(f.value), "trailers") {
				continue
			}
			f.value = "trailers"
		case slices.Contains(named, f.name):
			continue
		case strings.HasPrefix(f.name, "conduit-"): // the mesh's own; nobody may forge them
			continue
		case f.name == "host" && isRequest: // compared as the authority
			continue
		case f.name == "cookie" && isRequest: // split and joined at will (RFC 9113, 8.2.3)
			cookies = append(cookies, f.value)
			continue
		}
		out = append(out, f)
	}
	if cookies != nil {
		out = append(out, field{"cookie", strings.Join(cookies, "; ")})
	}
	return sorted(out)
}
