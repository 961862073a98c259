package main

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"conduit.io/conduit/tests/bench/report"
)

// The page and the plots in docs/ are what the results beside them come to: nobody has improved them by hand.
func TestDocsAreMadeFromTheResults(t *testing.T) {
	const docs = "../../docs"
	r, err := report.Read(filepath.Join(docs, "bench", "results.json"))
	if errors.Is(err, fs.ErrNotExist) {
		t.Skip("no results are published; a full run of make bench does it")
	} else if err != nil {
		t.Fatal(err)
	}
	if !r.Settings.Full {
		t.Error("the results are of a run that left something out")
	}
	fresh := t.TempDir()
	if err := r.Publish(fresh); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"benchmarks.md", "bench/cpu.svg", "bench/latency.svg", "bench/memory.svg", "bench/results.json"} {
		want, err := os.ReadFile(filepath.Join(fresh, name))
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(filepath.Join(docs, name))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("docs/%s is not what the results give: bin/bench/bench --from docs/bench/results.json --docs docs writes it", name)
		}
	}
}

// Only what is whole goes into docs/ by itself; what somebody asks for goes there anyway.
func TestWhatIsPublished(t *testing.T) {
	for _, tc := range []struct {
		rounds    int
		full      bool
		published bool
	}{{fewest, true, true}, {fewest - 1, true, false}, {usual, false, false}} {
		r := pairs(1)
		r.Schema, r.Settings.Rounds, r.Settings.Full = report.Schema, tc.rounds, tc.full
		o := &options{docs: t.TempDir(), out: t.TempDir()}
		page := filepath.Join(o.docs, "benchmarks.md")
		var stdout, stderr bytes.Buffer
		if err := finish(o, r, &stdout, &stderr); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(page); (err == nil) != tc.published || strings.Contains(stderr.String(), "not published") == tc.published {
			t.Errorf("%+v: %v, %s", tc, err, &stderr)
		}
		if code := run(t.Context(), []string{"--from", only(t, o.out), "--docs", o.docs}, &stdout, &stderr); code != exitOK {
			t.Errorf("%+v: exit status %d: %s", tc, code, &stderr)
		}
		if _, err := os.Stat(page); err != nil {
			t.Errorf("%+v: asked for, and not published: %v", tc, err)
		}
	}
}

// What is published can be read again, and the page shows every plot.
func TestPublish(t *testing.T) {
	r := pairs(1)
	r.Schema = report.Schema
	r.Peers = []report.Peer{{Name: "conduit", Title: "Conduit", Hops: 1}, {Name: "conduit-mesh", Title: "Conduit, 2 hops mTLS", Hops: 2}}
	docs := t.TempDir()
	r.Derive()
	if err := r.Publish(docs); err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(filepath.Join(docs, "benchmarks.md"))
	if err != nil {
		t.Fatal(err)
	}
	plots, err := filepath.Glob(filepath.Join(docs, "bench", "*.svg"))
	if err != nil || len(plots) == 0 {
		t.Fatalf("plots %v, %v", plots, err)
	}
	for _, p := range plots {
		if want := []byte("](bench/" + filepath.Base(p) + ")"); !bytes.Contains(page, want) {
			t.Errorf("%s is missing in the page", want)
		}
	}
	again, err := report.Read(filepath.Join(docs, "bench", "results.json"))
	if err != nil {
		t.Fatal(err)
	}
	if text, err := again.Page(); err != nil || !bytes.Equal(text, page) {
		t.Errorf("the results give another page: %v", err)
	}
}
