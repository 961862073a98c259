package main

import (
	"net"
	"net/netip"
	"testing"

	"conduit.io/conduit/tests/load/backend"
	"conduit.io/conduit/tests/load/engine"
)

// A backend that drains sends its clients elsewhere, and fails none of their requests. Here elsewhere is the backend itself.
func TestDrainLosesNothing(t *testing.T) {
	for _, proto := range []string{"http1", "h2c", "grpc"} {
		ln, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		loop, err := engine.New()
		if err != nil {
			t.Fatal(err)
		}
		server, err := backend.Serve(loop, ln)
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error)
		go func() { done <- loop.Run() }()
		drain := loop.NewTimer(server.Drain)
		loop.Post(func() { loop.Set(drain, engine.Now()+100e6) })
		res := load(t, exitOK, ln.Addr().String(), "--protocol", proto, "--mode", "open", "--rate", "1000", "--requests", "300", "--connections", "3", "--path", "/slow/1", "--expect", "-2")
		if res.Completed != 300 || res.Failed > 0 {
			t.Errorf("%s: %+v", proto, res)
		}
		if n := <-asked(loop, server); n < 6 {
			t.Errorf("%s: %d connections, want those of before and others", proto, n)
		}
		loop.Post(loop.Stop)
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func asked(l *engine.Loop, s *backend.Server) <-chan uint64 {
	n := make(chan uint64, 1)
	l.Post(func() { n <- s.Connections() })
	return n
}
