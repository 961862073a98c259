package frame_test

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"conduit.io/conduit/api/frame"
)

type message struct {
	Text string `json:"text"`
}

func pair(t *testing.T) (*frame.Conn, *net.UnixConn) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	raw, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	u, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	c := frame.New(u)
	t.Cleanup(func() { c.Close(); raw.Close() })
	return c, raw
}

func TestSendCarriesMessagesAndFiles(t *testing.T) {
	a, raw := pair(t)
	b := frame.New(raw)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	big := strings.Repeat("x", 1<<20)
	go func() {
		a.Send(message{"first"}, w)
		a.Send(message{big})
		a.Send(message{"third"}, w, w)
	}()
	for _, want := range []struct {
		text  string
		files int
	}{{"first", 1}, {big, 0}, {"third", 2}} {
		var m message
		files, err := b.Receive(&m)
		if err != nil {
			t.Fatal(err)
		}
		if m.Text != want.text || len(files) != want.files {
			t.Fatalf("got %d bytes and %d files, want %d and %d", len(m.Text), len(files), len(want.text), want.files)
		}
		for _, f := range files {
			if _, err := f.Write([]byte("y")); err != nil {
				t.Errorf("write to the received pipe: %v", err)
			}
		}
		frame.CloseAll(files)
	}
	got := make([]byte, 3)
	if _, err := io.ReadFull(r, got); err != nil || string(got) != "yyy" {
		t.Fatalf("through the received descriptors came %q, %v", got, err)
	}
}

func TestReceiveRefusesBadFrames(t *testing.T) {
	oversize := binary.BigEndian.AppendUint32(nil, frame.MaxSize+1)
	for _, tc := range []struct {
		name string
		in   []byte
		want func(error) bool
	}{
		{"oversize", oversize, func(err error) bool { return errors.Is(err, frame.ErrTooLarge) }},
		{"not JSON", append([]byte{0, 0, 0, 3}, "{{{"...), func(err error) bool { return err != nil && strings.Contains(err.Error(), "decode frame") }},
		{"cut off in the body", append([]byte{0, 0, 0, 9}, "{}"...), func(err error) bool { return errors.Is(err, io.ErrUnexpectedEOF) }},
		{"cut off in the length", []byte{0, 0}, func(err error) bool { return errors.Is(err, io.ErrUnexpectedEOF) }},
		{"clean end", nil, func(err error) bool { return errors.Is(err, io.EOF) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, raw := pair(t)
			raw.Write(tc.in)
			raw.CloseWrite()
			var m message
			if _, err := c.Receive(&m); !tc.want(err) {
				t.Fatalf("got error %v", err)
			}
		})
	}
}

func FuzzReceive(f *testing.F) {
	f.Add([]byte{0, 0, 0, 2, '{', '}'})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, in []byte) {
		c, raw := pair(t)
		go func() { raw.Write(in); raw.CloseWrite() }()
		for {
			var m message
			files, err := c.Receive(&m)
			frame.CloseAll(files)
			if err != nil {
				return
			}
		}
	})
}

func TestPeerCredentialsAreTheDialers(t *testing.T) {
	c, _ := pair(t)
	cred, err := c.PeerCredentials()
	if err != nil {
		t.Fatal(err)
	}
	if int(cred.Pid) != os.Getpid() || int(cred.Uid) != os.Getuid() {
		t.Fatalf("got pid %d uid %d, want %d %d", cred.Pid, cred.Uid, os.Getpid(), os.Getuid())
	}
}
