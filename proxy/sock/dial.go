package sock

import (
	"crypto/tls"
	"errors"
	"net/netip"
	"time"

	"conduit.io/conduit/api/kernel"
	"conduit.io/conduit/proxy/flow"
	"conduit.io/conduit/proxy/loop"

	"golang.org/x/sys/unix"
)

// dialTimeout is the default of DialOptions.Timeout.
const dialTimeout = 10 * time.Second

// DialOptions say where to connect, and how.
type DialOptions struct {
	Addr    netip.AddrPort
	Netns   *Netns          // the socket is made in it; nil: in the process's own
	Tag     *kernel.SockTag // written to Tags before the socket connects; nil: none
	Tags    *TagMap
	Timeout time.Duration // for the connection and the TLS handshake together; 0: 10 s
	TLS     *tls.Config   // client configuration; nil: no TLS
	// UserTimeout: see Conn.SetUserTimeout; 0: none.
	UserTimeout time.Duration
	Near        bool // Addr is on this machine: see Listener.Near
}

// dial is a stage.
type dial struct {
	c     *Conn
	o     DialOptions
	done  func(*Conn, error)
	timer flow.Timer
	end   int64
	over  bool
}

// Dial connects. done is called once on the loop, after Dial has returned, with a connection that has no receiver yet
// or with an error: a *DialError, a *HandshakeError, ErrTimeout or ErrBusy. After cancel, which may be called at any
// time on the loop, done is not called any more; a connection that done was given is not cancel's business. Dial must be
// called on l's goroutine.
func Dial(l *loop.Loop, o DialOptions, done func(*Conn, error)) (cancel func()) {
	if o.Timeout <= 0 {
		o.Timeout = dialTimeout
	}
	d := &dial{o: o, done: done, end: l.Now() + int64(o.Timeout)}
	if err := d.start(l); err != nil {
		l.After(0, func() { d.finish(err) })
	}
	return d.abandon
}

// start makes the socket and begins to connect.
func (d *dial) start(l *loop.Loop) error {
	if !d.o.Addr.IsValid() {
		return &DialError{"address", unix.EINVAL}
	}
	addr := netip.AddrPortFrom(d.o.Addr.Addr().Unmap(), d.o.Addr.Port())
	family, sa := sockaddr(addr)
	fd, err := d.o.Netns.socket(family)
	if err != nil {
		return &DialError{"socket", err}
	}
	if d.o.Tag != nil {
		err = ErrNoTagMap
		if d.o.Tags != nil {
			err = d.o.Tags.put(fd, d.o.Tag)
		}
		if err != nil {
			unix.Close(fd)
			return &DialError{"mark socket", err}
		}
	}
	setOptions(fd)
	if d.o.Near {
		near(fd)
	}
	if d.o.UserTimeout > 0 {
		setUserTimeout(fd, d.o.UserTimeout)
	}
	if err := unix.Connect(fd, sa); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		unix.Close(fd)
		return &DialError{"connect", err}
	}
	// Not before connect: epoll reports an unconnected socket as hung up. When it has connected already, the first
	// event comes at once.
	c, err := adopt(l, fd, addr)
	if err != nil {
		return &DialError{"watch", err}
	}
	d.c, c.stage = c, d
	d.timer = l.After(d.o.Timeout, func() { d.fail(&DialError{"connect", ErrTimeout}) })
	return nil
}

func sockaddr(a netip.AddrPort) (int, unix.Sockaddr) {
	if a.Addr().Is4() {
		return unix.AF_INET, &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return unix.AF_INET6, &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// ready implements stage: the connection is made, or refused.
func (d *dial) ready(ev loop.Events) {
	if ev&(loop.Out|loop.Hup) == 0 {
		return
	}
	c := d.c
	if err := sockError(c.fd); err != nil {
		d.fail(&DialError{"connect", err})
		return
	}
	// A port that nobody listens on, within the ephemeral range, may be chosen as the source port of a connection
	// to itself, which TCP then makes (RFC 9293, 3.5: simultaneous open).
	if c.LocalAddr() == c.remote {
		d.fail(&DialError{"connect", unix.ECONNREFUSED})
		return
	}
	d.timer.Stop()
	c.stage = nil
	if d.o.TLS == nil {
		d.finish(nil)
		return
	}
	left := time.Duration(max(d.end-c.l.Now(), 0))
	c.startTLS(d.o.TLS, true, left, d.finish)
}

// finish calls done, unless there has been a cancel.
func (d *dial) finish(err error) {
	if d.over {
		return
	}
	d.over = true
	if err != nil {
		d.done(nil, err)
		return
	}
	d.done(d.c, nil)
}

// fail ends an attempt to connect.
func (d *dial) fail(err error) {
	d.timer.Stop()
	d.c.stage = nil
	d.c.end(err, false)
	d.finish(err)
}

// abandon is the cancel of Dial.
func (d *dial) abandon() {
	if d.over {
		return
	}
	d.over = true
	if d.c == nil {
		return
	}
	if d.c.stage == d {
		d.fail(ErrAborted)
		return
	}
	d.c.Abort()
}

// cancel implements stage; nobody has the Conn yet.
func (d *dial) cancel() { d.fail(&DialError{"connect", ErrAborted}) }

// stopped implements stage.
func (d *dial) stopped() { d.fail(&DialError{"connect", loop.ErrStopped}) }
