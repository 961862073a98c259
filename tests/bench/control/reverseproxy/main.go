// Command reverseproxy is what the Go standard library makes a reverse proxy of: net/http and httputil.ReverseProxy, tuned
// as one would for production.
package main

import (
	"io"
	"log"
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync"
	"time"

	"conduit.io/conduit/tests/bench/control"
)

func main() { control.Main("reverseproxy", serve) }

func serve(k control.Link, cfg *control.Config) error {
	if cfg.In != nil {
		return server(k, cfg).ListenAndServeTLS("", "") // the certificate is in TLSConfig
	}
	return server(k, cfg).ListenAndServe()
}

func server(k control.Link, cfg *control.Config) *http.Server {
	up := &url.URL{Scheme: "http", Host: k.Upstream}
	tr := &http.Transport{
		MaxIdleConns: 1024, MaxIdleConnsPerHost: 1024, IdleConnTimeout: time.Hour,
		DisableCompression: true, Protocols: new(http.Protocols),
	}
	switch {
	case cfg.Out != nil:
		up.Scheme = "https"
		tr.TLSClientConfig = cfg.Out
		tr.Protocols.SetHTTP2(true)
	case k.Out == "http2":
		tr.Protocols.SetUnencryptedHTTP2(true)
	default:
		tr.Protocols.SetHTTP1(true)
	}
	rp := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(up)
			r.Out.Host = r.In.Host
		},
		Transport: tr, BufferPool: &buffers{}, ErrorLog: log.New(io.Discard, "", 0),
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(cfg.In != nil)
	protocols.SetUnencryptedHTTP2(cfg.In == nil)
	return &http.Server{
		Addr: k.Listen, Handler: rp, Protocols: protocols, TLSConfig: cfg.In, ReadHeaderTimeout: time.Minute,
		HTTP2: &http.HTTP2Config{MaxConcurrentStreams: 1000}, ErrorLog: rp.ErrorLog,
	}
}

// buffers is a pool for bodies.
type buffers struct{ pool sync.Pool }

// Get implements httputil.BufferPool.
func (b *buffers) Get() []byte {
	if p, ok := b.pool.Get().(*[]byte); ok {
		return *p
	}
	return make([]byte, 32<<10)
}

// Put implements httputil.BufferPool.
func (b *buffers) Put(p []byte) { b.pool.Put(&p) }
