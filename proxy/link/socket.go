package link

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// keepEvery is how often a Socket looks whether it is still at its path.
const keepEvery = 250 * time.Millisecond

// HandOver is how long a proxy that ends, or has been followed, waits for the agent to give its pods to another one.
const HandOver = 5 * time.Second

// Socket is where agents find the proxy: a listening Unix socket. One that was made by Listen may lose its path to another proxy, which
// is to follow this one; agents that have connected before stay. When the other one ends first, the path is taken back.
type Socket struct {
	path  string
	ended chan struct{} // closed by close
	past  chan struct{} // closed when another proxy has had the path for HandOver

	mu sync.Mutex
	ln *net.UnixListener // the newest
	id fs.FileInfo       // of the file that ln is; nil for a Socket that was inherited
	n  int               // how often it was placed
}

// FromFile takes the listening Unix socket f, which it closes. Its path is the agent's matter.
func FromFile(f *os.File) (*Socket, error) {
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("link: %w", err)
	}
	u, ok := l.(*net.UnixListener)
	if !ok {
		l.Close()
		return nil, fmt.Errorf("link: descriptor is a %s listener, not a Unix socket", l.Addr().Network())
	}
	u.SetUnlinkOnClose(false) // the agent made it, and finds the proxy by it
	return &Socket{path: u.Addr().String(), ln: u, ended: make(chan struct{}), past: make(chan struct{})}, nil
}

// Listen makes the socket at path, for root alone, in the place of any that is there.
func Listen(path string) (*Socket, error) {
	s := &Socket{path: path, ended: make(chan struct{}), past: make(chan struct{})}
	if err := s.place(); err != nil {
		return nil, err
	}
	go s.keep()
	return s, nil
}

// Alive reports whether a process listens at path. It is asked without connecting: an agent's connection would end by that.
func Alive(path string) bool {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return true // nobody knows
	}
	defer unix.Close(fd)
	// Connecting as datagrams do fails anyway: with EPROTOTYPE where a stream socket is, with ECONNREFUSED where one has been.
	err = unix.Connect(fd, &unix.SockaddrUnix{Name: path})
	return !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, unix.ENOENT)
}

// Followed reports whether another proxy is there for the agent, or can be counted on: who has handed a socket down starts another.
func (s *Socket) Followed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.id == nil || !s.mine() && Alive(s.path)
}

// Past is closed when another proxy has been there instead for HandOver: the pods are that one's by then.
func (s *Socket) Past() <-chan struct{} { return s.past }

// place makes a socket and moves it to the path: there is never one with the wrong mode, and never none. s.mu is held.
func (s *Socket) place() error {
	select {
	case <-s.ended:
		return net.ErrClosed
	default:
	}
	tmp := s.path + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("link: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: tmp, Net: "unix"})
	if err != nil {
		return fmt.Errorf("link: %w", err)
	}
	l.SetUnlinkOnClose(false) // by then it has another name
	id, err := os.Lstat(tmp)
	if err == nil {
		err = os.Chmod(tmp, 0o600)
	}
	if err == nil {
		err = os.Rename(tmp, s.path)
	}
	if err != nil {
		l.Close()
		return fmt.Errorf("link: %w", err)
	}
	if s.ln != nil {
		s.ln.Close()
	}
	s.ln, s.id = l, id
	s.n++
	return nil
}

// mine reports whether the path leads to s. s.mu is held.
func (s *Socket) mine() bool {
	st, err := os.Lstat(s.path)
	return err == nil && os.SameFile(st, s.id)
}

// keep takes the path back when whoever has taken it has ended.
func (s *Socket) keep() {
	tick := time.NewTicker(keepEvery)
	defer tick.Stop()
	lost := time.Duration(0)
	for {
		select {
		case <-s.ended:
			return
		case <-tick.C:
		}
		if followed, err := s.look(); err != nil || !followed {
			lost = 0 // what could not be put back is, the next time
		} else if lost += keepEvery; lost == HandOver {
			s.pass()
		}
	}
}

// look puts the socket back if nobody follows any more.
func (s *Socket) look() (followed bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.mine():
		return false, nil
	case Alive(s.path):
		return true, nil
	}
	return false, s.place()
}

func (s *Socket) pass() {
	select {
	case <-s.past:
	default:
		close(s.past)
	}
}

// displaced reports whether another proxy has been at the path since s was first there.
func (s *Socket) displaced() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.n > 1
}

// accept waits for an agent. After close the error is net.ErrClosed.
func (s *Socket) accept() (*net.UnixConn, error) {
	for {
		s.mu.Lock()
		ln := s.ln
		s.mu.Unlock()
		u, err := ln.AcceptUnix()
		if err == nil {
			return u, nil
		}
		select {
		case <-s.ended:
			return nil, net.ErrClosed
		default:
		}
		if s.mu.Lock(); s.ln == ln {
			s.mu.Unlock()
			return nil, err
		}
		s.mu.Unlock()
	}
}

// close ends accept, and removes the socket if it is at its path.
func (s *Socket) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.ended:
		return
	default:
		close(s.ended)
	}
	if s.id != nil && s.mine() {
		_ = os.Remove(s.path)
	}
	s.ln.Close()
}
