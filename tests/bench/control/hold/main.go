// Command hold keeps connections open and idle. A line on its standard input says how many there are to be, all in all;
// each new one makes a request and waits for the answer. It answers with how many are still open.
package main

import (
	"bufio"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"conduit.io/conduit/tests/bench/control"

	"golang.org/x/sys/unix"
)

// abreast is how many connections are opened at the same time.
const abreast = 8

func main() {
	log.SetFlags(0)
	h := &holder{}
	flag.StringVar(&h.target, "target", "", "`address`")
	flag.BoolVar(&h.h1, "http1", false, "HTTP/1.1 instead of HTTP/2")
	flag.Func("tls-out", "`cert,key,ca,name`", func(s string) (err error) {
		h.tls, err = control.ClientTLS(strings.Split(s, ","))
		return err
	})
	flag.Parse()
	if h.tls != nil {
		h.tls.NextProtos = []string{"h2", "http/1.1"} // not every proxy has HTTP/2 there
	}
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		n, err := strconv.Atoi(in.Text())
		if err != nil {
			log.Fatalf("hold: %v", err)
		}
		if err := h.grow(n); err != nil {
			log.Fatalf("hold: connection %d: %v", len(h.conns)+1, err)
		}
		fmt.Println(h.open())
	}
}

type holder struct {
	target string
	h1     bool
	tls    *tls.Config
	mu     sync.Mutex
	conns  []net.Conn // TCP, also below TLS
}

// grow opens connections until there are n.
func (h *holder) grow(n int) error {
	todo := make(chan struct{}, max(n, abreast))
	for range n - len(h.conns) {
		todo <- struct{}{}
	}
	close(todo)
	errs := make(chan error, abreast)
	for range abreast {
		go func() {
			for range todo {
				if err := h.one(); err != nil {
					errs <- err
					return
				}
			}
			errs <- nil
		}()
	}
	var all error
	for range abreast {
		all = errors.Join(all, <-errs)
	}
	return all
}

func (h *holder) one() error {
	raw, err := net.DialTimeout("tcp", h.target, 20*time.Second)
	if err != nil {
		return err
	}
	h.mu.Lock()
	h.conns = append(h.conns, raw)
	h.mu.Unlock()
	if err := raw.SetDeadline(time.Now().Add(60 * time.Second)); err != nil {
		return err
	}
	if h.tls == nil {
		return ask(raw, h.h1)
	}
	c := tls.Client(raw, h.tls)
	if err := c.Handshake(); err != nil {
		return err
	}
	return ask(c, c.ConnectionState().NegotiatedProtocol != "h2")
}

func ask(c net.Conn, h1 bool) error {
	if h1 {
		return ask1(c)
	}
	return ask2(c)
}

// open is how many connections the other end has not closed.
func (h *holder) open() int {
	n := 0
	var b [1]byte
	for _, c := range h.conns {
		raw, err := c.(*net.TCPConn).SyscallConn()
		if err != nil {
			continue
		}
		_ = raw.Control(func(fd uintptr) {
			got, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
			if got > 0 || errors.Is(err, unix.EAGAIN) {
				n++
			}
		})
	}
	return n
}
