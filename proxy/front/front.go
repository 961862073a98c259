// Package front finds the codec for an accepted connection whose protocol is not certain, without making anybody wait:
// bytes that are there decide; while there are none, an opaque stream to the upstream is opened at once, and whoever
// speaks first decides. If that is a client speaking HTTP, the connection leaves the opaque stream, which has then
// carried nothing, for the HTTP codec.
package front

import (
	"time"

	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/detect"
	"conduit.io/conduit/proxy/exchange"
	"conduit.io/conduit/proxy/flow"
	"conduit.io/conduit/proxy/h1"
	"conduit.io/conduit/proxy/h2"
	"conduit.io/conduit/proxy/opaque"
)

// undecided is how long bytes may stay undecided before the connection is taken for opaque: a client that sent half a
// word and waits for an answer must get one.
const undecided = 100 * time.Millisecond

// Codec is what serves the connection once it is chosen.
type Codec interface {
	flow.Receiver
	exchange.Burden
	// Drain ends the connection as gracefully as its protocol can.
	Drain()
	// Quit lets what is under way come to its end, and nothing more begin.
	Quit()
}

// Options say how to serve a connection.
type Options struct {
	Handler exchange.Handler
	Server  exchange.ServerOptions
	// Protocol, when it is not Detect, is certain.
	Protocol mesh.Protocol
	// ClientFirst, for Detect: the client is known to speak first. Nothing is opened ahead of it, and it has as long as
	// a client of HTTP has.
	ClientFirst bool
	// Wait is how long to wait for the client before an opaque stream is opened; 0: not at all.
	Wait time.Duration
	// Chosen, if set, is called when the client's bytes, or their absence, have decided. It may not be called for a
	// connection on which the server spoke first.
	Chosen func(p mesh.Protocol)
}

// Front is a connection on its way to its codec. It belongs to one shard loop.
type Front struct {
	c     flow.Conn
	o     Options
	buf   []byte
	timer flow.Timer // to open an opaque stream, or to give up a client that says nothing
	limit flow.Timer // to end indecision
	codec Codec
	tcp   *opaque.Server
	drain bool
	usher bool
}

// Serve makes a codec the receiver of c, now or as soon as it is clear which.
func Serve(c flow.Conn, o Options) *Front {
	f := &Front{c: c, o: o}
	switch o.Protocol {
	case mesh.HTTP1, mesh.HTTP2:
		f.http(o.Protocol, nil)
	case mesh.Opaque:
		f.opaque(nil, nil)
	default:
		c.SetReceiver(f)
		if o.ClientFirst {
			f.timer = o.Server.Clock.After(h1.IdleTimeout, c.Close)
		} else {
			// One batch more, so that bytes which came with the connection are seen first.
			f.timer = o.Server.Clock.After(o.Wait, func() { f.timer = o.Server.Clock.After(0, f.speculate) })
		}
	}
	return f
}

// HTTP makes the codec of p, HTTP1 or HTTP2, the receiver of c.
func HTTP(c flow.Conn, p mesh.Protocol, h exchange.Handler, o exchange.ServerOptions) Codec {
	if p == mesh.HTTP1 {
		return h1.NewServer(c, h, o)
	}
	return h2.NewServer(c, h, o)
}

// Drain ends the connection gracefully. One on which nobody has said a word has h1.DrainRest to do so: its first request
// may be on its way.
func (f *Front) Drain() {
	if f.drain {
		return
	}
	f.drain = true
	if !f.Undecided() {
		f.codec.Drain()
		return
	}
	if f.timer != nil {
		f.timer.Stop()
	}
	f.timer = f.o.Server.Clock.After(h1.DrainRest, func() {
		switch {
		case f.tcp != nil:
			f.tcp.Quit()
		case f.buf == nil:
			f.c.Close()
		}
	})
}

// Usher is Drain where there is time: nothing ends of which its client was not told, and one that says nothing may go on doing so.
func (f *Front) Usher() {
	f.usher = true
	if sv, ok := f.codec.(*h1.Server); ok {
		sv.Usher()
	} else if !f.Undecided() {
		f.Drain()
	}
}

// Quit lets what is under way come to its end, and nothing more begin; without a word yet, nothing is.
func (f *Front) Quit() {
	if f.codec == nil {
		f.c.Close()
		return
	}
	f.codec.Quit()
}

