package h2

import (
	"conduit.io/conduit/mesh"
	"conduit.io/conduit/proxy/exchange"
)

// Limits per second on what costs us and gives the peer nothing.
const (
	// maxResets bounds streams that ended by a reset which the client sent or caused (CVE-2023-44487 and
	// "MadeYouReset"). A link between proxies carries the cancellations of many clients.
	maxResets     = 500
	maxResetsLink = 10000
	maxControl    = 10000 // PING (gRPC measures bandwidth with it), PRIORITY, unknown frames
	maxSettings   = 100   // SETTINGS frames, the settings in them, and GOAWAY
	maxEmpty      = 1000  // DATA without bytes and without END_STREAM
	// maxUpdates bounds WINDOW_UPDATE frames beyond updatesPerData for each DATA frame that we send: a receiver may
	// well acknowledge every one of them, for the stream and for the connection.
	maxUpdates     = 10000
	updatesPerData = 4
	// maxTiny bounds how often a window that was used up is opened by less than tinyWindow bytes: each time costs us a
	// frame for next to nothing.
	maxTiny       = 1000
	tinyWindow    = 16
	maxQueuedAcks = 1 << 20 // backlog in bytes above which nothing is acknowledged any more
	// maxBacklog is the backlog above which a server reads no further and a client takes no more streams: heads are
	// not under flow control.
	maxBacklog = 512 << 10
)

// rates counts within one second.
type rates struct {
	since                            int64
	resets, control, settings, empty int32
	updates, tiny                    int32
	sent                             uint32 // conn.sent at the start
}

func (c *conn) window() *rates {
	if now := c.clock.Now(); now-c.rate.since > 1e9 {
		c.rate = rates{since: now, sent: c.sent}
	}
	return &c.rate
}

// control counts a frame that is for the connection alone.
func (c *conn) control(kind mesh.Abuse) error {
	if r := c.window(); r.control >= maxControl {
		return calm(kind, "too many control frames")
	} else {
		r.control++
	}
	return c.answered()
}

// reconfigured counts n settings, or a GOAWAY: each of them may concern every stream.
func (c *conn) reconfigured(n int) error {
	r := c.window()
	if r.settings += int32(n); r.settings > maxSettings {
		return calm(mesh.AbuseSettings, "too many SETTINGS")
	}
	return c.answered()
}

// opened counts a WINDOW_UPDATE by inc; empty: the window was used up.
func (c *conn) opened(inc int64, empty bool) error {
	r := c.window()
	if r.updates++; int64(r.updates) > maxUpdates+updatesPerData*int64(c.sent-r.sent) {
		return calm(mesh.AbuseWindow, "too many WINDOW_UPDATE frames")
	}
	if inc < tinyWindow && empty {
		if r.tiny++; r.tiny > maxTiny {
			return calm(mesh.AbuseTinyWindow, "the windows are opened by too little")
		}
	}
	return nil
}

// answered checks that the peer takes our answers.
func (c *conn) answered() error {
	if c.c.Backlog() > maxQueuedAcks {
		return calm(mesh.AbuseUnread, "too many answers wait to be read")
	}
	return nil
}

// countReset counts a reset that a client sent or caused.
func (c *conn) countReset() error {
	if c.side == exchange.Up {
		return nil
	}
	limit := int32(maxResets)
	if c.internal {
		limit = maxResetsLink
	}
	r := c.window()
	if r.resets++; r.resets > limit {
		return calm(mesh.AbuseResets, "too many streams were reset")
	}
	return nil
}

func (c *conn) onPing(flags byte, id uint32, p []byte) error {
	if id != 0 {
		return fatal(codeProtocol, "PING on a stream")
	}
	if len(p) != 8 {
		return fatal(codeFrameSize, "PING is not 8 bytes")
	}
	if err := c.control(mesh.AbusePing); err != nil {
		return err
	}
	if flags&flAck != 0 {
		c.role.acked()
		return nil
	}
	c.c.Write(append(appendFrame(c.buf[:0], 8, frPing, flAck, 0), p...))
	return nil
}

func (c *conn) onPriority(id uint32, p []byte) error {
	if id == 0 {
		return fatal(codeProtocol, "PRIORITY on the connection")
	}
	if len(p) != 5 {
		return c.streamError(id, codeFrameSize)
	}
	if be32(p)&maxWindow == id {
		return c.streamError(id, codeProtocol)
	}
	return c.control(mesh.AbusePriority)
}

