package link_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"conduit.io/conduit/mesh"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// flood writes the same frames over and over, until the proxy ends the connection, and returns the code of its GOAWAY.
func (p *meshPeer) flood(id uint32, frames func(f *http2.Framer, id uint32)) (http2.ErrCode, error) {
	var b bytes.Buffer
	_ = p.c.SetDeadline(time.Now().Add(20 * time.Second))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for ; ; id += 100 {
			b.Reset()
			f := http2.NewFramer(&b, nil)
			f.AllowIllegalWrites = true
			for k := range uint32(50) {
				frames(f, id+2*k)
			}
			if _, err := p.c.Write(b.Bytes()); err != nil {
				return
			}
		}
	}()
	defer func() { p.c.Close(); <-ended }()
	for {
		f, err := p.f.ReadFrame()
		if err != nil {
			return 0, fmt.Errorf("no GOAWAY: %w", err)
		}
		if g, ok := f.(*http2.GoAwayFrame); ok {
			return g.ErrCode, nil
		}
	}
}

// TestHostileMeshPeers: a peer with a good certificate may not do more than any other client; only that a link carries the
// cancellations of many clients is taken into account.
func TestHostileMeshPeers(t *testing.T) {
	n1, n2 := pair(t)
	httpApp(t, webIP+":8080", "web")
	tcpApp(t, webIP+":5432", func(c *net.TCPConn) { echo(c) })
	n1.want("conduit_proxy_pods 1")
	var connect bytes.Buffer
	enc := hpack.NewEncoder(&connect)
	_ = enc.WriteField(hpack.HeaderField{Name: ":method", Value: "CONNECT", Sensitive: true})
	_ = enc.WriteField(hpack.HeaderField{Name: ":authority", Value: webIP + ":5432", Sensitive: true})
	counted := map[mesh.Abuse]int{}
	for _, tt := range []struct {
		name, alpn string
		kind       mesh.Abuse
		frames     func(f *http2.Framer, id uint32)
	}{
		{"resets of tunnels", mesh.ALPNHBONE, mesh.AbuseResets, func(f *http2.Framer, id uint32) {
			_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: connect.Bytes(), EndHeaders: true})
			_ = f.WriteRSTStream(id, http2.ErrCodeCancel)
		}},
		{"malformed requests", mesh.ALPNConduit, mesh.AbuseResets, func(f *http2.Framer, id uint32) {
			_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, EndHeaders: true, EndStream: true})
		}},
		{"PING", mesh.ALPNConduit, mesh.AbusePing, func(f *http2.Framer, _ uint32) { _ = f.WritePing(false, [8]byte{}) }},
		{"SETTINGS", mesh.ALPNHBONE, mesh.AbuseSettings, func(f *http2.Framer, _ uint32) { _ = f.WriteSettings() }},
		{"CONTINUATION", mesh.ALPNConduit, mesh.AbuseContinuation, func(f *http2.Framer, id uint32) {
			if id == 1 {
				_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, EndStream: true})
			}
			_ = f.WriteContinuation(1, false, nil)
		}},
		{"WINDOW_UPDATE", mesh.ALPNConduit, mesh.AbuseWindow, func(f *http2.Framer, _ uint32) { _ = f.WriteWindowUpdate(0, 20) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var served atomic.Int64
			stop, stopped := make(chan struct{}), make(chan error, 1)
			go func() { stopped <- visit(httpClient(t, true), &served, stop) }()
			p, err := dialMesh(t, n2.ca, "stranger", tt.alpn)
			if err != nil {
				t.Fatal(err)
			}
			if code, err := p.flood(1, tt.frames); err != nil || code != http2.ErrCodeEnhanceYourCalm {
				t.Errorf("GOAWAY %v, %v", code, err)
			}
			n := served.Load()
			eventually(t, func() bool { return served.Load() > n+5 }, func() string { return "the other pod is not served any more" })
			close(stop)
			if err := <-stopped; err != nil {
				t.Errorf("the other pod: %v", err)
			}
			counted[tt.kind]++
			n2.want(fmt.Sprintf("conduit_proxy_abuse_total{kind=%q} %d", tt.kind, counted[tt.kind]))
		})
	}
}

// visit asks for the Service of the web pod until stop is closed.
func visit(c *http.Client, served *atomic.Int64, stop <-chan struct{}) error {
	for {
		select {
		case <-stop:
			return nil
		default:
		}
		res, err := c.Get("http://" + httpSvc + "/")
		if err != nil {
			return err
		}
		res.Body.Close()
		if res.StatusCode != 200 {
			return errors.New(res.Status)
		}
		served.Add(1)
	}
}
