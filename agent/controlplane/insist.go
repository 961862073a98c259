package controlplane

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"connectrpc.com/connect"
)

const (
	retryFirst = 250 * time.Millisecond
	retryMost  = 10 * time.Second
	settled    = 10 * time.Second // a stream that lasted longer has not failed
)

// insist has follow follow the controller, again and again, until ctx ends. failed is told of every end; again: nothing has
// succeeded since it was told last.
func insist(ctx context.Context, follow func(context.Context) error, failed func(err error, again bool)) {
	pause, again := retryFirst, false
	for ctx.Err() == nil {
		began := time.Now()
		err := follow(ctx)
		if time.Since(began) > settled {
			pause, again = retryFirst, false
		}
		if ctx.Err() != nil {
			return
		}
		failed(err, again)
		wait := rand.N(pause) + pause/2 // to spread agents
		if after := retryAfter(err); after > 0 {
			wait = after + rand.N(after)
		}
		pause, again = min(2*pause, retryMost), true
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

// retryAfter is how long the controller asks to wait; 0: it does not say.
func retryAfter(err error) time.Duration {
	var ce *connect.Error
	if !errors.As(err, &ce) {
		return 0
	}
	after, _ := time.ParseDuration(ce.Meta().Get("retry-after") + "s")
	return min(max(0, after), time.Minute)
}
