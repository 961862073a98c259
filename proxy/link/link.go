// Package link is the proxy's end of the connection to the node's agent: it tells what the proxy holds, and carries
// out the agent's requests in order, acknowledging each when it has taken effect (package api/node).
package link

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"conduit.io/conduit/api/frame"
	api "conduit.io/conduit/api/node"
	"conduit.io/conduit/proxy/node"
)

// writeTimeout bounds how long an agent may leave an answer unread.
const writeTimeout = 10 * time.Second

// Server accepts agents, one at a time: a newer connection replaces the older.
type Server struct {
	at       *Socket
	node     *node.Node
	log      *slog.Logger
	shutdown func(grace time.Duration)

	mu      sync.Mutex
	current *frame.Conn
	greeted *frame.Conn   // current, once it has had its Hello
	done    chan struct{} // closed when the handler of current has ended
}

// New serves n over at, which Close closes. shutdown is called when the agent asks for the end of the process.
func New(at *Socket, n *node.Node, log *slog.Logger, shutdown func(grace time.Duration)) *Server {
	s := &Server{at: at, node: n, log: log, shutdown: shutdown}
	n.OnDrained(s.drained)
	return s
}

// Serve accepts until Close.
func (s *Server) Serve() error {
	for {
		u, err := s.at.accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("link: accept: %w", err)
		}
		c := frame.New(u)
		if err := authorise(c); err != nil {
			s.log.Warn("agent refused", "error", err)
			c.Close()
			continue
		}
		s.replace(c)
	}
}

// Close ends Serve and the current connection.
func (s *Server) Close() {
	s.at.close()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current != nil {
		s.current.Close()
	}
}

// authorise admits root alone: who speaks here decides whose traffic goes where.
func authorise(c *frame.Conn) error {
	cred, err := c.PeerCredentials()
	if err != nil {
		return fmt.Errorf("read peer credentials: %w", err)
	}
	if cred.Uid != 0 {
		return fmt.Errorf("peer has uid %d, not root", cred.Uid)
	}
	return nil
}

// replace makes c the agent's connection. The older one's request in hand is finished first: requests never overlap.
func (s *Server) replace(c *frame.Conn) {
	s.mu.Lock()
	old, done := s.current, s.done
	mine := make(chan struct{})
	s.current, s.done = c, mine
	s.mu.Unlock()
	if old != nil {
		old.Close()
	}
	go func() {
		defer close(mine)
		if done != nil {
			<-done
		}
		err := s.serve(c)
		c.Close()
		s.mu.Lock()
		if s.current == c {
			s.current = nil
		}
		s.mu.Unlock()
		if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
			s.log.Warn("agent connection ended", "error", err)
			return
		}
		s.log.Info("agent disconnected")
	}()
}

// serve carries out requests until the connection fails or ends (io.EOF).
func (s *Server) serve(c *frame.Conn) error {
	if err := s.greet(c); err != nil {
		return err
	}
	s.log.Info("agent connected")
	ended, told := make(chan struct{}), make(chan struct{})
	defer func() { close(ended); <-told }()
	go func() {
		defer close(told)
		s.ask(c, ended)
	}()
	for {
		var m api.Message
		files, err := c.Receive(&m)
		if err != nil {
			return err
		}
		ack, grace := s.handle(&m, files)
		frame.CloseAll(files)
		if err := s.send(c, &api.Message{ID: m.ID, Ack: ack}); err != nil {
			return err
		}
		if grace >= 0 {
			s.shutdown(grace)
		}
	}
}

// ask passes on the node's questions until ended is closed.
func (s *Server) ask(c *frame.Conn, ended <-chan struct{}) {
	for {
		select {
		case <-ended:
			return
		case <-s.node.Interest():
		}
		l := s.node.Lookup()
		if len(l.Add)+len(l.Drop) == 0 {
			continue
		}
		if err := s.send(c, &api.Message{Lookup: l}); err != nil {
			c.Close() // the next agent is told in Hello
			return
		}
	}
}

// greet sends Hello. What is drained meanwhile is reported after it: drained waits for the lock.
func (s *Server) greet(c *frame.Conn) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.greeted = c
	hello := s.node.Hello()
	hello.Displaced = s.at.displaced()
	return s.send(c, &api.Message{Hello: hello})
}

func (s *Server) send(c *frame.Conn, m *api.Message) error {
	if err := c.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	return c.Send(m)
}

// errMessage is a message without anything that the proxy can carry out.
var errMessage = errors.New("message asks for nothing that this version knows")

// handle carries out a request. grace is not negative when the process is to end.
func (s *Server) handle(m *api.Message, files []*os.File) (ack *api.Ack, grace time.Duration) {
	ack, grace = &api.Ack{}, -1
	var err error
	switch {
	case m.Kernel != nil:
		if len(files) != 1 {
			err = fmt.Errorf("kernel: want one descriptor, got %d", len(files))
			break
		}
		err = s.node.SetKernel(files[0])
	case m.Snapshot != nil:
		s.node.SetSnapshot(m.Snapshot)
	case m.Update != nil:
		err = s.node.Update(m.Update)
	case m.Certificates != nil:
		err = s.node.SetCertificates(m.Certificates)
	case m.Pod != nil:
		err = s.node.SetPod(m.Pod, files)
	case m.Remove != nil:
		s.node.Remove(m.Remove)
	case m.Stats != nil:
		ack.Stats = string(s.node.Stats())
	case m.Shutdown != nil:
		grace = max(0, time.Duration(m.Shutdown.GraceSeconds)*time.Second)
	default:
		err = errMessage
	}
	if err != nil {
		ack.Error = err.Error()
		s.log.Warn("agent's request failed", "error", err)
	}
	return ack, grace
}

// drained tells the agent, if there is one; a later agent sees it in Hello.
func (s *Server) drained(cookie uint64) {
	s.mu.Lock()
	c := s.greeted
	if c != s.current {
		c = nil
	}
	s.mu.Unlock()
	if c == nil {
		return
	}
	if err := s.send(c, &api.Message{Drained: &api.Drained{Cookie: cookie}}); err != nil {
		s.log.Warn("agent was not told of a drained pod", "error", err)
	}
}
