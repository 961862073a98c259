// Package mesh is the leaf vocabulary of Conduit: small types that every process shares, and no I/O.
package mesh

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// Identity names a workload's service account inside a trust domain.
// Its wire form is the SPIFFE ID spiffe://<trust-domain>/ns/<namespace>/sa/<service-account>
// (SPIFFE-ID specification, section 2). Identity is comparable; the zero value is "no identity".
type Identity struct {
	TrustDomain    string `json:"trustDomain"`
	Namespace      string `json:"namespace"`
	ServiceAccount string `json:"serviceAccount"`
}

// ErrNotSPIFFE is wrapped by every error that ParseIdentity returns.
var ErrNotSPIFFE = errors.New("not a workload SPIFFE ID")

// String is the SPIFFE ID, or "" for the zero Identity.
func (i Identity) String() string {
	if i == (Identity{}) {
		return ""
	}
	return "spiffe://" + i.TrustDomain + "/ns/" + i.Namespace + "/sa/" + i.ServiceAccount
}

// URL is the SPIFFE ID in the form that crypto/x509 wants for a URI SAN.
func (i Identity) URL() *url.URL {
	return &url.URL{Scheme: "spiffe", Host: i.TrustDomain, Path: "/ns/" + i.Namespace + "/sa/" + i.ServiceAccount}
}

// IsZero reports whether i names nobody.
func (i Identity) IsZero() bool { return i == Identity{} }

// ParseIdentity reads a SPIFFE ID of exactly the form that String writes. Percent-encoding, ports, queries,
// fragments and any other path shape are refused: one identity has one spelling.
func ParseIdentity(s string) (Identity, error) {
	if len(s) > 2048 { // SPIFFE-ID 2.3: the maximum length of a SPIFFE ID
		return Identity{}, fmt.Errorf("parse identity: %d bytes is too long: %w", len(s), ErrNotSPIFFE)
	}
	rest, ok := strings.CutPrefix(s, "spiffe://")
	if !ok {
		return Identity{}, fmt.Errorf("parse identity %q: %w", s, ErrNotSPIFFE)
	}
	parts := strings.Split(rest, "/")
	if len(parts) != 5 || parts[1] != "ns" || parts[3] != "sa" {
		return Identity{}, fmt.Errorf("parse identity %q: want spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/NAME: %w", s, ErrNotSPIFFE)
	}
	id := Identity{TrustDomain: parts[0], Namespace: parts[2], ServiceAccount: parts[4]}
	for _, p := range []string{id.TrustDomain, id.Namespace, id.ServiceAccount} {
		if !validSegment(p) {
			return Identity{}, fmt.Errorf("parse identity %q: bad segment %q: %w", s, p, ErrNotSPIFFE)
		}
	}
	return id, nil
}

// ValidTrustDomain reports whether s may stand as a trust domain (SPIFFE-ID 2.1: lower-case letters, digits, dot,
// dash and underscore).
func ValidTrustDomain(s string) bool { return len(s) <= 255 && validSegment(s) }

func validSegment(s string) bool {
	if s == "" || s == "." || s == ".." {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '.' && c != '_' {
			return false
		}
	}
	return true
}
