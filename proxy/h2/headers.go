package h2

import (
	"errors"
	"strings"

	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/exchange"

	"golang.org/x/net/http2/hpack"
)

// declined marks, on a link between proxies, a 2xx response that did not accept the upgrade that an extended CONNECT
// asked for; 101 and 200 are different answers in HTTP/1.1 only.
const declined = "conduit-declined"

// errMalformed is a request or response that RFC 9113, 8.1.1 calls malformed.
var errMalformed = errors.New("malformed message")

func (c *conn) onHeaders(flags byte, id uint32, p []byte) error {
	if id == 0 {
		return fatal(codeProtocol, "HEADERS on the connection")
	}
	p, err := unpad(flags, p)
	if err != nil {
		return err
	}
	self := false
	if flags&flPriority != 0 {
		if len(p) < 5 {
			return fatal(codeFrameSize, "HEADERS is too short")
		}
		self = be32(p)&maxWindow == id
		p = p[5:]
	}
	if self {
		return fatal(codeProtocol, "a stream depends on itself")
	}
	if flags&flEndHeaders == 0 {
		c.hdrID, c.hdrEnd, c.hdrHuge, c.hdrCount = id, flags&flEndStream != 0, false, 0
		c.hdrBlock = c.pool.Hold(p)
		c.hdrSince = 0
		c.begin(&c.hdrSince)
		return nil
	}
	return c.onBlock(id, flags&flEndStream != 0, p)
}

func (c *conn) onContinuation(flags byte, id uint32, p []byte) error {
	if c.hdrID == 0 {
		return fatal(codeProtocol, "CONTINUATION without HEADERS")
	}
	if c.hdrCount++; c.hdrCount > maxContinuations {
		return calm(mesh.AbuseContinuation, "the header block is too large")
	}
	if len(c.hdrBlock)+len(p) > maxBlock {
		c.hdrHuge = true
		if err := c.hp.skim(c.hdrBlock); err != nil {
			return err
		}
		c.hdrBlock = c.hdrBlock[:0]
	}
	c.hdrBlock = append(c.hdrBlock, p...)
	if flags&flEndHeaders == 0 {
		return nil
	}
	c.hdrID = 0
	raw := c.hdrBlock
	c.hdrBlock = nil
	err := c.onWhole(id, raw)
	c.pool.Release(raw)
	return err
}

// onWhole takes a block that came in several frames, or the last part of one that is too large.
func (c *conn) onWhole(id uint32, raw []byte) error {
	if !c.hdrHuge {
		return c.onBlock(id, c.hdrEnd, raw)
	}
	if err := c.hp.skim(raw); err != nil {
		return err
	}
	b, err := c.hp.skimmed()
	if err != nil {
		return err
	}
	return c.role.headers(id, c.hdrEnd, b)
}

func (c *conn) onBlock(id uint32, end bool, raw []byte) error {
	b, err := c.hp.decode(c.pool, raw)
	if err != nil {
		return err
	}
	return c.role.headers(id, end, b)
}

// trailers ends a stream's body with trailer fields.
func (c *conn) trailers(s *exchange.Stream, end bool, b *block) error {
	port := s.Port(c.side)
	if port.GotEnd {
		return c.streamError(port.ID, codeStreamClosed)
	}
	if !end || b.big || port.Left > 0 {
		return c.streamError(port.ID, codeProtocol)
	}
	f := c.pool.Fields[:0]
	for _, x := range b.fields {
		if x.IsPseudo() || !validField(x) {
			return c.streamError(port.ID, codeProtocol)
		}
		if !c.internal && exchange.MeshField(x.Name) {
			continue
		}
		f = append(f, x) // overwrites b.fields from behind, if it is the scratch block
	}
	port.GotEnd = true
	if len(f) == 0 {
		s.Data(c.side, nil, true)
	} else {
		s.TrailersFrom(c.side, f)
	}
	return nil
}

// validField checks a regular field (RFC 9113, 8.2).
func validField(f hpack.HeaderField) bool {
	if !exchange.ValidName(f.Name) || !exchange.ValidValue(f.Value) {
		return false
	}
	switch f.Name {
	case "connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade":
		return false
	case "te":
		return f.Value == "trailers"
	}
	return true
}

