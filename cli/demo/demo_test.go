package demo

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"conduit.io/conduit/cli/demoapp"
	"conduit.io/conduit/tests/testnet"
)

// TestMain is also the application: the demo starts its processes from this binary. And it is a demo without mesh, to
// be killed.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "demo-to-kill" {
		o := Options{Rate: 10, Out: os.Stdout, Err: os.Stderr, Program: []string{os.Args[0], "demo-app"}, withoutMesh: true,
			Getenv: func(string) string { return os.Args[2] }}
		fmt.Fprintln(os.Stderr, Run(context.Background(), o))
		os.Exit(1)
	}
	if len(os.Args) == 3 && os.Args[1] == "demo-app" {
		if err := demoapp.Main(context.Background(), os.Args[2], os.Stdin, os.Stdout, os.Stderr); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(testnet.Main(m))
}

// testOptions are those of a demo whose parts are built, or skip the test.
func testOptions(t *testing.T, mesh bool) (Options, *bytes.Buffer, *bytes.Buffer) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: needs root (network namespaces and BPF); run `sudo make test`")
	}
	b := testnet.Build(t, mesh)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var out, errOut bytes.Buffer
	return Options{For: 3 * time.Second, JSON: true, Rate: 20, Out: &out, Err: &errOut, BinDir: b.Conduit,
		Program: []string{exe, "demo-app"}, withoutMesh: !mesh,
		Getenv: func(name string) string {
			if name == "CNI_PATH" {
				return b.CNI
			}
			return ""
		}}, &out, &errOut
}

// leftovers are files that only demos of a process can have made.
func leftovers(t *testing.T, pid int) []string {
	t.Helper()
	var left []string
	for _, dir := range []string{"/run/netns", "/run/conduit-lab", "/sys/fs/bpf"} {
		found, err := filepath.Glob(filepath.Join(dir, fmt.Sprintf("%s%d[^0-9]*", namePrefix, pid)))
		if err == nil && dir == "/run/conduit-lab" {
			found, err = filepath.Glob(filepath.Join(dir, fmt.Sprintf("%s%d", namePrefix, pid)))
		}
		if err != nil {
			t.Fatal(err)
		}
		left = append(left, found...)
	}
	return left
}

// TestWithoutMesh proves application, pods and clean-up: every call is answered, and none is said to be secured.
func TestWithoutMesh(t *testing.T) {
	o, out, errOut := testOptions(t, false)
	if err := Run(t.Context(), o); err != nil {
		t.Fatalf("%v\n%s", err, errOut)
	}
	var r Result
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	if r.Requests < 100 || r.SuccessRate != 1 || r.MTLSPct != 0 || r.Bypassed != 0 {
		t.Errorf("result: %s", out)
	}
	p := r.Protocols
	if p.HTTP1 != 2*p.TCP || p.HTTP2 != p.TCP || p.GRPC != p.TCP || p.HTTP1+p.HTTP2+p.GRPC+p.TCP != r.Requests {
		t.Errorf("one user's request is two calls of http1 and one of each other protocol: %s", out)
	}
	if !strings.Contains(errOut.String(), "cleaned up") {
		t.Errorf("it does not say that it cleaned up:\n%s", errOut)
	}
	if left := leftovers(t, os.Getpid()); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestInterrupted: the end of the context while the load runs is a good end, with figures; before, it is an error.
// Either way nothing stays.
func TestInterrupted(t *testing.T) {
	for _, tc := range []struct {
		name, at string
		wantErr  string
	}{
		{"during the load", "every call is answered", ""},
		{"while pods are wired", "two nodes", "interrupted"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o, out, errOut := testOptions(t, false)
			o.For = 0
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			o.Err = &trigger{to: errOut, at: tc.at, do: cancel}
			err := Run(ctx, o)
			if fmt.Sprint(err) != tc.wantErr && (err != nil || tc.wantErr != "") {
				t.Errorf("want error %q, got %v\n%s", tc.wantErr, err, errOut)
			}
			if tc.wantErr == "" && !strings.Contains(out.String(), `"requests"`) {
				t.Errorf("no result: %q", out)
			}
			if left := leftovers(t, os.Getpid()); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

// trigger does something when a text is written.
type trigger struct {
	to *bytes.Buffer
	at string
	do func()
}

func (w *trigger) Write(p []byte) (int, error) {
	if strings.Contains(string(p), w.at) {
		w.do()
	}
	return w.to.Write(p)
}

// TestPanic: a panic still cleans up.
func TestPanic(t *testing.T) {
	o, _, errOut := testOptions(t, false)
	o.Err = &trigger{to: errOut, at: "every call is answered", do: func() { panic("on purpose") }}
	defer func() {
		if recover() == nil {
			t.Error("the panic was swallowed")
		}
		if left := leftovers(t, os.Getpid()); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	}()
	_ = Run(t.Context(), o)
}

// TestFailure: an application that cannot start fails the demo with its own words, and nothing stays.
func TestFailure(t *testing.T) {
	o, _, errOut := testOptions(t, false)
	o.Program = []string{"/bin/sh", "-c", "echo the disk is on fire >&2; exit 3"}
	err := Run(t.Context(), o)
	if err == nil || !strings.Contains(err.Error(), "the disk is on fire") {
		t.Errorf("want the application's words, got %v\n%s", err, errOut)
	}
	if left := leftovers(t, os.Getpid()); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestKilled: what a killed demo leaves behind, the next one removes.
func TestKilled(t *testing.T) {
	testOptions(t, false)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "demo-to-kill", testnet.Build(t, false).CNI)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	up := false
	for sc := bufio.NewScanner(out); !up && sc.Scan(); {
		up = strings.Contains(sc.Text(), "every call is answered")
	}
	cmd.Process.Kill()
	cmd.Wait()
	if !up {
		t.Fatal("it did not come up")
	}
	if left := leftovers(t, cmd.Process.Pid); len(left) < len(placements) {
		t.Fatalf("it should have left its namespaces: %v", left)
	}
	names, err := sweep()
	if want := fmt.Sprint(namePrefix, cmd.Process.Pid); err != nil || !slices.Contains(names, want) {
		t.Errorf("swept %v, want %s (%v)", names, want, err)
	}
	if left := leftovers(t, cmd.Process.Pid); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestDemo is the whole thing: agents, proxies, BPF. Every call succeeds, every call that crosses nodes is secured, none
// escapes, and nothing stays.
func TestDemo(t *testing.T) {
	o, out, errOut := testOptions(t, true)
	o.For = 5 * time.Second
	if err := Run(t.Context(), o); err != nil {
		t.Fatalf("%v\n%s", err, errOut)
	}
	t.Log(errOut)
	var r Result
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	if r.SuccessRate != 1 || r.MTLSPct != 100 || r.Bypassed != 0 {
		t.Errorf("result: %s", out)
	}
	p := r.Protocols
	if p.TCP < 30 || p.HTTP1 != 2*p.TCP || p.HTTP2 != p.TCP || p.GRPC != p.TCP || p.HTTP1+p.HTTP2+p.GRPC+p.TCP != r.Requests {
		t.Errorf("one user's request is two calls of http1 and one of each other protocol: %s", out)
	}
	if r.P50 <= 0 || r.P99 < r.P50 {
		t.Errorf("latencies: %s", out)
	}
	if left := leftovers(t, os.Getpid()); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
