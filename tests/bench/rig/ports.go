package rig

import (
	"errors"
	"net"
	"os"
	"strconv"
)

// Ports hands out free TCP ports of the loopback address. They lie below the range that the kernel takes for outgoing
// connections (32768 and up by default), of which a benchmark makes many.
type Ports struct{ next int }

const (
	firstPort = 18000
	lastPort  = 31000
)

// NewPorts starts where this process's number says, so that two benchmarks rarely ask for the same.
func NewPorts() *Ports {
	return &Ports{next: firstPort + os.Getpid()*64%(lastPort-firstPort)}
}

// Addr is an address at which nobody listened a moment ago.
func (p *Ports) Addr() (string, error) {
	for range lastPort - firstPort {
		a := "127.0.0.1:" + strconv.Itoa(p.next)
		if p.next++; p.next >= lastPort {
			p.next = firstPort
		}
		if l, err := net.Listen("tcp", a); err == nil {
			l.Close()
			return a, nil
		}
	}
	return "", errors.New("no free port")
}
