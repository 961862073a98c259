// Command bulk sends bytes as fast as they go, and measures it: `bulk serve` is one end, `bulk run` the other. With
// --tls-in and --tls-out the two speak mutual TLS themselves: what crypto/tls reaches without a proxy.
//
// A client's first byte says in which direction: 'u' to the server, which answers its end with the number of bytes that
// came; 'd', and for how many nanoseconds as 8 bytes, to the client.
package main

import (
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"strings"
	"time"

	"conduit.io/conduit/tests/bench/control"
)

const usage = "usage: bulk serve --listen ADDRESS [--tls-in CERT,KEY,CA] | bulk run --target ADDRESS [--down] [--duration D] [--tls-out CERT,KEY,CA,NAME]"

// Result is what `bulk run` prints, as JSON.
type Result struct {
	Bytes   int64   `json:"bytes"`
	Seconds float64 `json:"seconds"`
}

func main() {
	log.SetFlags(0)
	if err := run(os.Args[1:]); err != nil {
		log.Fatalf("bulk: %v", err)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return errors.New(usage)
	}
	f := flag.NewFlagSet(args[0], flag.ExitOnError)
	var cfg *tls.Config
	switch args[0] {
	case "serve":
		listen := f.String("listen", "", "`address`")
		f.Func("tls-in", "`cert,key,ca`", func(s string) (err error) { cfg, err = control.ServerTLS(strings.Split(s, ",")); return err })
		if err := f.Parse(args[1:]); err != nil {
			return err
		}
		return serve(*listen, cfg)
	case "run":
		target := f.String("target", "", "`address`")
		down := f.Bool("down", false, "from the server to the client")
		d := f.Duration("duration", time.Second, "`time`")
		f.Func("tls-out", "`cert,key,ca,name`", func(s string) (err error) { cfg, err = control.ClientTLS(strings.Split(s, ",")); return err })
		if err := f.Parse(args[1:]); err != nil {
			return err
		}
		res, err := measure(*target, cfg, *down, *d)
		if err != nil {
			return err
		}
		return json.NewEncoder(os.Stdout).Encode(res)
	}
	return errors.New(usage)
}

func serve(addr string, cfg *tls.Config) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		if cfg != nil {
			c = tls.Server(c, cfg)
		}
		go func() {
			defer c.Close()
			if err := answer(c); err != nil && !errors.Is(err, io.EOF) { // EOF: somebody looks whether we listen
				log.Printf("bulk: %v", err)
			}
		}()
	}
}

func answer(c net.Conn) error {
	var ask [9]byte
	if _, err := io.ReadFull(c, ask[:1]); err != nil {
		return err
	}
	if ask[0] == 'u' {
		n, err := discard(c)
		if err != nil {
			return err
		}
		return binary.Write(c, binary.BigEndian, n)
	}
	if _, err := io.ReadFull(c, ask[1:]); err != nil {
		return err
	}
	_, err := fill(c, time.Duration(binary.BigEndian.Uint64(ask[1:])))
	return err
}

func measure(addr string, cfg *tls.Config, down bool, d time.Duration) (*Result, error) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if cfg != nil {
		t := tls.Client(c, cfg)
		if err := t.Handshake(); err != nil {
			return nil, err
		}
		c = t
	}
	start := time.Now()
	var n int64
	if down {
		n, err = receive(c, d)
	} else {
		n, err = send(c, d)
	}
	if err != nil {
		return nil, err
	}
	return &Result{Bytes: n, Seconds: time.Since(start).Seconds()}, nil
}

func receive(c net.Conn, d time.Duration) (int64, error) {
	if _, err := c.Write(binary.BigEndian.AppendUint64([]byte{'d'}, uint64(d))); err != nil {
		return 0, err
	}
	return discard(c)
}

// send returns what the server says to have got.
func send(c net.Conn, d time.Duration) (int64, error) {
	if _, err := c.Write([]byte{'u'}); err != nil {
		return 0, err
	}
	sent, err := fill(c, d)
	if err != nil {
		return 0, err
	}
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		return 0, err
	}
	var got int64
	if err := binary.Read(c, binary.BigEndian, &got); err != nil {
		return 0, err
	}
	if got != sent {
		return 0, fmt.Errorf("%d bytes were sent, %d have come", sent, got)
	}
	return got, nil
}
