package identity

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"conduit.io/conduit/control/access"

	authv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// desk answers questions about tokens: those whose middle part says so are good. What a real API server says is tested with
// one; here it is about how often it is asked.
type desk struct {
	asked atomic.Int64
	slow  time.Duration
	down  atomic.Bool
	gone  atomic.Bool // the pods of good tokens have been deleted
}

func (d *desk) Create(ctx context.Context, r *authv1.TokenReview, _ metav1.CreateOptions) (*authv1.TokenReview, error) {
	d.asked.Add(1)
	<-time.After(d.slow)
	if d.down.Load() {
		return nil, errors.New("the request was: " + r.Spec.Token)
	}
	if strings.HasPrefix(r.Spec.Token, "good.") && !d.gone.Load() {
		r.Status = authv1.TokenReviewStatus{Authenticated: true, Audiences: r.Spec.Audiences, User: authv1.UserInfo{
			Username: "system:serviceaccount:conduit:conduit-agent", Extra: map[string]authv1.ExtraValue{nodeExtra: {"n1"}, uidExtra: {"u1"}}}}
	}
	return r, nil
}

func withTokens(t *testing.T, test func(t *testing.T, d *desk, k *tokens, log *logs)) {
	synctest.Test(t, func(t *testing.T) {
		d, log := &desk{slow: time.Millisecond}, &logs{}
		c := &counts{now: time.Now, log: slog.New(slog.NewTextHandler(log, nil))}
		test(t, d, newTokens(d, "system:serviceaccount:conduit:conduit-agent", time.Minute, time.Now, c), log)
	})
}

func good(n int) string { return fmt.Sprintf("good.%d.x", n) }

func TestTokensAreAskedAboutOnce(t *testing.T) {
	withTokens(t, func(t *testing.T, d *desk, k *tokens, _ *logs) {
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				c, err := k.authenticate(t.Context(), good(1))
				if err != nil || !c.Agent || c.Node != "n1" {
					t.Errorf("%+v, %v", c, err)
				}
			})
		}
		wg.Wait()
		if n := d.asked.Load(); n != 1 {
			t.Errorf("asked %d times", n)
		}
		<-time.After(59 * time.Second)
		d.gone.Store(true)
		if _, err := k.authenticate(t.Context(), good(1)); err != nil {
			t.Errorf("within its time: %v", err)
		}
		<-time.After(2 * time.Second)
		if _, err := k.authenticate(t.Context(), good(1)); !errors.Is(err, access.ErrUnauthenticated) {
			t.Errorf("a token of a deleted pod: %v", err)
		}
	})
}

func TestTokensEnd(t *testing.T) {
	withTokens(t, func(t *testing.T, d *desk, k *tokens, _ *logs) {
		claims := fmt.Sprintf(`{"exp":%d}`, time.Now().Add(10*time.Second).Unix())
		token := "good." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".x"
		for _, wait := range []time.Duration{0, 9 * time.Second, 2 * time.Second} {
			<-time.After(wait)
			if _, err := k.authenticate(t.Context(), token); err != nil {
				t.Fatal(err)
			}
		}
		if n := d.asked.Load(); n != 2 {
			t.Errorf("asked %d times; a token must be asked about again when it ends", n)
		}
	})
}

// Strangers cannot use up what agents need, neither questions nor memory.
func TestForgedTokensAreBounded(t *testing.T) {
	withTokens(t, func(t *testing.T, d *desk, k *tokens, log *logs) {
		if _, err := k.authenticate(t.Context(), good(1)); err != nil {
			t.Fatal(err)
		}
		throttled := 0
		for n := range 5000 {
			_, err := k.authenticate(t.Context(), fmt.Sprintf("forged.%d.x", n))
			if err == nil {
				t.Fatal("a forged token was accepted")
			}
			if !errors.Is(err, access.ErrUnauthenticated) {
				throttled++
			}
		}
		if n := d.asked.Load(); throttled == 0 || n > reviewsAtOnce+500 {
			t.Errorf("asked %d times about forged tokens, %d were throttled", n, throttled)
		}
		asked := d.asked.Load()
		if _, err := k.authenticate(t.Context(), "forged.0.x"); !errors.Is(err, access.ErrUnauthenticated) || d.asked.Load() != asked {
			t.Errorf("a forged token that comes again: %v, asked %v", err, d.asked.Load() != asked)
		}
		k.limit.SetBurst(0) // as if strangers went on
		k.limit.SetLimit(0)
		<-time.After(2 * time.Minute)
		if _, err := k.authenticate(t.Context(), good(1)); err != nil {
			t.Errorf("a known token suffers from strangers: %v", err)
		}
		for n := range 3 * maxKnown {
			keep(k.refused, [32]byte{byte(n), byte(n >> 8), byte(n >> 16)}, verdict{}, time.Now())
		}
		if len(k.refused) > maxKnown {
			t.Errorf("%d refused tokens are remembered", len(k.refused))
		}
		if got := k.counts.refused["throttled-token"]; got != uint64(throttled) {
			t.Errorf("%d throttled tokens were counted, want %d", got, throttled)
		}
		if got := k.counts.refused["refused-token"]; got != uint64(5000-throttled+1) {
			t.Errorf("%d refused tokens were counted, want %d", got, 5000-throttled+1)
		}
	})
}

func TestTokensWithoutAPIServer(t *testing.T) {
	withTokens(t, func(t *testing.T, d *desk, k *tokens, log *logs) {
		d.down.Store(true)
		_, err := k.authenticate(t.Context(), good(7))
		if err == nil || errors.Is(err, access.ErrUnauthenticated) || strings.Contains(err.Error()+log.String(), good(7)) {
			t.Errorf("%v\n%s; want an error that is not the token's fault, and the token nowhere", err, log.String())
		}
		d.down.Store(false)
		if _, err := k.authenticate(t.Context(), good(7)); err != nil {
			t.Errorf("afterwards: %v", err)
		}
		d.slow = time.Hour
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		go func() { _, _ = k.authenticate(t.Context(), good(8)) }()
		synctest.Wait()
		if _, err := k.authenticate(ctx, good(8)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("waiting for another's question: %v", err)
		}
		<-time.After(2 * time.Hour)
	})
}
