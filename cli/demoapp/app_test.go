package demoapp

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"conduit.io/conduit/tests/tcptest"
)

// process is a role running in this test, spoken to as the demo does.
type process struct {
	in     *io.PipeWriter
	events chan Event
	done   chan error
}

func run(t *testing.T, cfg Config) *process {
	t.Helper()
	inR, inW := io.Pipe()
	outR, outW := io.Pipe()
	p := &process{in: inW, events: make(chan Event, 16), done: make(chan error, 1)}
	cfg.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	go func() {
		err := Run(t.Context(), cfg, inR, outW)
		outW.Close()
		p.done <- err
	}()
	go func() {
		defer close(p.events)
		for sc := bufio.NewScanner(outR); sc.Scan(); {
			var e Event
			if err := json.Unmarshal(sc.Bytes(), &e); err != nil {
				t.Errorf("bad line %q: %v", sc.Text(), err)
			}
			p.events <- e
		}
	}()
	t.Cleanup(func() {
		p.in.Close()
		<-p.done
	})
	return p
}

func (p *process) say(t *testing.T, command string) {
	t.Helper()
	if _, err := fmt.Fprintln(p.in, command); err != nil {
		t.Fatal(err)
	}
}

func (p *process) want(t *testing.T, event string) Event {
	t.Helper()
	select {
	case e := <-p.events:
		if e.Event != event {
			t.Fatalf("want event %s, got %+v", event, e)
		}
		return e
	case <-time.After(20 * time.Second):
		t.Fatalf("no event %s in 20 s", event)
	}
	return Event{}
}

func (p *process) report(t *testing.T) map[string]Call {
	t.Helper()
	p.say(t, "report")
	calls := map[string]Call{}
	for _, c := range p.want(t, "report").Calls {
		calls[c.Destination+"/"+c.Protocol] = c
	}
	return calls
}

// freePort finds a loopback address that nothing listens on now.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// serve starts a server role on a free port.
func serve(t *testing.T, role, node string, targets map[string]string) (addr string, p *process) {
	t.Helper()
	addr = freePort(t)
	p = run(t, Config{Role: role, Name: role + "-0", Node: node, Listen: addr, Targets: targets})
	p.want(t, "ready")
	return addr, p
}

// TestApplication runs the whole application over loopback: the API and the load generator on node a, the rest on b.
func TestApplication(t *testing.T) {
	votes, _ := serve(t, Votes, "b", nil)
	catalog, _ := serve(t, Catalog, "b", nil)
	cache, _ := serve(t, Cache, "b", nil)
	api, apiProcess := serve(t, API, "a", map[string]string{Votes: votes, Catalog: catalog})
	web, webProcess := serve(t, Web, "b", map[string]string{API: api, Cache: cache})
	load := run(t, Config{Role: Loadgen, Node: "a", Targets: map[string]string{Web: web}, Rate: 200})
	load.want(t, "ready")
	load.say(t, "warm")
	load.want(t, "warm")
	if got := load.report(t)["web/http1"]; got.OK != warmCalls || got.Failed != 0 {
		t.Fatalf("warming up: %+v", got)
	}
	load.say(t, "go")
	deadline := time.Now().Add(20 * time.Second)
	for load.report(t)["web/http1"].OK < warmCalls+50 {
		if time.Now().After(deadline) {
			t.Fatal("the load does not run")
		}
	}
	load.say(t, "stop")
	load.want(t, "stopped")
	total := load.report(t)["web/http1"].OK
	for _, c := range []struct {
		p       *process
		key     string
		crossed bool
	}{
		{load, "web/http1", true}, {webProcess, "api/http1", true}, {webProcess, "cache/tcp", false},
		{apiProcess, "catalog/http2", true}, {apiProcess, "votes/grpc", true},
	} {
		got := c.p.report(t)[c.key]
		crossed := int64(0)
		if c.crossed {
			crossed = total
		}
		if got.OK != total || got.Failed != 0 || got.Crossed != crossed {
			t.Errorf("%s: want %d calls, %d crossed, got %+v", c.key, total, crossed, got)
		}
	}
}

// TestFailureIsCounted: a dead cache fails the front end's calls, and nothing else.
func TestFailureIsCounted(t *testing.T) {
	api, _ := serve(t, Catalog, "a", nil) // speaks HTTP/2 only: as an API it breaks every HTTP/1.1 call
	web, webProcess := serve(t, Web, "a", map[string]string{API: api, Cache: freePort(t)})
	a := &app{cfg: Config{Node: "a", Targets: map[string]string{Web: web}}, tally: newTally()}
	c, err := a.newCaller(Web)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	if err := c.http1(t.Context(), "/vote", 1); err == nil || !strings.Contains(err.Error(), "502") {
		t.Fatalf("want a 502, got %v", err)
	}
	if got := a.tally.calls(); len(got) != 1 || got[0].Failed != 1 || got[0].OK != 0 || got[0].LastError == "" {
		t.Errorf("client's count: %+v", got)
	}
	if got := webProcess.report(t)["api/http1"]; got.Failed != 1 || got.OK != 0 {
		t.Errorf("front end's count: %+v", got)
	}
	cache := &caller{role: Cache, addr: freePort(t), node: "a", tally: a.tally}
	if err := cache.cache(t.Context(), 1); err == nil {
		t.Error("a cache that is not there answered")
	}
}

// TestWrongAnswer: an answer meant for another request is a failure.
func TestWrongAnswer(t *testing.T) {
	addr := tcptest.Serve(t, func(c net.Conn) {
		fmt.Fprint(c, "+CACHE b\n")
		for sc := bufio.NewScanner(c); sc.Scan(); {
			fmt.Fprint(c, "+OK\n")
		}
	})
	c := &caller{role: Cache, addr: addr, node: "a", tally: newTally()}
	if err := c.cache(t.Context(), 7); err == nil || !strings.Contains(err.Error(), `want "value-7"`) {
		t.Errorf("want a complaint about the value, got %v", err)
	}
}

func TestStartErrors(t *testing.T) {
	for _, tc := range []struct {
		name string
		cfg  Config
		want string
	}{
		{"unknown role", Config{Role: "database", Listen: "127.0.0.1:0"}, `no role "database"`},
		{"no target", Config{Role: Loadgen, Rate: 1}, "needs --target web="},
		{"no rate", Config{Role: Loadgen}, "want more than 0"},
		{"bad address", Config{Role: Votes, Listen: "127.0.0.1:notaport"}, "listen tcp"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var out strings.Builder
			err := Run(context.Background(), tc.cfg, strings.NewReader(""), &out)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("want error with %q, got %v", tc.want, err)
			}
			if !strings.Contains(out.String(), `"event":"failed"`) {
				t.Errorf("output: %s", out.String())
			}
		})
	}
}
