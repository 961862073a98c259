package netns_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/smtp"
	"net/textproto"
	"slices"
	"strings"
	"testing"
	"time"

	"conduit.io/conduit/tests/testnet"
)

// mailbox is a small SMTP server (RFC 5321): it speaks first.
type mailbox struct{ mails chan string }

func (m *mailbox) serve(c net.Conn) {
	t := textproto.NewConn(c)
	t.PrintfLine("220 mail.shop sees %s", clientAddr(c))
	var b strings.Builder
	for {
		line, err := t.ReadLine()
		if err != nil {
			return
		}
		switch verb, _, _ := strings.Cut(line, " "); strings.ToUpper(verb) {
		case "EHLO":
			t.PrintfLine("250-mail.shop")
			t.PrintfLine("250 8BITMIME")
		case "MAIL", "RCPT":
			fmt.Fprintln(&b, line)
			t.PrintfLine("250 ok")
		case "DATA":
			t.PrintfLine("354 go on")
			body, err := io.ReadAll(t.DotReader())
			if err != nil {
				return
			}
			m.mails <- b.String() + string(body)
			t.PrintfLine("250 taken")
		case "QUIT":
			t.PrintfLine("221 bye")
			return
		default:
			t.PrintfLine("502 what?")
		}
	}
}

// testSMTP talks to a server that speaks first. Its greeting comes at once, not after a time for detection.
func testSMTP(t *testing.T, w *town) {
	m := &mailbox{mails: make(chan string, 1)}
	port := testnet.Serve(t, w.server, 0, m.serve)
	w.onPaths(t, port, func(t *testing.T, p path) {
		greetings(t, p, 10)
		sendMail(t, p, m)
	})
	t.Run("where HTTP was", func(t *testing.T) {
		port := httpBefore(t, w)
		testnet.Serve(t, w.server, port, m.serve)
		for _, p := range w.paths(port) {
			greetings(t, p, 5)
			sendMail(t, p, m)
		}
	})
}

// greetings connects and stays silent, n times. On an idle machine the greeting takes a few milliseconds; any wait for the
// client's first bytes would show in all of them.
func greetings(t *testing.T, p path, n int) {
	t.Helper()
	var took []time.Duration
	for range n {
		start := time.Now()
		c := p.dial(t)
		line, err := bufio.NewReader(c).ReadString('\n')
		took = append(took, time.Since(start))
		want := "220 mail.shop sees " + c.LocalAddr().String()
		c.Close()
		if err != nil || strings.TrimSpace(line) != want {
			t.Fatalf("greeting %d: %q, %v; want %q", len(took), line, err, want)
		}
	}
	if took[0] > time.Second {
		t.Errorf("the first greeting took %v", took[0])
	}
	t.Logf("greetings after %v", took)
	// The first is the one that teaches the proxy.
	if fast := slices.Min(took[1:]); fast > 25*time.Millisecond {
		t.Errorf("the fastest greeting took %v: %v", fast, took)
	}
}

func sendMail(t *testing.T, p path, m *mailbox) {
	t.Helper()
	c, err := smtp.NewClient(p.dial(t), "mail.shop")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	body := "Subject: order\r\n\r\n" + strings.Repeat("GET / HTTP/1.1 is only text here\r\n", 1000)
	steps := []func() error{
		func() error { return c.Hello("client") },
		func() error { return c.Mail("a@shop") },
		func() error { return c.Rcpt("b@shop") },
		func() error {
			d, err := c.Data()
			if err == nil {
				_, err = io.WriteString(d, body)
			}
			if err == nil {
				err = d.Close()
			}
			return err
		},
		c.Quit,
	}
	for i, step := range steps {
		if err := step(); err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
	}
	want := "MAIL FROM:<a@shop> BODY=8BITMIME\nRCPT TO:<b@shop>\n" + strings.ReplaceAll(body, "\r\n", "\n")
	if got := <-m.mails; got != want {
		t.Errorf("mail: %d bytes, want %d: %.80q", len(got), len(want), got)
	}
}

// httpBefore serves HTTP on a port until the proxies have learnt it, and then leaves the port to the caller.
func httpBefore(t *testing.T, w *town) uint16 {
	t.Helper()
	l := testnet.Listen(t, w.server, "tcp", "[::]:0")
	port := uint16(l.Addr().(*net.TCPAddr).Port)
	s := &http.Server{Handler: http.NotFoundHandler(), ReadHeaderTimeout: 10 * time.Second}
	go s.Serve(l)
	for _, p := range w.paths(port) {
		hc := &http.Client{Transport: &http.Transport{DialContext: p.dialer(), DisableKeepAlives: true}}
		for range 3 {
			res, err := hc.Get("http://" + p.to.String())
			if err != nil {
				t.Fatal(err)
			}
			res.Body.Close()
			if res.StatusCode != http.StatusNotFound {
				t.Fatal(res.Status)
			}
		}
	}
	s.Close()
	return port
}
