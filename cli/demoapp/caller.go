package demoapp

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
)

// caller is a client of one role. It counts every call.
type caller struct {
	role, addr, node string
	tally            *tally
	web              *http.Client
}

func (a *app) newCaller(role string) (*caller, error) {
	addr := a.cfg.Targets[role]
	if addr == "" {
		return nil, fmt.Errorf("role %s needs --target %s=HOST:PORT", a.cfg.Role, role)
	}
	c := &caller{role: role, addr: addr, node: a.cfg.Node, tally: a.tally}
	p := new(http.Protocols)
	p.SetHTTP1(role != Catalog)
	p.SetUnencryptedHTTP2(role == Catalog)
	c.web = &http.Client{Timeout: callTimeout, Transport: &http.Transport{
		Protocols:           p,
		MaxIdleConnsPerHost: maxInFlight,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, addr) // the name in the URL is the role's
		},
	}}
	return c, nil
}

func (c *caller) http1(ctx context.Context, path string, n int64) error {
	return c.get(ctx, "http1", path, n)
}
func (c *caller) http2(ctx context.Context, path string, n int64) error {
	return c.get(ctx, "http2", path, n)
}

// get asks for path with the number n and wants n in the answer.
func (c *caller) get(ctx context.Context, protocol, path string, n int64) error {
	var server string
	err := func() error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://%s%s?n=%d", c.role, path, n), nil)
		if err != nil {
			return err
		}
		res, err := c.web.Do(req)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		body, err := io.ReadAll(io.LimitReader(res.Body, 64<<10))
		if err != nil {
			return err
		}
		if res.StatusCode != http.StatusOK {
			return fmt.Errorf("%s: %s%s", res.Status, strings.TrimSpace(string(body)), reason(res.Header))
		}
		server = res.Header.Get(nodeField)
		if want := fmt.Sprintf("%s %d\n", c.role, n); string(body) != want {
			return fmt.Errorf("asked for %q, got %q", want, body)
		}
		return nil
	}()
	c.count(protocol, server, err)
	return err
}

// reason is what the mesh says about a failure that it made.
func reason(h http.Header) string {
	if r := h.Get("conduit-reason"); r != "" {
		return " (conduit-reason: " + r + ")"
	}
	return ""
}

// cache opens a connection, is greeted, stores a value, reads it back and says goodbye.
func (c *caller) cache(ctx context.Context, n int64) error {
	var server string
	err := func() (err error) {
		ctx, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", c.addr)
		if err != nil {
			return err
		}
		defer conn.Close()
		deadline, _ := ctx.Deadline()
		if err := conn.SetDeadline(deadline); err != nil {
			return err
		}
		r := bufio.NewReader(conn)
		greeting, err := r.ReadString('\n')
		if err != nil {
			return fmt.Errorf("wait for greeting: %w", err)
		}
		var ok bool
		if server, ok = strings.CutPrefix(strings.TrimSpace(greeting), "+CACHE "); !ok {
			return fmt.Errorf("bad greeting %q", greeting)
		}
		return converse(conn, r, []exchange{
			{fmt.Sprintf("SET key-%d value-%d", n, n), "+OK"},
			{fmt.Sprintf("GET key-%d", n), fmt.Sprintf("value-%d", n)},
			{fmt.Sprintf("DEL key-%d", n), "+OK"},
			{"QUIT", "+BYE"},
		})
	}()
	c.count("tcp", server, err)
	return err
}

type exchange struct{ say, hear string }

// converse says and hears, and wants the server to close at the end.
func converse(w io.Writer, r *bufio.Reader, all []exchange) error {
	for _, e := range all {
		if _, err := io.WriteString(w, e.say+"\n"); err != nil {
			return err
		}
		got, err := r.ReadString('\n')
		if err != nil {
			return fmt.Errorf("after %q: %w", e.say, err)
		}
		if strings.TrimSpace(got) != e.hear {
			return fmt.Errorf("after %q: want %q, got %q", e.say, e.hear, got)
		}
	}
	if _, err := r.ReadByte(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("after the end: want EOF, got %v", err)
	}
	return nil
}

func (c *caller) count(protocol, server string, err error) {
	if err == nil && server == "" {
		err = errors.New("the answer does not name its node")
	}
	c.tally.count(c.role, protocol, server != c.node, err)
}

func (c *caller) close() { c.web.CloseIdleConnections() }
