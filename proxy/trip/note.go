package trip

import (
	"strconv"
	"strings"
	"time"

	"conduit.io/conduit/proxy/exchange"
)

// A response with a note cannot be recognized as the repetition of an earlier one, and so costs both proxies some
// microseconds more than others. So a link has one in noteEvery at most, and all links of a shard one in anyNoteEvery.
const (
	noteEvery    = 10 * time.Millisecond
	anyNoteEvery = time.Millisecond
)

// Notes says when the next note on a connection is due.
type Notes struct{ due int64 }

// Leave puts a note for the proxy that asked into the response whose head has just come: how many microseconds passed
// here since the request was complete, and how many of them in the application. It is for links only, and for a
// sample of their responses.
func (n *Notes) Leave(t *Trip) {
	s := t.S
	if s.FirstByte < n.due || s.FirstByte < t.desk.noteDue || t.Tunnel {
		return
	}
	n.due, t.desk.noteDue = s.FirstByte+int64(noteEvery), s.FirstByte+int64(anyNoteEvery)
	complete := s.Start // the request, as the other proxy sees it
	if s.ReqEnd > complete && s.ReqEnd <= s.FirstByte {
		complete = s.ReqEnd
	}
	s.Note = micros(s.FirstByte-complete) + "/" + micros(t.span.Answer(s))
}

func micros(nanos int64) string { return strconv.FormatInt(max(nanos, 0)/1000, 10) }

// readNote counts what the other proxy says, if it says something. A note is the last field of a head.
func (t *Trip) readNote() {
	f := t.S.Res.Fields
	if t.requests == nil || len(f) == 0 || f[len(f)-1].Name != exchange.TimeField {
		return
	}
	there, app, ok := parseNote(f[len(f)-1].Value)
	if ok {
		t.requests.Linked(t.span.Answer(t.S), there, app)
	}
}

// parseNote reads a note's numbers, as nanoseconds.
func parseNote(v string) (there, app int64, ok bool) {
	a, b, _ := strings.Cut(v, "/")
	x, err := strconv.ParseUint(a, 10, 40) // 12 days: what is more is nonsense
	y, err2 := strconv.ParseUint(b, 10, 40)
	return int64(x) * 1000, int64(y) * 1000, err == nil && err2 == nil
}
