// Command who finds out where connections arrive: `who serve ADDRESS...` says the name of its host to everybody who connects, and `who ask
// TARGET...` connects to each target many times, and prints a line for each with the names that it was told.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	times   = 40              // connections to each target
	silent  = 2               // failures after which a target that nobody has answered at is given up
	timeout = 5 * time.Second // of a connection
	// nobody is what a connection that failed is told.
	nobody = "-"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "who:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) > 1 && args[0] == "serve" {
		return serve(args[1:])
	}
	if len(args) > 1 && args[0] == "ask" {
		askAll(args[1:])
		return nil
	}
	if len(args) == 1 && args[0] == "help" { // a probe without a network
		return nil
	}
	return errors.New("usage: who serve ADDRESS... | who ask TARGET...")
}

func serve(addresses []string) error {
	name, err := os.Hostname()
	if err != nil {
		return err
	}
	failed := make(chan error)
	for _, a := range addresses {
		l, err := net.Listen("tcp", a)
		if err != nil {
			return err
		}
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					failed <- err
					return
				}
				_, _ = io.WriteString(c, name)
				_ = c.Close()
			}
		}()
	}
	return <-failed
}

// askAll asks all targets at the same time, and prints in their order.
func askAll(targets []string) {
	lines := make([]string, len(targets))
	var asking sync.WaitGroup
	for i, t := range targets {
		asking.Go(func() { lines[i] = t + " " + strings.Join(askMany(t), " ") })
	}
	asking.Wait()
	fmt.Println(strings.Join(lines, "\n"))
}

func askMany(target string) []string {
	var names []string
	for i := range times {
		name, err := ask(target)
		if err != nil {
			name = nobody
			fmt.Fprintf(os.Stderr, "who: %s: %v\n", target, err)
		}
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
		if i+1 == silent && slices.Equal(names, []string{nobody}) {
			break
		}
	}
	slices.Sort(names)
	return names
}

// ask connects to one of the addresses that the target's name has.
func ask(target string) (string, error) {
	host, port, err := net.SplitHostPort(target)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	all := []netip.Addr{}
	if a, err := netip.ParseAddr(host); err == nil {
		all = append(all, a)
	} else if all, err = net.DefaultResolver.LookupNetIP(ctx, "ip4", host); err != nil {
		return "", err
	}
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort(all[rand.N(len(all))].Unmap().String(), port))
	if err != nil {
		return "", err
	}
	defer c.Close()
	deadline, _ := ctx.Deadline()
	_ = c.SetDeadline(deadline)
	name, err := io.ReadAll(c)
	if err == nil && len(name) == 0 {
		err = io.ErrUnexpectedEOF
	}
	return string(name), err
}
