package meter

import "conduit.io/conduit/mesh"

// series is what both kinds of series are made of.
type series struct {
	key  Key
	used int64 // when it last counted
	busy int   // what is under way, which keeps the series
	gone bool  // it is not in the Set, or stands for others: who holds it is to look it up again
}

func (s *series) base() *series { return s }

// Gone reports whether the series must be looked up again before its next use. What began on it is counted all the same.
func (s *series) Gone() bool { return s.gone }

// Requests is the series of one Key's requests.
type Requests struct {
	series
	total   uint64
	ended   tally
	latency histogram
	parts   split
}

// Begin says that a request will be counted here, so that the series stays.
func (r *Requests) Begin() { r.busy++ }

// Leave takes Begin back: the request is counted elsewhere.
func (r *Requests) Leave() { r.busy-- }

// Started counts a request.
func (r *Requests) Started() { r.total++ }

// Linked says where the time that another proxy needed to answer went, in nanoseconds: app of it in its application, and
// all of it, that included, in there. The rest was the network's. Both numbers are that proxy's word.
func (r *Requests) Linked(answer, there, app int64) {
	there = min(max(there, 0), answer)
	app = min(max(app, 0), there)
	r.parts.add(Network, answer-there)
	r.parts.add(Peer, there-app)
	r.parts.add(Application, app)
}

func (r *Requests) clone() *Requests {
	c := *r
	c.ended = append(tally(nil), r.ended...)
	c.latency = *r.latency.copy()
	c.parts = r.parts.clone()
	return &c
}

// Conns is the series of one Key's connections.
type Conns struct {
	series
	opened uint64
	closed tally
	read   uint64
	wrote  uint64

	accept, connect *histogram // nil: nothing was measured
}

// Opened counts a connection in.
func (c *Conns) Opened() {
	c.opened++
	c.busy++
}

// Closed counts it out, at now; an orderly end has no reason.
func (c *Conns) Closed(now int64, reason mesh.Reason) {
	c.busy--
	c.used = now
	c.closed.add(NewOutcome(reason == mesh.ReasonNone, 0, "", reason))
}

// Bytes counts bytes read from, and written to, the connection's client.
func (c *Conns) Bytes(read, wrote uint64) {
	c.read += read
	c.wrote += wrote
}

// Accepted counts how long a connection waited to be accepted, in nanoseconds.
func (c *Conns) Accepted(nanos int64) { measure(&c.accept, nanos) }

// Connected counts how long the dial for an opaque connection took, in nanoseconds.
func (c *Conns) Connected(nanos int64) { measure(&c.connect, nanos) }

func (c *Conns) clone() *Conns {
	d := *c
	d.accept, d.connect = c.accept.copy(), c.connect.copy()
	d.closed = append(tally(nil), c.closed...)
	return &d
}
