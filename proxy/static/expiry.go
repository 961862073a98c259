package static

import "time"

// soon is how long before its end a certificate is worth a warning.
const soon = 24 * time.Hour

// warnOfEnds logs once of each certificate that its end is near, and once that it has come.
func (s *Server) warnOfEnds(now time.Time) {
	for i, c := range s.process.Certificates {
		switch left := c.End.Sub(now); {
		case left <= 0 && s.warned[i] < 2:
			s.warned[i] = 2
			s.log.Warn("a certificate has expired: no handshake succeeds with it; renew it, and start the proxy again",
				"certificate", c.Name, "expired", c.End.UTC())
		case left > 0 && left <= soon && s.warned[i] < 1:
			s.warned[i] = 1
			s.log.Warn("a certificate expires soon; renew it, and start the proxy again", "certificate", c.Name, "expires", c.End.UTC())
		}
	}
}