// regular copies the regular fields that start at f to h, and reads content-length, which is -1 if absent. host, if
// not nil, takes the Host fields.
func (c *conn) regular(h *exchange.Head, f []hpack.HeaderField, host *[]string) (int64, error) {
	left := int64(-1)
	h.Fields = make([]hpack.HeaderField, 0, len(f))
	for _, x := range f {
		if !validField(x) { // a pseudo-header field after a regular one is no valid name, either
			return 0, errMalformed
		}
		switch {
		case x.Name == "content-length":
			n, ok := exchange.ParseLength(x.Value)
			if !ok || left >= 0 {
				return 0, errMalformed
			}
			left = n
		case x.Name == "host" && host != nil:
			*host = append(*host, x.Value)
			continue
		case !c.internal && exchange.MeshField(x.Name):
			continue
		}
		h.Fields = append(h.Fields, x)
	}
	return left, nil
}

// request reads the block as a request head.
func (c *conn) request(b *block) (*exchange.Head, int64, error) {
	if !b.built {
		b.built = true
		b.head, b.left, b.err = c.buildRequest(b.fields)
		c.intern(b)
	}
	return b.head, b.left, b.err
}

// intern makes a head that repeats the shard's.
func (c *conn) intern(b *block) {
	if b.raw != nil && b.err == nil {
		b.head = c.pool.Intern(b.head, c.internal)
	}
}

func (c *conn) buildRequest(f []hpack.HeaderField) (*exchange.Head, int64, error) {
	h := &exchange.Head{Major: 2}
	seen := 0
	i := 0
	for ; i < len(f) && f[i].IsPseudo(); i++ {
		var bit int
		switch v := f[i].Value; f[i].Name {
		case ":method":
			h.Method, bit = v, 1
		case ":scheme":
			h.Scheme, bit = v, 2
		case ":path":
			h.Path, bit = v, 4
		case ":authority":
			h.Authority, bit = v, 8
		case ":protocol":
			h.Protocol, bit = v, 16
		}
		if bit == 0 || seen&bit != 0 {
			return nil, 0, errMalformed
		}
		seen |= bit
	}
	var host []string
	left, err := c.regular(h, f[i:], &host)
	if err != nil || !exchange.ValidToken(h.Method) || !exchange.ValidAuthority(h.Authority) {
		return nil, 0, errMalformed
	}
	switch {
	case len(host) > 1 || len(host) == 1 && !exchange.ValidAuthority(host[0]):
		return nil, 0, errMalformed
	case len(host) == 1 && seen&8 == 0:
		h.Authority = host[0]
	case len(host) == 1 && !strings.EqualFold(host[0], h.Authority):
		return nil, 0, errMalformed
	}
	if seen&16 != 0 {
		if !c.connects || h.Method != "CONNECT" || !exchange.ValidProtocol(h.Protocol) || left > 0 {
			return nil, 0, errMalformed
		}
		if c.internal {
			h.Method = standsFor(h)
		}
	}
	if h.Method == "CONNECT" && seen&16 == 0 { // RFC 9113, 8.5
		if seen&6 != 0 || h.Authority == "" || left > 0 {
			return nil, 0, errMalformed
		}
		return h, -1, nil
	}
	if seen&7 != 7 || !exchange.ValidToken(h.Scheme) || !exchange.ValidTarget(h.Path) ||
		h.Path[0] != '/' && (h.Path != "*" || h.Method != "OPTIONS") {
		return nil, 0, errMalformed
	}
	return h, left, nil
}

// standsFor is the method of the request for which an extended CONNECT on a link stands.
func standsFor(h *exchange.Head) string {
	if m := h.Get(exchange.UpgradeMethod); exchange.ValidToken(m) {
		return m
	}
	return "GET"
}

// response reads the block as a response head.
func (c *conn) response(b *block) (*exchange.Head, int64, error) {
	if !b.built {
		b.built = true
		b.head, b.left, b.err = c.buildResponse(b.fields)
		c.intern(b)
	}
	return b.head, b.left, b.err
}

func (c *conn) buildResponse(f []hpack.HeaderField) (*exchange.Head, int64, error) {
	if len(f) == 0 || f[0].Name != ":status" || len(f[0].Value) != 3 {
		return nil, 0, errMalformed
	}
	h := &exchange.Head{Major: 2}
	for _, d := range []byte(f[0].Value) {
		if d < '0' || d > '9' {
			return nil, 0, errMalformed
		}
		h.Status = h.Status*10 + int(d-'0')
	}
	if h.Status < 100 || h.Status == 101 {
		return nil, 0, errMalformed
	}
	left, err := c.regular(h, f[1:], nil)
	return h, left, err
}
