package sock

import "golang.org/x/sys/unix"

// near prepares a socket, before it listens or connects, for peers on this machine. Between two sockets of one machine there is
// nothing to be congested, and the simplest control that every kernel has is the best. Of the others, which the machine may
// have for the sake of its network, those that pace (BBR) set a timer for every few segments, and keep data back until it
// fires. Like other options, accepted connections have it from their listener. An error leaves the machine's choice, which works as well.
//
// The receive buffer is bounded, too: the kernel would let it grow to tcp_rmem's most (33 MB here) behind an application that
// does not read, and between two sockets of one machine a fraction of it is as fast.
func near(fd int) {
	_ = unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, "reno")
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, nearBuffer)
}

// nearBuffer is in bytes; the kernel takes twice as much, for its own needs, and no more than net.core.rmem_max allows.
const nearBuffer = 1 << 20

// Near says that all clients that will connect are on this machine. A connection from elsewhere is none the worse for it
// than under another congestion control.
func (s *Listener) Near() {
	if !s.closed {
		near(s.fd)
	}
}
