package differential

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"conduit.io/conduit/tests/leak"
)

func TestMain(m *testing.M) {
	flag.Parse()
	if flag.Lookup("test.fuzz").Value.String() != "" { // the fuzzer keeps its own
		os.Exit(m.Run())
	}
	os.Exit(leak.Main(m))
}

// world is a server, reached directly and by every path.
type world struct {
	b      *backend
	direct map[string]string // by protocol
	paths  []path
}

func newWorld(t testing.TB) *world {
	b := newBackend(t)
	return &world{b: b, direct: map[string]string{"http1": b.h1, "http2": b.h2}, paths: paths(t, b.h1, b.h2)}
}

// compare plays a case directly and by every path, and returns where the outcomes differ.
func (w *world) compare(make func() []exchange) []string {
	var diffs []string
	for _, in := range []string{"http1", "http2"} {
		want, err := play(w.b, in, w.direct[in], make())
		if err != nil {
			return []string{fmt.Sprintf("%s directly: %v", in, err)}
		}
		for _, p := range w.paths {
			if p.in != in {
				continue
			}
			xs := make()
			got, err := play(w.b, in, p.addr, xs)
			if err != nil {
				diffs = append(diffs, fmt.Sprintf("%s: %v", p, err))
				continue
			}
			for i := range min(len(got), len(want)) {
				diffs = append(diffs, differences(p, &xs[i], want[i], got[i])...)
			}
			if len(got) < len(want) {
				diffs = append(diffs, fmt.Sprintf("%s: %d exchanges instead of %d", p, len(got), len(want)))
			}
		}
	}
	return diffs
}

// differences compares both directions of an exchange.
func differences(p path, x *exchange, want, got outcome) []string {
	var out []string
	check := func(what string, a, b *message) {
		if a.String() != b.String() || string(a.body) != string(b.body) {
			out = append(out, fmt.Sprintf("%s: %s %s", what, p, unlike(a.String(), b.String())))
		}
	}
	if x.req.noHost && got.seen != nil { // HTTP/1.0 may do without; the proxy says where it connects to
		got.seen.line = strings.Replace(got.seen.line, strconv.Quote(got.seen.get("host")), `""`, 1)
	}
	if !x.res.early && want.got.end == whole {
		check("the server received", normal(p, want.seen, true), normal(p, got.seen, true))
	}
	check("the client received", normal(p, want.got, false), normal(p, got.got, false))
	return out
}

// unlike shows the lines in which two messages differ.
func unlike(a, b string) string {
	var out strings.Builder
	la, lb := strings.Split(a, "\n"), strings.Split(b, "\n")
	line := func(l []string, i int) string {
		if i < len(l) {
			return l[i]
		}
		return ""
	}
	for i := range max(len(la), len(lb)) {
		if x, y := line(la, i), line(lb, i); x != y {
			fmt.Fprintf(&out, "\n  directly: %s\n  this way: %s", x, y)
		}
	}
	return out.String()
}

var (
	first = flag.Int("seed", 0, "the first case of the corpus to play")
	count = flag.Int("cases", 300, "how many cases to play")
)

// TestCorpus plays generated cases by every path.
func TestCorpus(t *testing.T) {
	cases := *count
	if testing.Short() {
		cases = min(cases, 60)
	}
	w := newWorld(t)
	var wg sync.WaitGroup
	turn := make(chan struct{}, 8)
	var mu sync.Mutex
	failed := 0
	for seed := *first; seed < *first+cases; seed++ {
		turn <- struct{}{}
		wg.Go(func() {
			defer func() { <-turn }()
			diffs := w.compare(func() []exchange { return newCase(newSeeded(uint64(seed))) })
			if len(diffs) == 0 {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if failed++; failed <= 5 {
				slices.Sort(diffs)
				t.Errorf("seed %d:\n%s", seed, strings.Join(diffs, "\n"))
			}
		})
	}
	wg.Wait()
	if failed > 0 {
		t.Errorf("%d of %d cases differ", failed, cases)
	}
	if s := w.b.uninvited(); len(s) > 0 {
		t.Errorf("requests reached the server that nobody had sent: %v", s)
	}
}
