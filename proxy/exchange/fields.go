package exchange

import (
	"strings"

	"conduit.io/conduit/mesh"
)

const (
	clsToken = 1 << iota // tchar, RFC 9110 5.6.2
	clsUpper
	clsValue // field-vchar, obs-text, SP and HTAB, RFC 9110 5.5
	clsURI   // visible ASCII and obs-text: what may stand in a request target or an authority
)

var class = func() (t [256]uint8) {
	for c := range 256 {
		if c == '\t' || c >= 0x20 && c != 0x7f {
			t[c] |= clsValue
		}
		if c > 0x20 && c != 0x7f {
			t[c] |= clsURI
		}
		switch {
		case c >= 'A' && c <= 'Z':
			t[c] |= clsToken | clsUpper
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c < 0x80 && c > 0 && strings.IndexByte("!#$%&'*+-.^_`|~", byte(c)) >= 0:
			t[c] |= clsToken
		}
	}
	return t
}()

func all(s string, want uint8) bool {
	for i := range len(s) {
		if class[s[i]]&want == 0 {
			return false
		}
	}
	return true
}

// ValidToken reports whether s is a token (RFC 9110, 5.6.2).
func ValidToken(s string) bool { return s != "" && all(s, clsToken) }

// ValidProtocol reports whether s is one protocol of an Upgrade field: a name, perhaps with a version (RFC 9110, 7.8).
func ValidProtocol(s string) bool {
	name, version, versioned := strings.Cut(s, "/")
	return ValidToken(name) && (!versioned || ValidToken(version))
}

// ValidName reports whether s is a field name in lower case (RFC 9113, 8.2.1).
func ValidName(s string) bool {
	for i := range len(s) {
		if class[s[i]]&(clsToken|clsUpper) != clsToken {
			return false
		}
	}
	return s != ""
}

// ValidValue reports whether s may be a field value: no control characters but HTAB, no space around it.
func ValidValue(s string) bool {
	if s == "" {
		return true
	}
	if a, z := s[0], s[len(s)-1]; a == ' ' || a == '\t' || z == ' ' || z == '\t' {
		return false
	}
	return all(s, clsValue)
}

// ValidTarget reports whether s may be a request target: no space and no control character.
func ValidTarget(s string) bool { return s != "" && all(s, clsURI) }

// ValidAuthority reports whether s may be an authority: host and port, without user information (RFC 9113, 8.3.1).
func ValidAuthority(s string) bool {
	return all(s, clsURI) && !strings.ContainsAny(s, "/?#@\\,\"<>")
}

// ParseLength reads a content-length: digits only, below 2^62.
func ParseLength(s string) (int64, bool) {
	if s == "" || len(s) > 18 {
		return 0, false
	}
	var n int64
	for i := range len(s) {
		c := s[i] - '0'
		if c > 9 {
			return 0, false
		}
		n = n*10 + int64(c)
	}
	return n, true
}

// HopByHop reports whether a lower-case field is about one connection only (RFC 9110, 7.6.1), and so never forwarded.
func HopByHop(name string) bool {
	switch name {
	case "connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade", "http2-settings":
		return true
	}
	return false
}

// UpgradeMethod is the field that carries, on a link between proxies, the method of a request that asks for another
// protocol: there, an extended CONNECT stands for any of them and has no place for it. Without the field it is GET.
const UpgradeMethod = "conduit-method"

// TargetForm is the field that says, on a link between proxies, that the request target was in absolute-form: what is
// addressed to a forward proxy must reach it so (RFC 9112, 3.2.2). Its value is "absolute".
const TargetForm = "conduit-target"

// TimeField is the field by which a proxy says, in a response on a link, how much of the time until then it and its
// application have used.
const TimeField = "conduit-time"

// MeshField reports whether a lower-case field name is the mesh's own.
func MeshField(name string) bool { return strings.HasPrefix(name, "conduit-") }

// LinkOnly reports whether a lower-case response field is for links between proxies only.
func LinkOnly(name string) bool { return MeshField(name) && name != mesh.ReasonHeader }
