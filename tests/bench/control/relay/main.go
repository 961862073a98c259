// Command relay copies bytes between connections, and knows nothing of what they mean. Without TLS the kernel copies them
// (splice(2)); with it, it shows what crypto/tls alone costs.
package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"

	"conduit.io/conduit/tests/bench/control"
)

func main() { control.Main("relay", serve) }

func serve(k control.Link, cfg *control.Config) error {
	l, err := net.Listen("tcp", k.Listen)
	if err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		go func() {
			if err := relay(c, k.Upstream, cfg); err != nil && !errors.Is(err, net.ErrClosed) {
				log.Printf("relay: %v", err)
			}
		}()
	}
}

// stream is a connection of which one direction can be closed: *net.TCPConn and *tls.Conn.
type stream interface {
	net.Conn
	CloseWrite() error
}

func relay(client net.Conn, upstream string, cfg *control.Config) error {
	defer client.Close()
	server, err := net.Dial("tcp", upstream)
	if err != nil {
		return err
	}
	defer server.Close()
	down, up := client.(stream), server.(stream)
	if cfg.In != nil {
		down = tls.Server(client, cfg.In)
	}
	if cfg.Out != nil {
		up = tls.Client(server, cfg.Out)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		pipe(down, up)
	}()
	pipe(up, down)
	<-done
	return nil
}

// pipe copies until src ends, and says so to dst. An error ends both directions.
func pipe(dst, src stream) {
	if err := transfer(dst, src); err != nil {
		dst.Close()
		src.Close()
		return
	}
	_ = dst.CloseWrite()
}

// buffer is what four TLS records carry.
const buffer = 64 << 10

func transfer(dst, src stream) error {
	d, plainDst := dst.(*net.TCPConn)
	s, plainSrc := src.(*net.TCPConn)
	if plainDst && plainSrc {
		_, err := d.ReadFrom(s) // splices
		return err
	}
	// Hidden, so that neither end brings a smaller buffer of its own.
	_, err := io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, make([]byte, buffer))
	return err
}
