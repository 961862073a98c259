package demoapp

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
)

// serveWeb is the front end: it asks the API, and keeps something in the cache.
func (a *app) serveWeb(l net.Listener) (func(), error) {
	api, err := a.newCaller(API)
	if err != nil {
		return nil, err
	}
	cache, err := a.newCaller(Cache)
	if err != nil {
		return nil, err
	}
	stop := a.serveHTTP(l, a.handler(func(ctx context.Context, n int64) error {
		if err := api.http1(ctx, "/vote", n); err != nil {
			return fmt.Errorf("api: %w", err)
		}
		if err := cache.cache(ctx, n); err != nil {
			return fmt.Errorf("cache: %w", err)
		}
		return nil
	}), false)
	return func() { stop(); api.close() }, nil
}

// serveAPI is the back end: it looks an emoji up and votes for it; every fourth request streams.
func (a *app) serveAPI(l net.Listener) (func(), error) {
	catalog, err := a.newCaller(Catalog)
	if err != nil {
		return nil, err
	}
	votes, err := a.newVotesCaller()
	if err != nil {
		return nil, err
	}
	stop := a.serveHTTP(l, a.handler(func(ctx context.Context, n int64) error {
		if err := catalog.http2(ctx, "/emoji", n); err != nil {
			return fmt.Errorf("catalog: %w", err)
		}
		call := votes.vote
		switch n % 8 {
		case 3:
			call = votes.watch
		case 7:
			call = votes.tallyUp
		}
		if err := call(ctx, n); err != nil {
			return fmt.Errorf("votes: %w", err)
		}
		return nil
	}), false)
	return func() { stop(); catalog.close(); votes.close() }, nil
}

// handler answers "ROLE N\n" once work for n is done.
func (a *app) handler(work func(ctx context.Context, n int64) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(nodeField, a.cfg.Node)
		var n int64
		if _, err := fmt.Sscan(r.URL.Query().Get("n"), &n); err != nil && r.URL.RawQuery != "" {
			http.Error(w, "want ?n=NUMBER", http.StatusBadRequest)
			return
		}
		if err := work(r.Context(), n); err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		fmt.Fprintf(w, "%s %d\n", a.cfg.Role, n)
	})
}

// catalog is the HTTP/2 server.
func catalog(node string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 2 {
			http.Error(w, "HTTP/2 only, got "+r.Proto, http.StatusHTTPVersionNotSupported)
			return
		}
		w.Header().Set(nodeField, node)
		fmt.Fprintf(w, "%s %s\n", Catalog, r.URL.Query().Get("n"))
	})
}

// serveCache is a line protocol in which the server speaks first: +CACHE NODE, then SET, GET, DEL and QUIT.
func serveCache(ctx context.Context, l net.Listener, node string) (stop func()) {
	c := &cacheServer{node: node}
	context.AfterFunc(ctx, func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go c.serve(conn)
		}
	}()
	return func() { l.Close() }
}

type cacheServer struct {
	node   string
	values sync.Map
}

func (c *cacheServer) serve(conn net.Conn) {
	defer conn.Close()
	fmt.Fprintf(conn, "+CACHE %s\n", c.node)
	for sc := bufio.NewScanner(conn); sc.Scan(); {
		f := strings.Fields(sc.Text())
		answer := "-ERR want SET KEY VALUE, GET KEY, DEL KEY or QUIT"
		switch {
		case len(f) == 3 && f[0] == "SET":
			c.values.Store(f[1], f[2])
			answer = "+OK"
		case len(f) == 2 && f[0] == "GET":
			answer = "-ERR no such key"
			if v, ok := c.values.Load(f[1]); ok {
				answer = v.(string)
			}
		case len(f) == 2 && f[0] == "DEL":
			c.values.Delete(f[1])
			answer = "+OK"
		case len(f) == 1 && f[0] == "QUIT":
			fmt.Fprintln(conn, "+BYE")
			return
		}
		if _, err := fmt.Fprintln(conn, answer); err != nil {
			return
		}
	}
}
