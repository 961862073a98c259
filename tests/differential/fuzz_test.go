package differential

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// tape is dice that fall as a fuzzer says, and always the same way at the end of what it said.
type tape struct{ b []byte }

func (t *tape) n(n int) int {
	if len(t.b) == 0 {
		return 0
	}
	v := int(t.b[0])
	t.b = t.b[1:]
	if n > 256 && len(t.b) > 0 {
		v = v<<8 | int(t.b[0])
		t.b = t.b[1:]
	}
	return v % n
}

// FuzzDifferential plays the cases that a fuzzer makes up, as TestCorpus plays those of a generator.
func FuzzDifferential(f *testing.F) {
	for seed := range uint64(5) {
		r := rand.New(rand.NewPCG(seed, 2))
		data := make([]byte, 300)
		for i := range data {
			data[i] = byte(r.Uint32())
		}
		f.Add(data)
	}
	f.Add([]byte{})
	w := newWorld(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		diffs := w.compare(func() []exchange { return newCase(&tape{slices.Clone(data)}) })
		if s := w.b.uninvited(); len(s) > 0 {
			diffs = append(diffs, "requests reached the server that nobody had sent: "+strings.Join(s, "\n"))
		}
		if len(diffs) > 0 {
			t.Fatal(strings.Join(diffs, "\n"))
		}
	})
}
