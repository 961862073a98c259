package h2

// Outstanding is what of the connection's receive window is neither credited nor about to be.
func (sv *Server) Outstanding() int32 { return sv.used - sv.unacked }

// Outstanding as for Server.
func (cl *Client) Outstanding() int32 { return cl.used - cl.unacked }

// SkipTo makes id the next stream's identifier.
func (cl *Client) SkipTo(id uint32) { cl.next = id }

// Waiting is how many entries the list of streams that wait for the connection has.
func (sv *Server) Waiting() int { return len(sv.blocked) - sv.front }

// Kept is how many bytes of input wait for another turn.
func (sv *Server) Kept() int { return len(sv.rest) + len(sv.in) }

// Dozing reports whether what makes header blocks cheap was given up.
func (c *conn) Dozing() bool { return c.dozing && c.hp.cur == nil && c.hp.heads == nil }
