package netns_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"

	"conduit.io/conduit/tests/testnet"
)

// How an end of a connection goes about what it has to send and to receive.
const (
	sendFirst = iota
	receiveFirst
	bothAtOnce
	orders
)

// plan is what both ends of a connection do: the client sends it first of all.
type plan struct {
	Up, Down       uint32 // bytes
	Client, Server uint8  // order
}

func randomPlan(r *rand.Rand) plan {
	sizes := []uint32{0, 1, 1 << 10, 64 << 10, 100_000, 150 << 10, 512 << 10}
	p := plan{Up: sizes[r.IntN(len(sizes))], Down: sizes[r.IntN(len(sizes))], Client: uint8(r.IntN(orders)), Server: uint8(r.IntN(orders))}
	if p.Client == receiveFirst && p.Server == receiveFirst {
		p.Server = bothAtOnce // or nobody begins
	}
	return p
}

// follow sends n bytes of noise and half-closes, and receives m of the other's up to its end.
func follow(c *net.TCPConn, order uint8, n, m uint32) error {
	send := func() error {
		if _, err := io.Copy(c, onlyReader{noise('o', int64(n))}); err != nil {
			return fmt.Errorf("send %d: %w", n, err)
		}
		return c.CloseWrite()
	}
	receive := func() error {
		got, k, err := sum(c)
		want, _, _ := sum(noise('o', int64(m)))
		if err != nil || got != want {
			return fmt.Errorf("received %d of %d bytes: sum %s, want %s: %w", k, m, got, want, err)
		}
		return nil
	}
	switch order {
	case sendFirst:
		return errors.Join(send(), receive())
	case receiveFirst:
		return errors.Join(receive(), send())
	}
	sent := make(chan error, 1)
	go func() { sent <- send() }()
	return errors.Join(receive(), <-sent)
}

// testAnyOrder ends connections in every order, many at a time: neither a byte nor an end is lost.
func testAnyOrder(t *testing.T, w *town) {
	const conns, workers = 144, 12
	results := make(chan error, 3*conns)
	port := testnet.Serve(t, w.server, 0, func(c net.Conn) {
		var p plan
		err := binary.Read(c, binary.BigEndian, &p)
		if err == nil {
			err = follow(c.(*net.TCPConn), p.Server, p.Down, p.Up)
		}
		if err != nil {
			err = fmt.Errorf("server of %+v: %w", p, err)
		}
		results <- err
	})
	w.onPaths(t, port, func(t *testing.T, p path) {
		var wg sync.WaitGroup
		for i := range workers {
			r := rand.New(rand.NewPCG(uint64(i), 1))
			wg.Go(func() {
				for range conns / workers {
					plan := randomPlan(r)
					c, err := testnet.Dial(t.Context(), p.from, p.to)
					if err != nil {
						t.Error(err)
						return
					}
					if err := errors.Join(binary.Write(c, binary.BigEndian, plan), follow(c, plan.Client, plan.Up, plan.Down)); err != nil {
						t.Errorf("client of %+v: %v", plan, err)
					}
					c.Close()
				}
			})
		}
		wg.Wait()
		if t.Failed() {
			return // there may be servers that will never hear of their client
		}
		for range conns {
			if err := <-results; err != nil {
				t.Error(err)
			}
		}
	})
}
