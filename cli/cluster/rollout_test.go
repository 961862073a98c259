package cluster

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"conduit.io/conduit/cli/output"
)

// The end of the time is told as such, whatever a client makes of it.
func TestAwaitEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 2*pollEvery)
		defer cancel()
		err := await(ctx, func(string) {}, func(ctx context.Context) (string, bool, error) {
			if end, _ := ctx.Deadline(); time.Now().Before(end) {
				return "", false, nil
			}
			return "", false, &output.Problem{What: "list pods", Err: errors.New("client rate limiter: would exceed context deadline")}
		})
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
	})
}