func (c *conn) onReset(id uint32, p []byte) error {
	if id == 0 {
		return fatal(codeProtocol, "RST_STREAM on the connection")
	}
	if len(p) != 4 {
		return fatal(codeFrameSize, "RST_STREAM is not 4 bytes")
	}
	s := c.streams.get(id)
	if s == nil {
		return c.role.unknown(id, frReset)
	}
	c.remove(s)
	code := be32(p)
	if code == codeNo { // that would say that all is well, but nothing is complete here
		code = codeCancel
	}
	c.role.reset(s, code)
	return c.countReset()
}

// streamError resets one stream because of what the peer did on it.
func (c *conn) streamError(id, code uint32) error {
	if c.side == exchange.Up {
		return c.giveUp(id, code, mesh.ReasonUpstreamProto)
	}
	return c.giveUp(id, code, mesh.ReasonBadRequest)
}

func (c *conn) giveUp(id, code uint32, reason mesh.Reason) error {
	c.rst(id, code)
	if s := c.streams.get(id); s != nil {
		c.remove(s)
		c.role.broke(s, reason)
	}
	return c.countReset()
}

func (c *conn) onSettings(flags byte, id uint32, p []byte) error {
	if id != 0 {
		return fatal(codeProtocol, "SETTINGS on a stream")
	}
	if flags&flAck != 0 {
		if len(p) != 0 {
			return fatal(codeFrameSize, "SETTINGS acknowledgement with a payload")
		}
		if !c.acks {
			c.acks = true
			c.agreed()
		}
		return c.control(mesh.AbuseSettings)
	}
	if len(p)%6 != 0 {
		return fatal(codeFrameSize, "SETTINGS is cut")
	}
	if err := c.reconfigured(1 + len(p)/6); err != nil {
		return err
	}
	if !c.first {
		c.first, c.maxPeer = true, unlimited
		c.agreed()
	}
	before := c.initWin
	for ; len(p) > 0; p = p[6:] {
		if err := c.setting(int(p[0])<<8|int(p[1]), be32(p[2:])); err != nil {
			return err
		}
	}
	c.c.Write(appendFrame(c.buf[:0], 0, frSettings, flAck, 0)) // before anything else (RFC 9113, 6.5.3)
	if c.initWin > before {
		c.pumpAll()
	}
	c.unblock()
	c.role.settled()
	return nil
}

func (c *conn) setting(id int, v uint32) error {
	switch id {
	case setTableSize:
		c.hp.setPeerTable(v)
	case setPush:
		if v > 1 || v == 1 && c.side == exchange.Up {
			return fatal(codeProtocol, "bad ENABLE_PUSH")
		}
	case setMaxStreams:
		c.maxPeer = v
	case setWindow:
		if v > maxWindow {
			return fatal(codeFlow, "bad INITIAL_WINDOW_SIZE")
		}
		return c.setWindow(int32(v))
	case setMaxFrame:
		if v < 16384 || v > 1<<24-1 {
			return fatal(codeProtocol, "bad MAX_FRAME_SIZE")
		}
	case setConnect:
		if v > 1 || v == 0 && c.extended { // RFC 8441, 3
			return fatal(codeProtocol, "bad ENABLE_CONNECT_PROTOCOL")
		}
		if c.extended = v == 1; c.extended {
			c.hp.encGen++ // what a request was encoded to holds no longer
		}
	}
	return nil
}

// setWindow changes the window of every stream by the difference (RFC 9113, 6.9.2). It sends nothing.
func (c *conn) setWindow(v int32) error {
	d := int64(v) - int64(c.initWin)
	c.initWin = v
	for _, r := range c.streams.refs() {
		p := r.S.Port(c.side)
		w := int64(p.Window) + d
		if w > maxWindow || w < -maxWindow {
			return fatal(codeFlow, "a stream window overflows")
		}
		p.Window = int32(w)
	}
	return nil
}

// pumpAll lets every stream go on.
func (c *conn) pumpAll() {
	for _, r := range c.streams.refs() {
		if r.Live() {
			r.S.Pump(c.side)
		}
	}
}
