package h2

import (
	"time"

	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/exchange"
)

// What a client has begun must come to its end: a header block, and any frame but DATA, within blockTime; a DATA frame
// within dataTime. They are looked at every exchange.PaceTick, and may therefore last that much longer.
const (
	blockTime = 10 * time.Second
	dataTime  = 60 * time.Second
)

const slowBody = "the request body comes too slowly"

// begin notes when a frame or a header block has begun that is not complete, and sees to it that somebody looks.
func (c *conn) begin(at *int64) {
	if c.side == exchange.Up || *at != 0 {
		return
	}
	*at = c.clock.Now()
	c.look()
}

// look makes pace be called within a tick.
func (c *conn) look() {
	if c.pacer == nil && !c.over {
		c.pacer = c.clock.After(exchange.PaceTick, c.pace)
	}
}

// pace ends what has begun and does not come to its end.
func (c *conn) pace() {
	c.pacer = nil
	if c.over {
		return
	}
	if c.choked || c.tired { // it is we who do not read
		c.look()
		return
	}
	now := c.clock.Now()
	limit := blockTime
	if len(c.in) > 3 && c.in[3] == frData {
		limit = dataTime
	}
	if c.in == nil {
		c.inSince = 0
	}
	if c.hdrID == 0 {
		c.hdrSince = 0
	}
	if c.inSince != 0 && now-c.inSince >= int64(limit) || c.hdrSince != 0 && now-c.hdrSince >= int64(blockTime) {
		c.die(calm(mesh.AbuseSlowHead, "a frame or a header block does not come to its end"))
		return
	}
	if c.inSince != 0 || c.hdrSince != 0 {
		c.look()
	}
	c.paceBodies()
}

// paceBodies answers the requests whose bodies come too slowly. On a link the other proxy does so.
func (c *conn) paceBodies() {
	if c.side == exchange.Up || c.internal {
		return
	}
	held := c.used-c.unacked > c.recvWin/2 // the connection's window may be what holds a stream back
	for _, r := range c.streams.refs() {
		if c.over || !r.Live() {
			continue
		}
		p := r.S.Port(exchange.Down)
		if p.GotEnd || p.Left < 0 {
			continue
		}
		c.look()
		if r.S.Slow(p.Left > 0 && !held) {
			c.role.slow(r.S)
		}
	}
}