// Held implements exchange.Burden.
func (f *Front) Held() int {
	if f.codec != nil {
		return f.codec.Held()
	}
	return len(f.buf)
}

// Taken implements exchange.Burden.
func (f *Front) Taken() uint64 {
	if f.codec != nil {
		return f.codec.Taken()
	}
	return 0
}

// Shed implements exchange.Burden.
func (f *Front) Shed() {
	if f.codec != nil {
		f.codec.Shed()
		return
	}
	f.c.Abort()
}

// Undecided reports whether the client may yet turn out to speak HTTP.
func (f *Front) Undecided() bool {
	return f.codec == nil || f.tcp != nil && f.tcp.Sniffing()
}

// Data implements flow.Receiver.
func (f *Front) Data(p []byte) {
	if f.buf != nil {
		f.buf = append(f.buf, p...)
		p = f.buf
	}
	switch v := detect.Bytes(p); {
	case v == detect.HTTP1:
		f.http(mesh.HTTP1, p)
	case v == detect.HTTP2:
		f.http(mesh.HTTP2, p)
	case v == detect.Opaque:
		f.opaque(p, nil)
	case f.buf == nil:
		f.buf = append([]byte(nil), p...)
		f.bound()
	}
}

// bound starts the clock on indecision.
func (f *Front) bound() {
	d := undecided
	if f.o.ClientFirst {
		d = h1.HeadTimeout
	}
	if f.limit == nil {
		f.limit = f.o.Server.Clock.After(d, f.settle)
	}
}

func (f *Front) settle() {
	f.chosen(mesh.Opaque)
	if f.tcp != nil {
		f.tcp.Settle()
		return
	}
	f.opaque(f.buf, nil)
}

// speculate opens an opaque stream for a client that has not said enough. Its bytes go on being looked at.
func (f *Front) speculate() { f.opaque(f.buf, f.sniff) }

func (f *Front) sniff(p []byte) opaque.Verdict {
	switch detect.Bytes(p) {
	case detect.More:
		f.bound()
		return opaque.More
	case detect.HTTP1:
		f.tcp = nil
		f.http(mesh.HTTP1, p)
		return opaque.Leave
	case detect.HTTP2:
		f.tcp = nil
		f.http(mesh.HTTP2, p)
		return opaque.Leave
	}
	f.chosen(mesh.Opaque)
	return opaque.Stay
}

// chosen ends all waiting.
func (f *Front) chosen(p mesh.Protocol) {
	if f.timer != nil {
		f.timer.Stop()
	}
	if f.limit != nil {
		f.limit.Stop()
	}
	if f.o.Chosen != nil {
		f.o.Chosen(p)
	}
}

func (f *Front) http(p mesh.Protocol, first []byte) {
	f.chosen(p)
	f.buf = nil
	f.codec = HTTP(f.c, p, f.o.Handler, f.o.Server)
	if f.drain {
		f.codec.Drain()
	} else if f.usher {
		f.Usher()
	}
	if len(first) > 0 {
		f.codec.Data(first)
	}
}

// opaqueHead is the request of every opaque connection; where it goes, the Handler knows.
var opaqueHead = &exchange.Head{Method: "CONNECT"}

func (f *Front) opaque(first []byte, sniff func([]byte) opaque.Verdict) {
	if sniff == nil {
		f.chosen(mesh.Opaque)
	}
	f.buf = nil
	f.tcp = opaque.NewServer(f.c, f.o.Handler, f.o.Server, opaqueHead, sniff)
	f.codec = f.tcp
	if len(first) > 0 {
		f.codec.Data(first)
	}
}

// EOF implements flow.Receiver: a client that has said all it wants to say, and that was not HTTP.
func (f *Front) EOF() {
	if f.o.ClientFirst && f.buf == nil {
		f.c.Close()
		return
	}
	f.opaque(f.buf, nil)
	f.codec.EOF()
}

// Drained implements flow.Receiver.
func (f *Front) Drained() {}

// Closed implements flow.Receiver.
func (f *Front) Closed(err error) {
	if f.timer != nil {
		f.timer.Stop()
	}
	if f.limit != nil {
		f.limit.Stop()
	}
	if f.o.Server.OnClose != nil {
		f.o.Server.OnClose(err)
	}
}
