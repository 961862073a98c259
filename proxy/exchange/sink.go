package exchange

import "conduit.io/conduit/proxy/flow"

// WriteBounded writes of p to c what fits before the backlog passes flow.HighWater, and returns how much. If that is
// less than p, Drained will follow.
func WriteBounded(c flow.Conn, p []byte) int {
	const over = 16 << 10 // as much as the last write may add
	n := 0
	for n < len(p) {
		room := flow.HighWater - c.Backlog()
		if room < 0 {
			break
		}
		k := min(room+over, len(p)-n)
		c.Write(p[n : n+k])
		n += k
	}
	return n
}

// Gate pauses a connection whose bytes are not taken as fast as they come.
type Gate struct{ Paused bool }

// Update pauses c when held, the bytes waiting, passes flow.HighWater, and resumes it at flow.LowWater.
func (g *Gate) Update(c flow.Conn, held int) {
	switch {
	case !g.Paused && held > flow.HighWater:
		g.Paused = true
		c.Pause()
	case g.Paused && held <= flow.LowWater:
		g.Paused = false
		c.Resume()
	}
}
