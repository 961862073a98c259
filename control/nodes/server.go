package nodes

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"
	"unicode/utf8"

	nodev1 "conduit.io/conduit/api/nodev1"
	"conduit.io/conduit/control/access"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
)

// Limits, as api/proto documents them.
const (
	maxReported = 1024 // pods in a message
	maxReason   = 128  // bytes that are kept of a reason, and written
	maxText     = 1024 // of a message
	maxState    = 4096 // bytes of what is said of a pod, or of an agent, then
	maxNames    = 1000
	maxPage     = 500
	defaultPage = 100
	silence     = 45 * time.Second
)

// Server is the NodeService of the replica that leads. It is safe for concurrent use.
type Server struct {
	r        *Registry
	draining <-chan struct{}
	silence  time.Duration
}

// NewServer serves r until draining is closed; nil: always.
func NewServer(r *Registry, draining <-chan struct{}) *Server {
	return &Server{r: r, draining: draining, silence: silence}
}

type received struct {
	m   *nodev1.ReportRequest
	err error
}

// Report is the NodeService's.
func (s *Server) Report(ctx context.Context, stream *connect.BidiStream[nodev1.ReportRequest, nodev1.ReportResponse]) error {
	ended := make(chan struct{}, 1)
	caller := access.From(ctx)
	st := s.r.Open(caller.Node, caller.Pod, func() { ended <- struct{}{} })
	defer st.Close()
	messages := make(chan received)
	go func() {
		for {
			m, err := stream.Receive()
			select {
			case messages <- received{m, err}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	}()
	quiet := time.NewTimer(s.silence)
	defer quiet.Stop()
	for n := uint64(1); ; n++ {
		select {
		case got := <-messages:
			if errors.Is(got.err, io.EOF) {
				return nil
			}
			if got.err != nil {
				return got.err
			}
			if err := s.take(st, got.m); err != nil {
				return err
			}
			quiet.Reset(s.silence)
			if err := stream.Send(&nodev1.ReportResponse{Received: n}); err != nil {
				return err
			}
		case <-quiet.C:
			return connect.NewError(connect.CodeDeadlineExceeded, errors.New("nothing was reported for too long"))
		case <-ended:
			return connect.NewError(connect.CodeAborted, errors.New("a newer stream of this agent has taken the place of this one, or another replica leads"))
		case <-s.draining:
			return connect.NewError(connect.CodeUnavailable, errors.New("this replica of the controller is going away"))
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *Server) take(st *Stream, m *nodev1.ReportRequest) error {
	if len(m.Pods) > maxReported || len(m.RemovedPods) > maxReported {
		return connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("more than %d pods in one message", maxReported))
	}
	for _, p := range m.Pods {
		p.Reason, p.Message = cut(p.Reason, maxReason), cut(p.Message, maxText)
		switch {
		case p.Uid == "":
			return connect.NewError(connect.CodeInvalidArgument, errors.New("a pod without its uid"))
		case proto.Size(p) > maxState:
			return connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("more than %d bytes about pod %.300q", maxState, p.Namespace+"/"+p.Name))
		}
	}
	if a := m.Agent; a != nil {
		a.Reason, a.Message = cut(a.Reason, maxReason), cut(a.Message, maxText)
	}
	if n := proto.Size(m.Agent); n > maxState {
		return connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("%d bytes about the agent, at most %d are taken", n, maxState))
	}
	if !st.Take(m) {
		return connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("the first report must be full and have the agent's state, and a node has at most %d pods", maxPods))
	}
	return nil
}

// cut is at most the first n bytes of s, whole characters.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

// ListNodes is the NodeService's.
func (s *Server) ListNodes(_ context.Context, req *nodev1.ListNodesRequest) (*nodev1.ListNodesResponse, error) {
	if len(req.Nodes) > maxNames {
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("more than %d nodes are named", maxNames))
	}
	size := int(req.PageSize)
	if size == 0 {
		size = defaultPage
	}
	size = min(size, maxPage)
	res := &nodev1.ListNodesResponse{}
	for _, name := range s.r.Names() {
		if name <= req.PageToken || len(req.Nodes) > 0 && !slices.Contains(req.Nodes, name) {
			continue
		}
		if len(res.Nodes) == size {
			res.NextPageToken = res.Nodes[size-1].Name
			break
		}
		if n := s.r.Get(name, req.Pods); n != nil {
			res.Nodes = append(res.Nodes, n)
		}
	}
	return res, nil
}
