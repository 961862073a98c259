package cniserver

import (
	"context"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"conduit.io/conduit/api/frame"
	"conduit.io/conduit/api/podapi"
)

// handler answers by container ID.
type handler struct {
	entered chan struct{}
	release chan struct{}
}

func (h *handler) Add(ctx context.Context, r *podapi.Request) (bool, *podapi.Error) {
	switch r.ContainerID {
	case "panic":
		panic("on purpose")
	case "slow":
		close(h.entered)
		<-h.release
		if ctx.Err() != nil {
			return false, &podapi.Error{Code: podapi.CodeInternal, Message: "cut off"}
		}
	case "unknown":
		return false, &podapi.Error{Code: podapi.CodeUnknownPod, Message: "who?", Hint: "say it"}
	}
	return true, nil
}
func (h *handler) Del(context.Context, *podapi.Request) *podapi.Error { return nil }
func (h *handler) Check(context.Context, *podapi.Request) (bool, *podapi.Error) {
	return false, &podapi.Error{Code: podapi.CodeMismatch, Message: "rule gone"}
}
func (h *handler) Status(context.Context) *podapi.Error {
	return &podapi.Error{Code: podapi.CodeNotReady, Message: "not yet"}
}
func (h *handler) GC(_ context.Context, r *podapi.Request) *podapi.Error {
	if len(r.Valid) != 1 || r.Valid[0].IfName != "eth0" {
		return &podapi.Error{Code: podapi.CodeInternal, Message: "valid attachments were lost"}
	}
	return nil
}

func serve(t *testing.T) (path string, h *handler, stop context.CancelFunc, done chan error) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "cni.sock")
	h = &handler{entered: make(chan struct{}), release: make(chan struct{})}
	s, err := Listen(path, h, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done = make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	return path, h, stop, done
}

func ask(t *testing.T, path string, r podapi.Request) podapi.Response {
	t.Helper()
	c, err := frame.Dial(path, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if err := c.Send(&r); err != nil {
		t.Fatal(err)
	}
	var resp podapi.Response
	if _, err := c.Receive(&resp); err != nil {
		t.Fatal(err)
	}
	return resp
}

func TestOperations(t *testing.T) {
	path, _, _, _ := serve(t)
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v; want mode 0600", st.Mode(), err)
	}
	tests := []struct {
		name  string
		r     podapi.Request
		wired bool
		code  podapi.Code
		says  string
	}{
		{"add", podapi.Request{Op: podapi.Add, ContainerID: "c"}, true, "", ""},
		{"add refused", podapi.Request{Op: podapi.Add, ContainerID: "unknown"}, false, podapi.CodeUnknownPod, "who? (say it)"},
		{"panic", podapi.Request{Op: podapi.Add, ContainerID: "panic"}, false, podapi.CodeInternal, "on purpose"},
		{"del", podapi.Request{Op: podapi.Del}, false, "", ""},
		{"check", podapi.Request{Op: podapi.Check}, false, podapi.CodeMismatch, "rule gone"},
		{"status", podapi.Request{Op: podapi.Status}, false, podapi.CodeNotReady, "not yet"},
		{"gc", podapi.Request{Op: podapi.GC, Valid: []podapi.Attachment{{ContainerID: "c", IfName: "eth0"}}}, false, "", ""},
		{"unknown", podapi.Request{Op: "FLY"}, false, podapi.CodeBadRequest, `"FLY"`},
		{"none", podapi.Request{}, false, podapi.CodeBadRequest, `""`},
		{"after the panic", podapi.Request{Op: podapi.Add, ContainerID: "c"}, true, "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.r.Version = podapi.Version
			got := ask(t, path, tt.r)
			if got.Wired != tt.wired {
				t.Errorf("wired %v, want %v", got.Wired, tt.wired)
			}
			if (got.Error == nil) != (tt.code == "") || got.Error != nil && (got.Error.Code != tt.code || !strings.Contains(got.Error.Error(), tt.says)) {
				t.Errorf("error %v, want code %q saying %q", got.Error, tt.code, tt.says)
			}
		})
	}
	got := ask(t, path, podapi.Request{Version: podapi.Version + 1, Op: podapi.Del})
	if got.Error == nil || got.Error.Code != podapi.CodeBadRequest || got.Error.Hint == "" {
		t.Errorf("wrong version: %v", got.Error)
	}
}

func TestRubbishIsAnswered(t *testing.T) {
	path, _, _, _ := serve(t)
	for name, raw := range map[string]string{
		"not JSON":   "\x00\x00\x00\x03abc",
		"too large":  "\xff\xff\xff\xff",
		"wrong type": "\x00\x00\x00\x02[]",
	} {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, raw); err != nil {
			t.Fatal(err)
		}
		var resp podapi.Response
		f := frame.New(c.(*net.UnixConn))
		f.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := f.Receive(&resp); err != nil || resp.Error == nil || resp.Error.Code != podapi.CodeBadRequest {
			t.Errorf("%s: %+v, %v", name, resp.Error, err)
		}
		f.Close()
	}
	if got := ask(t, path, podapi.Request{Version: podapi.Version, Op: podapi.Del}); got.Error != nil {
		t.Errorf("a good request after rubbish: %v", got.Error)
	}
}

// The end of the agent lets a request in hand finish, and removes the socket.
func TestShutdownFinishesWhatWasBegun(t *testing.T) {
	path, h, stop, done := serve(t)
	answer := make(chan podapi.Response, 1)
	go func() {
		answer <- ask(t, path, podapi.Request{Version: podapi.Version, Op: podapi.Add, ContainerID: "slow"})
	}()
	<-h.entered
	stop()
	select {
	case <-done:
		t.Fatal("Serve returned while a request was in hand")
	case <-time.After(50 * time.Millisecond):
	}
	close(h.release)
	if got := <-answer; got.Error != nil || !got.Wired {
		t.Errorf("request in hand: %+v", got)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Error("the socket is still there")
	}
}

func TestListenReplacesAStaleSocket(t *testing.T) {
	path, _, stop, done := serve(t)
	stop()
	<-done
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close() // the file stays, as after kill -9
	s, err := Listen(path, &handler{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	s.l.Close()
}
