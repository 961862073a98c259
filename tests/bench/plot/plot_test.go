package plot

import (
	"bytes"
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"math"
	"os"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden file")

func figure() *Figure {
	return &Figure{
		Title: "Title & more", Subtitle: "below <it>", Columns: 2,
		Panels: []Panel{
			{Title: "one", Unit: "µs", Rows: []Row{
				{Label: "L4", Style: Control, Marks: []Mark{{3, 3, 3}}, Text: "3.0"},
				{Label: "Conduit", Style: Ours, Marks: []Mark{{2, 1.8, 2.3}}, Text: "2.0"},
				{Label: "other", Gap: true, Marks: []Mark{{200, 180, 230}}, Text: "200"},
				{Label: "broken", Text: "failed"},
			}},
			{Title: "two", Unit: "µs", Rows: []Row{{Label: "a", Marks: []Mark{{Value: 100}, {Value: 300}, {Value: 9000}}, Text: "9000"}}},
			{Title: "nothing", Rows: []Row{{Label: "a"}}},
		},
	}
}

func TestSVGIsWellFormed(t *testing.T) {
	d := xml.NewDecoder(bytes.NewReader(SVG(figure())))
	d.Strict = true
	elements := map[string]int{}
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if e, ok := token.(xml.StartElement); ok {
			elements[e.Name.Local]++
			for _, a := range e.Attr {
				if strings.Contains(a.Value, "NaN") || strings.Contains(a.Value, "Inf") {
					t.Errorf("<%s %s=%q>", e.Name.Local, a.Name.Local, a.Value)
				}
			}
		}
	}
	if elements["svg"] != 1 || elements["circle"] != 6 {
		t.Errorf("elements %v", elements)
	}
}

func TestGolden(t *testing.T) {
	const path = "testdata/figure.svg"
	got := SVG(figure())
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("the figure differs from %s (look at it, then go test -update):\n%s", path, got)
	}
}

func TestScale(t *testing.T) {
	for _, tc := range []struct {
		low, high float64
		want      scale
		ticks     []float64
	}{
		{2.2, 38, scale{2, 50}, []float64{2, 5, 10, 20, 50}},
		{10, 100, scale{10, 100}, []float64{10, 20, 50, 100}},
		{7, 7, scale{5, 10}, []float64{5, 10}},
		{5, 5, scale{5, 50}, []float64{5, 10, 20, 50}},
		{0.3, 950, scale{0.2, 1000}, []float64{1, 10, 100, 1000}},
	} {
		s := scaleOf(&Panel{Rows: []Row{{Marks: []Mark{{Value: tc.low}}}, {Marks: []Mark{{Value: tc.high}}}}})
		if math.Abs(s.low-tc.want.low) > 1e-9 || math.Abs(s.high-tc.want.high) > 1e-9 {
			t.Errorf("%v to %v: %v, want %v", tc.low, tc.high, s, tc.want)
		}
		equal := slices.EqualFunc(s.ticks(), tc.ticks, func(a, b float64) bool { return math.Abs(a-b) < 1e-9*b })
		if !equal {
			t.Errorf("%v to %v: ticks %v, want %v", tc.low, tc.high, s.ticks(), tc.ticks)
		}
		if s.at(s.low) != 0 || math.Abs(s.at(s.high)-1) > 1e-9 || math.Abs(s.at(math.Sqrt(s.low*s.high))-0.5) > 1e-9 {
			t.Errorf("%v is not logarithmic", s)
		}
	}
}
