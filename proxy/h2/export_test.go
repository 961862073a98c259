package h2

// Outstanding is what of the connection's receive window is neither credited nor about to be.
func (sv *Server) Outstanding() int32 { return sv.used - sv.unacked }

// Outstanding as for Server.
func (cl *Client) Outstanding() int32 { return cl.used - cl.unacked }

// SkipTo makes id the next stream's identifier.
func (cl *Client) SkipTo(id uint32) { cl.next = id }
