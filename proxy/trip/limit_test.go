package trip

import (
	"math/rand/v2"
	"testing"
	"time"

	"conduit.io/conduit/proxy/flow/flowtest"
)

// late is how long after its time an entry may be looked at.
const late = 1 << slotShift

// alarm is an entry that notes when it went off.
type alarm struct {
	entry
	w   *wheel
	at  int64
	end func() // in expired
}

func (a *alarm) expired(now int64) {
	a.at = now
	if a.end != nil {
		a.end()
	}
}

func (w *wheel) set(n *flowtest.Net, d time.Duration) *alarm {
	a := &alarm{w: w}
	a.owner, a.due = a, n.Now()+int64(d)
	w.add(&a.entry)
	return a
}

// Everything expires in its time and not before, whatever goes in and out meanwhile.
func TestWheel(t *testing.T) {
	n := flowtest.New()
	w := newWheel(n)
	var all []*alarm
	gone := map[*alarm]bool{}
	for range 3000 {
		n.Advance(time.Duration(rand.IntN(20)) * time.Millisecond)
		a := w.set(n, time.Duration(rand.Int64N(int64(15*time.Second))))
		all = append(all, a)
		if v := all[rand.IntN(len(all))]; rand.IntN(2) == 0 && v.at == 0 {
			w.remove(&v.entry)
			w.remove(&v.entry)
			gone[v] = true
		}
	}
	for range 200 {
		n.Advance(100 * time.Millisecond)
	}
	for i, a := range all {
		switch {
		case gone[a] && a.at != 0:
			t.Fatalf("%d went off after it was removed", i)
		case !gone[a] && (a.at < a.due || a.at > a.due+late+int64(100*time.Millisecond)):
			t.Fatalf("%d was due at %v, and went off at %v", i, time.Duration(a.due), time.Duration(a.at))
		}
	}
	if w.n != 0 || w.timer != nil {
		t.Errorf("%d are left, timer %v", w.n, w.timer)
	}
}

// One that expires may take its neighbours with it, and begin anew.
func TestWheelChangesWhileItTurns(t *testing.T) {
	n := flowtest.New()
	w := newWheel(n)
	a, b, c := w.set(n, time.Second), w.set(n, time.Second), w.set(n, time.Second+slots<<slotShift)
	first := int64(0)
	a.end = func() {
		w.remove(&b.entry)
		if first == 0 {
			first = a.at
			a.due = a.at + int64(time.Second)
			w.add(&a.entry)
		}
	}
	n.Advance(time.Second + late)
	n.Advance(time.Second + late)
	if first == 0 || a.at <= first || b.at != 0 || c.at != 0 {
		t.Errorf("first %d, again %d; removed %d, a round later %d", first, a.at, b.at, c.at)
	}
	n.Advance(time.Second + slots<<slotShift)
	if c.at == 0 || w.n != 0 {
		t.Errorf("a round later %d, left %d", c.at, w.n)
	}
}

func TestGRPCTimeout(t *testing.T) {
	for v, want := range map[string]time.Duration{
		"100m": 100 * time.Millisecond, "2S": 2 * time.Second, "3M": 3 * time.Minute, "99999999H": 1 << 61 / time.Hour * time.Hour,
		"7u": 7 * time.Microsecond, "8n": 8, "0S": 0,
	} {
		if got, ok := grpcTimeout(v); !ok || got != want {
			t.Errorf("%s: %v, %v", v, got, ok)
		}
	}
	for _, v := range []string{"", "S", "1", "1s", "-1S", "+1S", " 1S", "1.5S", "123456789S", "1S "} {
		if got, ok := grpcTimeout(v); ok {
			t.Errorf("%q: %v", v, got)
		}
	}
}

func BenchmarkWheel(b *testing.B) {
	n := flowtest.New()
	w := newWheel(n)
	a := alarm{w: w}
	b.ReportAllocs()
	for range b.N {
		a.due = n.Now() + int64(time.Second)
		w.add(&a.entry)
		w.remove(&a.entry)
	}
}
