package trip

import (
	"testing"

	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/exchange"
	"conduit.io/conduit/proxy/loop"
	"conduit.io/conduit/proxy/meter"

	"golang.org/x/net/http2/hpack"
)

// echo is both codecs of a stream that is answered at once.
type echo struct{ res *exchange.Head }

func (e *echo) Write(_ *exchange.Stream, p []byte, _ bool) int      { return len(p) }
func (e *echo) WriteTrailers(*exchange.Stream, []hpack.HeaderField) {}
func (e *echo) Credit(*exchange.Stream, int)                        {}
func (e *echo) Detach(*exchange.Stream, exchange.Ending)            {}
func (e *echo) WriteHead(*exchange.Stream, *exchange.Head, bool)    {}
func (e *echo) Send(s *exchange.Stream, _ []hpack.HeaderField) {
	s.Attach(e, true)
	s.ResponseHead(e.res, true, false)
}
func (e *echo) Room() int                    { return 1 }
func (e *echo) Active() int                  { return 0 }
func (e *echo) Served() uint64               { return 0 }
func (e *echo) Drain()                       {}
func (e *echo) Close()                       {}
func (e *echo) Stranded(mesh.Reason, string) {}

// plain does nothing but forward; tripping makes a Trip of it.
type plain struct{ e *echo }

func (h plain) Request(s *exchange.Stream)            { s.Forward(h.e, nil) }
func (plain) Response(*exchange.Stream)               {}
func (plain) Lost(*exchange.Stream, mesh.Reason) bool { return false }
func (plain) Done(*exchange.Stream)                   {}

type tripping struct {
	plain
	desk Desk
	r    *meter.Requests
	t    Trip
}

func (h *tripping) Request(s *exchange.Stream) {
	s.Ctx = &h.t
	h.t.Begin(&h.desk, s, h.e)
	h.t.CountOn(h.r)
	h.t.send(h.e, nil)
}
func (h *tripping) Response(s *exchange.Stream) { s.Ctx.(*Trip).Answered() }
func (h *tripping) Done(s *exchange.Stream)     { s.Ctx.(*Trip).Done() }

// flushless is a loop whose batches the benchmark ends.
type flushless struct{ *loop.Loop }

func (flushless) AtEnd(loop.Flusher) {}

// BenchmarkTrip is what counting a request and its times costs, as the difference of the two.
func BenchmarkTrip(b *testing.B) {
	l, err := loop.New()
	if err != nil {
		b.Fatal(err)
	}
	e := &echo{res: &exchange.Head{Status: 200, Major: 2, Fields: []hpack.HeaderField{{Name: "server", Value: "x"}, {Name: "content-type", Value: "text/plain"}}}}
	t := &tripping{plain: plain{e}, r: meter.NewSet(1).Requests(meter.Key{Route: meter.DefaultRoute}, 0)}
	t.desk = Desk{Loop: l, Book: meter.NewBook(flushless{l}), Process: &meter.Process{}}
	req := &exchange.Head{Method: "GET", Major: 2, Path: "/", Fields: []hpack.HeaderField{{Name: "user-agent", Value: "x"}, {Name: "accept", Value: "*/*"}}}
	for name, h := range map[string]exchange.Handler{"plain": plain{e}, "trip": t} {
		b.Run(name, func(b *testing.B) {
			pool := exchange.NewPool()
			o := exchange.ServerOptions{Clock: l, Pool: pool}
			b.ReportAllocs()
			for i := range b.N {
				pool.NewStream(e, h, &o).Open(req, true)
				if h == t && i%16 == 15 { // as many requests in a batch
					t.desk.Book.Flush()
					t.desk.Book.Flush()
				}
			}
		})
	}
	l.Post(func() { l.Stop() })
	l.Run(b.Context())
}
