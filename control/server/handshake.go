package server

import (
	"context"
	"crypto/tls"
	"errors"
	"sync"
	"time"
)

// turnWait is how long a handshake may wait for its turn: clients give up after 5 s.
const turnWait = 4 * time.Second

var errCrowd = errors.New("too many handshakes wait: come again")

// oneByOne is cfg with a bound on how many handshakes use the processor at a time. Each takes more than a millisecond: when
// a thousand agents come at once, streams that stand would have to wait for all of them. A handshake has its turn from the client's hello
// until all that this side has to say is ready, so that a client which is slow, or says nothing more, keeps nobody from his.
func oneByOne(cfg *tls.Config, atOnce int) *tls.Config {
	turns := make(chan struct{}, atOnce)
	out := cfg.Clone()
	out.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		wait := time.NewTimer(turnWait)
		defer wait.Stop()
		select {
		case turns <- struct{}{}:
		case <-hello.Context().Done():
			return nil, hello.Context().Err()
		case <-wait.C:
			return nil, errCrowd
		}
		over := sync.OnceFunc(func() { <-turns })
		context.AfterFunc(hello.Context(), over) // it may fail before it is verified
		own := cfg.Clone()
		own.VerifyConnection = func(cs tls.ConnectionState) error {
			over()
			if cfg.VerifyConnection != nil {
				return cfg.VerifyConnection(cs)
			}
			return nil
		}
		return own, nil
	}
	return out
}
