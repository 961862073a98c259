package sock

import (
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

// TestRoomForOthers: clients get the descriptors below the bound, and each of them again when it is free.
func TestRoomForOthers(t *testing.T) {
	l := start(t)
	var stops, refused, accepted int
	var last *Conn
	s := server(t, l, func(c *Conn) { accepted++; last = c })
	hold, held := make(chan struct{}), make(chan struct{})
	l.Post(func() { close(held); <-hold })
	<-held
	for range 8 {
		c, err := net.Dial("tcp", sockName(s.fd, unix.SYS_GETSOCKNAME).String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	s.bound = int(fillGaps(t)) + 4
	s.Short = func(rests, n int) {
		refused += n
		if rests == 0 {
			stops++
		}
	}
	close(hold)
	until(t, l, func() bool { return stops > 0 })
	do(t, l, func() {
		if accepted != 4 || refused != 0 {
			t.Errorf("%d of 4 accepted, %d refused", accepted, refused)
		}
		last.Abort()
	})
	until(t, l, func() bool { return accepted == 5 && stops == 2 })
	do(t, l, func() { s.Privileged = true })
	until(t, l, func() bool { return accepted == 8 })
}

// TestGreedyClientsWait: when more than half of the descriptors are in use, clients of a listener that has too many of them wait, and
// those of others do not.
func TestGreedyClientsWait(t *testing.T) {
	l := start(t)
	greedy, accepted, stops := true, [2]int{}, 0
	var s [2]*Listener
	for i := range s {
		s[i] = server(t, l, func(*Conn) { accepted[i]++ })
	}
	half := int(fillGaps(t))
	do(t, l, func() {
		for i := range s {
			s[i].near, s[i].bound = true, 2*half
		}
		s[0].Greedy, s[0].Short = func() bool { return greedy }, func(int, int) { stops++ }
	})
	for i := range s {
		addr := sockName(s[i].fd, unix.SYS_GETSOCKNAME).String()
		for range 3 {
			c, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
		}
	}
	until(t, l, func() bool { return accepted[1] == 3 && stops > 0 })
	do(t, l, func() {
		if accepted[0] != 0 {
			t.Errorf("%d of the greedy were accepted", accepted[0])
		}
		greedy = false
	})
	until(t, l, func() bool { return accepted[0] == 3 })
}

// TestCloseWhileShort: a closed listener has nothing to do with whoever gets its descriptor.
func TestCloseWhileShort(t *testing.T) {
	l := start(t)
	stops := 0
	s := server(t, l, func(*Conn) { t.Error("accepted where there was no room") })
	do(t, l, func() { s.near, s.bound, s.Short = true, 0, func(int, int) { stops++ } })
	c, err := net.Dial("tcp", sockName(s.fd, unix.SYS_GETSOCKNAME).String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	until(t, l, func() bool { return stops > 0 })
	other, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(other)
	done := make(chan int, 1)
	do(t, l, func() {
		fd := s.fd
		s.Close()
		if err := unix.Dup3(other, fd, unix.O_CLOEXEC); err != nil {
			t.Error(err)
		}
		before := l.Watched()
		l.After(2*acceptRest, func() {
			n := l.Watched() - before
			unix.Close(fd)
			done <- n
		})
	})
	if n := recv(t, done); n != 0 {
		t.Errorf("%d more descriptors are watched", n)
	}
}
