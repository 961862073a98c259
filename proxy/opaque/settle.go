package opaque

// Settle ends the sniffing, if it is going on: the connection is opaque, and what the client has sent so far is
// forwarded.
func (sv *Server) Settle() {
	if sv.s != nil && sv.sniff != nil {
		sv.settle(false)
	}
}

// Sniffing reports whether it is still open what the client speaks.
func (sv *Server) Sniffing() bool { return sv.s != nil && sv.sniff != nil }
