package opaque_test

import (
	"bytes"
	"testing"
)

// TestLastBytesOutliveTheirSource ends one connection in both directions while bytes from it still wait for the other,
// whose peer is slow: they arrive, and nobody sees a reset.
func TestLastBytesOutliveTheirSource(t *testing.T) {
	body := bytes.Repeat([]byte("0123456789abcdef"), 150<<10/16)
	for _, up := range []bool{true, false} {
		r := newRig(nil, false)
		from, to := r.client, r.app
		if !up {
			from, to = to, from
		}
		to.C.CloseWrite()
		r.n.Run()
		if !from.HadEOF {
			t.Fatalf("up %v: the half-close did not arrive", up)
		}
		to.C.Room = 32 << 10
		to.C.Pause()
		from.C.Write(body)
		from.C.CloseWrite()
		r.n.Run()
		if !from.Ended || from.Err != nil {
			t.Fatalf("up %v: the source is not over (%v): the test has no point", up, from.Err)
		}
		if to.IsReset() || r.h.Open != 1 {
			t.Fatalf("up %v: reset %v, open %d", up, to.Err, r.h.Open)
		}
		to.C.Resume()
		r.n.Run()
		if !bytes.Equal(to.Got.Bytes(), body) || !to.HadEOF || !to.Ended || to.Err != nil {
			t.Errorf("up %v: %d of %d bytes, EOF %v, %v", up, to.Got.Len(), len(body), to.HadEOF, to.Err)
		}
		if l := r.h.Log; len(l) != 1 || l[0].Reason != "" || r.h.Open != 0 || r.closed != 1 || len(r.changes) != 1 {
			t.Errorf("up %v: log %v, open %d, closed %d, changes %v", up, l, r.h.Open, r.closed, r.changes)
		}
	}
}
