// Package cniserver answers the CNI plugin on a Unix socket (package podapi).
package cniserver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"conduit.io/conduit/api/frame"
	"conduit.io/conduit/api/podapi"
)

const (
	// readTimeout bounds the wait for a request after the plugin has connected.
	readTimeout = 5 * time.Second
	// serveTimeout bounds the work on one request, the wait for a proxy that is being started included.
	serveTimeout = 15 * time.Second
)

// Handler does what the plugin asks for. Its methods may be called concurrently.
type Handler interface {
	Add(ctx context.Context, r *podapi.Request) (wired bool, err *podapi.Error)
	Del(ctx context.Context, r *podapi.Request) *podapi.Error
	Check(ctx context.Context, r *podapi.Request) (wired bool, err *podapi.Error)
	Status(ctx context.Context) *podapi.Error
	GC(ctx context.Context, r *podapi.Request) *podapi.Error
}

// Server listens on one socket.
type Server struct {
	path string
	l    *net.UnixListener
	h    Handler
	log  *slog.Logger
	wg   sync.WaitGroup
}

// Listen makes the socket at path, with mode 0600; a socket that a dead agent left there is replaced.
func Listen(path string, h Handler, log *slog.Logger) (*Server, error) {
	tmp := path + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("listen for the CNI plugin: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: tmp, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen for the CNI plugin: %w", err)
	}
	l.SetUnlinkOnClose(false)
	err = os.Chmod(tmp, 0o600)
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		l.Close()
		return nil, fmt.Errorf("listen for the CNI plugin: %w", err)
	}
	return &Server{path: path, l: l, h: h, log: log}, nil
}

// Serve answers until ctx ends; then it stops listening, removes the socket, and waits for the requests in hand.
func (s *Server) Serve(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() {
		os.Remove(s.path)
		s.l.Close()
	})
	defer stop()
	defer s.wg.Wait()
	for {
		c, err := s.l.AcceptUnix()
		if ctx.Err() != nil {
			if err == nil {
				c.Close()
			}
			return nil
		}
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return fmt.Errorf("serve the CNI plugin: %w", err)
			}
			s.log.Error("accept from the CNI plugin failed", "error", err)
			select { // out of descriptors, most likely
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		s.wg.Go(func() { s.serve(ctx, frame.New(c)) })
	}
}

func (s *Server) serve(ctx context.Context, c *frame.Conn) {
	defer c.Close()
	c.SetDeadline(time.Now().Add(readTimeout))
	var r podapi.Request
	files, err := c.Receive(&r)
	frame.CloseAll(files)
	if err != nil {
		s.log.Warn("request of the CNI plugin could not be read", "error", err)
		_ = c.Send(&podapi.Response{Error: &podapi.Error{Code: podapi.CodeBadRequest, Message: "the request could not be read: " + err.Error()}})
		return
	}
	began := time.Now()
	c.SetDeadline(began.Add(serveTimeout + readTimeout))
	// A request that was begun is finished, also when the agent is told to end: a pod half wired helps nobody.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), serveTimeout)
	defer cancel()
	resp := s.answer(ctx, &r)
	attrs := []any{"op", r.Op, "pod", r.Namespace + "/" + r.Pod, "container", r.ContainerID, "took", time.Since(began), "wired", resp.Wired}
	if resp.Error != nil {
		s.log.Error("request of the CNI plugin failed", append(attrs, "code", resp.Error.Code, "error", resp.Error.Error())...)
	} else {
		s.log.Debug("request of the CNI plugin served", attrs...)
	}
	if err := c.Send(resp); err != nil {
		s.log.Warn("the CNI plugin did not wait for the answer", append(attrs, "error", err)...)
	}
}

func (s *Server) answer(ctx context.Context, r *podapi.Request) (resp *podapi.Response) {
	resp = &podapi.Response{}
	defer func() {
		if p := recover(); p != nil { // one bad request must not end the node's agent
			s.log.Error("request of the CNI plugin panicked", "op", r.Op, "panic", p)
			resp = &podapi.Response{Error: &podapi.Error{Code: podapi.CodeInternal, Message: fmt.Sprint("the agent panicked: ", p)}}
		}
	}()
	if r.Version != podapi.Version {
		resp.Error = &podapi.Error{Code: podapi.CodeBadRequest,
			Message: fmt.Sprintf("the plugin speaks version %d, the agent speaks %d", r.Version, podapi.Version),
			Hint:    "install the conduit-cni binary that belongs to the agent"}
		return resp
	}
	switch r.Op {
	case podapi.Add:
		resp.Wired, resp.Error = s.h.Add(ctx, r)
	case podapi.Del:
		resp.Error = s.h.Del(ctx, r)
	case podapi.Check:
		resp.Wired, resp.Error = s.h.Check(ctx, r)
	case podapi.Status:
		resp.Error = s.h.Status(ctx)
	case podapi.GC:
		resp.Error = s.h.GC(ctx, r)
	default:
		resp.Error = &podapi.Error{Code: podapi.CodeBadRequest, Message: fmt.Sprintf("unknown operation %q", r.Op)}
	}
	return resp
}
