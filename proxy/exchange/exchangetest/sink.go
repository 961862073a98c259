package exchangetest

import (
	"fmt"
	"strings"

	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/exchange"
	"conduit.io/conduit/proxy/flow"

	"golang.org/x/net/http2/hpack"
)

// Sink is an upstream that takes everything, and answers 200 when a request is complete. It remembers requests in a
// form that tests compare.
type Sink struct {
	Clock flow.Clock
	Mute  bool // never answer
	Seen  []*Request
	Live  map[*exchange.Stream]*Request
}

// Request is a request that reached a Sink.
type Request struct {
	Head     string
	Body     []byte
	Trailers string
	Complete bool
	Broken   bool
}

// String implements fmt.Stringer.
func (r *Request) String() string {
	return fmt.Sprintf("%s|%q|%s|%v|%v", r.Head, r.Body, r.Trailers, r.Complete, r.Broken)
}

// All is every request that the Sink has seen.
func (k *Sink) All() string {
	var b strings.Builder
	for _, r := range k.Seen {
		b.WriteString(r.String() + "\n")
	}
	return b.String()
}

func fields(f []hpack.HeaderField) string {
	var b strings.Builder
	for _, x := range f {
		fmt.Fprintf(&b, "%q=%q;", x.Name, x.Value)
	}
	return b.String()
}

// Send implements exchange.Upstream.
func (k *Sink) Send(s *exchange.Stream, _ []hpack.HeaderField) {
	h := s.Req
	r := &Request{Head: fmt.Sprintf("%q %q %q %q %q %s", h.Method, h.Scheme, h.Authority, h.Path, h.Protocol, fields(h.Fields))}
	k.Seen = append(k.Seen, r)
	if k.Live == nil {
		k.Live = map[*exchange.Stream]*Request{}
	}
	k.Live[s] = r
	ended := s.RequestEnded()
	s.Attach(k, ended)
	if ended {
		k.complete(s)
	}
}

func (k *Sink) complete(s *exchange.Stream) {
	r := k.Live[s]
	r.Complete = true
	if k.Mute {
		return
	}
	ref := s.Ref()
	k.Clock.After(0, func() {
		if ref.Live() && s.Res == nil {
			s.ResponseHead(&exchange.Head{Status: 200, Major: 1, Minor: 1}, true, false)
		}
	})
}

// Write implements exchange.Half.
func (k *Sink) Write(s *exchange.Stream, p []byte, end bool) int {
	r := k.Live[s]
	r.Body = append(r.Body, p...)
	if end {
		k.complete(s)
	}
	return len(p)
}

// WriteTrailers implements exchange.Half.
func (k *Sink) WriteTrailers(s *exchange.Stream, f []hpack.HeaderField) {
	k.Live[s].Trailers = fields(f)
	k.complete(s)
}

// Credit implements exchange.Half.
func (k *Sink) Credit(*exchange.Stream, int) {}

// Detach implements exchange.Half.
func (k *Sink) Detach(s *exchange.Stream, e exchange.Ending) {
	r := k.Live[s]
	delete(k.Live, s)
	r.Broken = !e.Clean && e.Reason != mesh.ReasonNone
}

// Room implements exchange.Upstream.
func (k *Sink) Room() int { return 1 }

// Active implements exchange.Upstream.
func (k *Sink) Active() int { return len(k.Live) }

// Served implements exchange.Upstream.
func (k *Sink) Served() uint64 { return uint64(len(k.Seen) - len(k.Live)) }

// Drain implements exchange.Upstream.
func (k *Sink) Drain() {}

// Close implements exchange.Upstream.
func (k *Sink) Close() {}
