package trip

import (
	"testing"
	"time"

	"conduit.io/conduit/proxy/exchange"
)

// Notes are rare on a link, and on all of them together.
func TestNotesAreASample(t *testing.T) {
	d := &Desk{}
	links := make([]Notes, 50)
	count := 0
	for at := range int64(100) { // a response of every link each 100 µs
		for i := range links {
			s := &exchange.Stream{Start: 1, FirstByte: 1 + at*int64(100*time.Microsecond)}
			links[i].Leave(&Trip{S: s, desk: d})
			if s.Note != "" {
				count++
			}
		}
	}
	if count != 10 {
		t.Errorf("%d notes in 10 ms", count)
	}
	links[0].due, d.noteDue = 0, 0
	tunnel := &exchange.Stream{FirstByte: 1}
	if links[0].Leave(&Trip{S: tunnel, desk: d, Tunnel: true}); tunnel.Note != "" {
		t.Error("a tunnel got a note")
	}
}

func TestParseNote(t *testing.T) {
	if there, app, ok := parseNote("20153/20101"); !ok || there != 20153_000 || app != 20101_000 {
		t.Error(there, app, ok)
	}
	for _, v := range []string{"", "/", "1", "1/", "/1", "-1/1", "1/x", "1/2/3", "99999999999999/1", "1e3/1", "1/1 "} {
		if there, app, ok := parseNote(v); ok {
			t.Errorf("%q: %d, %d", v, there, app)
		}
	}
}
