package demo

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"conduit.io/conduit/cli/lab"
	"conduit.io/conduit/cli/metrics"
	"conduit.io/conduit/cli/output"

	"golang.org/x/term"
)

// screen is what the user sees. Text goes to out: the options' Out, or its Err when Out is for JSON.
type screen struct {
	out    io.Writer
	style  output.Style
	wide   bool
	redraw bool
	drawn  int // rows of the live picture that are on the terminal now
	cancel context.CancelFunc
}

func newScreen(o *Options, cancel context.CancelFunc) *screen {
	out := o.Out
	if o.JSON {
		out = o.Err
	}
	return &screen{out: out, style: output.StyleFor(out, o.Getenv), wide: o.Wide, redraw: o.Live && !o.JSON, cancel: cancel}
}

// print writes; when nobody reads any more, the demo ends.
func (s *screen) print(text string) {
	if _, err := io.WriteString(s.out, text); err != nil {
		s.cancel()
	}
}

// step reports a finished step and how long it took.
func (s *screen) step(began time.Time, format string, args ...any) {
	took := fmt.Sprintf("(%.1fs)", time.Since(began).Seconds())
	s.print(s.style.Good("√") + " " + fmt.Sprintf(format, args...) + " " + s.style.Dim(took) + "\n")
}

func (s *screen) note(format string, args ...any) {
	s.print(s.style.Warn("‼") + " " + fmt.Sprintf(format, args...) + "\n")
}

// next says what to try while the load runs.
func (s *screen) next(c *cluster) {
	if !c.meshed || !s.redraw {
		return
	}
	exe, err := os.Executable()
	if err != nil {
		exe = "conduit"
	}
	client, node := c.loadgen().pod, c.nodes[0]
	enter := "nsenter --net=" + client.Path()
	var b strings.Builder
	try := func(why, command string) { fmt.Fprintf(&b, "  %s\n    %s\n", s.style.Dim(why), command) }
	b.WriteString("\n" + s.style.Bold("Try, in another terminal as root:") + "\n")
	try("call the front end as the load generator's pod", enter+" curl -si 'http://"+address("web")+"/?n=1'")
	try("be refused: the node itself has no identity, and the pods are STRICT",
		"nsenter --net="+node.Path()+" curl -sS http://"+c.web()+"/")
	try("this node's part of the figures, from its agent", "nsenter --net="+node.Path()+" "+exe+" stat -o wide")
	if pid, err := node.ProxyPID(); err == nil && pid != 0 {
		try("kill "+node.Name()+"'s proxy: calls fail at once, never in the clear; the agent starts another", "kill -9 "+strconv.Itoa(pid))
	}
	file := filepath.Join(node.ManifestDir(), "namespace-"+namespace+".yaml")
	try("let plaintext into "+node.Name()+"'s pods (agents watch their manifests), and try to be refused again",
		"sed -i s/STRICT/PERMISSIVE/ "+file)
	s.print(b.String())
}

// web is a pod of the front end on the first node.
func (c *cluster) web() string {
	for i, p := range placements {
		if p.role == "web" && p.node == 0 {
			return fmt.Sprintf("%s:%d", c.pods[i].IP(lab.IPv4), appPort)
		}
	}
	return ""
}

// live shows the figures of the last periods, on a terminal.
func (s *screen) live(from, to *reading, sum summary, trouble error) {
	if !s.redraw {
		return
	}
	var b bytes.Buffer
	b.WriteString("\n")
	s.table(&b, from, to)
	fmt.Fprintf(&b, "\n%s\n", s.totals(sum))
	if trouble != nil {
		fmt.Fprintf(&b, "%s %v\n", s.style.Warn("‼"), trouble)
	}
	fmt.Fprintf(&b, "%s\n", s.style.Dim("Ctrl-C ends the demo and removes everything."))
	s.erase()
	s.print(b.String())
	width, _ := s.size()
	s.drawn = rows(b.String(), width)
}

// final shows the figures of the whole run.
func (s *screen) final(first, last *reading, sum summary) {
	s.erase()
	var b bytes.Buffer
	b.WriteString("\n")
	s.table(&b, first, last)
	fmt.Fprintf(&b, "\n%s\n", s.totals(sum))
	for _, edge := range slices.Sorted(maps.Keys(sum.errors)) {
		fmt.Fprintf(&b, "%s %s: %s\n", s.style.Bad("×"), edge, sum.errors[edge])
	}
	b.WriteString("\n")
	s.print(b.String())
}

func (s *screen) table(w io.Writer, from, to *reading) {
	edges := metrics.Edges(to.grown(from), "outbound")
	t := metrics.Table(edges, to.at.Sub(from.at), s.wide, s.style)
	if width, _ := s.size(); s.redraw && !s.wide {
		t.Fit(width, "P95", "P50")
	}
	_ = t.Write(w) // w is memory
}

// totals is the application's own view, and what the mesh says of its security.
func (s *screen) totals(sum summary) string {
	p := sum.Protocols
	text := fmt.Sprintf("the application's own count: %d calls, %s ok, %.1f/s (http1 %d, http2 %d, grpc %d, tcp %d)\n",
		sum.Requests, metrics.Percent(sum.SuccessRate), sum.RPS, p.HTTP1, p.HTTP2, p.GRPC, p.TCP)
	return text + fmt.Sprintf("%d calls crossed nodes, %s of them by mTLS; %d connections bypassed the mesh",
		sum.crossed, metrics.Percent(sum.MTLSPct/100), sum.Bypassed)
}

// erase removes the live picture from the terminal: by going up, or, when it did not fit, by clearing everything.
func (s *screen) erase() {
	_, height := s.size()
	switch {
	case s.drawn == 0:
		return
	case s.drawn < height:
		s.print(fmt.Sprintf("\x1b[%dA\r\x1b[J", s.drawn))
	default:
		s.print("\x1b[H\x1b[2J")
	}
	s.drawn = 0
}

// size is the terminal's, or what terminals used to have.
func (s *screen) size() (width, height int) {
	if f, ok := s.out.(*os.File); ok {
		if w, h, err := term.GetSize(int(f.Fd())); err == nil && w > 0 && h > 0 {
			return w, h
		}
	}
	return 80, 24
}

var escape = regexp.MustCompile("\x1b\\[[0-9;]*m")

// rows is how many rows of a terminal text takes, long lines wrapped.
func rows(text string, width int) int {
	n := 0
	for line := range strings.Lines(text) {
		visible := utf8.RuneCountInString(escape.ReplaceAllString(strings.TrimSuffix(line, "\n"), ""))
		n += max(1, (visible+width-1)/width)
	}
	return n
}
