package demoapp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// The gRPC service demo.Votes, on well-known messages so that no code has to be generated:
//
//	rpc Vote(StringValue) returns (StringValue)            the candidate comes back
//	rpc Watch(Int64Value) returns (stream Int64Value)      counts down to 1
//	rpc Tally(stream Int64Value) returns (stream Int64Value)  the running sum
const votesService = "demo.Votes"

const streamLength = 5 // messages of a stream, each way

type votesServer struct {
	header metadata.MD
}

var votesDesc = grpc.ServiceDesc{
	ServiceName: votesService,
	HandlerType: (*any)(nil),
	Methods:     []grpc.MethodDesc{{MethodName: "Vote", Handler: handleVote}},
	Streams: []grpc.StreamDesc{
		{StreamName: "Watch", Handler: handleWatch, ServerStreams: true},
		{StreamName: "Tally", Handler: handleTally, ServerStreams: true, ClientStreams: true},
	},
}

func serveVotes(l net.Listener, cfg Config) (stop func()) {
	s := grpc.NewServer()
	s.RegisterService(&votesDesc, &votesServer{header: metadata.Pairs(nodeField, cfg.Node)})
	go s.Serve(l)
	return s.Stop
}

func handleVote(srv any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
	in := new(wrapperspb.StringValue)
	if err := decode(in); err != nil {
		return nil, err
	}
	if err := grpc.SetHeader(ctx, srv.(*votesServer).header); err != nil {
		return nil, err
	}
	return wrapperspb.String(in.Value), nil
}

func handleWatch(srv any, s grpc.ServerStream) error {
	in := new(wrapperspb.Int64Value)
	if err := s.RecvMsg(in); err != nil {
		return err
	}
	if err := s.SetHeader(srv.(*votesServer).header); err != nil {
		return err
	}
	for i := min(in.Value, 1000); i > 0; i-- {
		if err := s.SendMsg(wrapperspb.Int64(i)); err != nil {
			return err
		}
	}
	return nil
}

func handleTally(srv any, s grpc.ServerStream) error {
	if err := s.SetHeader(srv.(*votesServer).header); err != nil {
		return err
	}
	for sum := int64(0); ; {
		in := new(wrapperspb.Int64Value)
		if err := s.RecvMsg(in); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		sum += in.Value
		if err := s.SendMsg(wrapperspb.Int64(sum)); err != nil {
			return err
		}
	}
}

// votesCaller is the client of demo.Votes: one connection for everything, so that only a mesh can spread its calls.
type votesCaller struct {
	conn  *grpc.ClientConn
	node  string
	tally *tally
}

func (a *app) newVotesCaller() (*votesCaller, error) {
	addr := a.cfg.Targets[Votes]
	if addr == "" {
		return nil, fmt.Errorf("role %s needs --target %s=HOST:PORT", a.cfg.Role, Votes)
	}
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithAuthority(Votes))
	if err != nil {
		return nil, err
	}
	return &votesCaller{conn: conn, node: a.cfg.Node, tally: a.tally}, nil
}

func (v *votesCaller) close() { v.conn.Close() }

// vote is the unary call.
func (v *votesCaller) vote(ctx context.Context, n int64) error {
	return v.counted(ctx, func(ctx context.Context, header *metadata.MD) error {
		want, got := fmt.Sprintf("emoji-%d", n), new(wrapperspb.StringValue)
		err := v.conn.Invoke(ctx, "/"+votesService+"/Vote", wrapperspb.String(want), got, grpc.Header(header))
		if err == nil && got.Value != want {
			err = fmt.Errorf("voted for %q, counted for %q", want, got.Value)
		}
		return err
	})
}

// watch is the server's stream.
func (v *votesCaller) watch(ctx context.Context, _ int64) error {
	return v.stream(ctx, &votesDesc.Streams[0], func(s grpc.ClientStream) error {
		if err := s.SendMsg(wrapperspb.Int64(streamLength)); err != nil {
			return err
		}
		if err := s.CloseSend(); err != nil {
			return err
		}
		for want := int64(streamLength); want > 0; want-- {
			if err := receive(s, want); err != nil {
				return err
			}
		}
		return receiveEnd(s)
	})
}

// tallyUp is the stream in both directions: every answer is awaited before the next message.
func (v *votesCaller) tallyUp(ctx context.Context, n int64) error {
	return v.stream(ctx, &votesDesc.Streams[1], func(s grpc.ClientStream) error {
		for i := int64(1); i <= streamLength; i++ {
			if err := s.SendMsg(wrapperspb.Int64(n)); err != nil {
				return err
			}
			if err := receive(s, i*n); err != nil {
				return err
			}
		}
		if err := s.CloseSend(); err != nil {
			return err
		}
		return receiveEnd(s)
	})
}

func receive(s grpc.ClientStream, want int64) error {
	got := new(wrapperspb.Int64Value)
	if err := s.RecvMsg(got); err != nil {
		return err
	}
	if got.Value != want {
		return fmt.Errorf("stream: want %d, got %d", want, got.Value)
	}
	return nil
}

func receiveEnd(s grpc.ClientStream) error {
	if err := s.RecvMsg(new(wrapperspb.Int64Value)); !errors.Is(err, io.EOF) {
		return fmt.Errorf("stream: want its end, got %v", err)
	}
	return nil
}

func (v *votesCaller) stream(ctx context.Context, desc *grpc.StreamDesc, talk func(grpc.ClientStream) error) error {
	return v.counted(ctx, func(ctx context.Context, header *metadata.MD) error {
		s, err := v.conn.NewStream(ctx, desc, "/"+votesService+"/"+desc.StreamName)
		if err != nil {
			return err
		}
		if err := talk(s); err != nil {
			return err
		}
		*header, err = s.Header()
		return err
	})
}

// counted makes one call with a deadline and counts it.
func (v *votesCaller) counted(ctx context.Context, call func(ctx context.Context, header *metadata.MD) error) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var header metadata.MD
	err := call(ctx, &header)
	server := ""
	if h := header.Get(nodeField); len(h) > 0 {
		server = h[0]
	}
	if err == nil && server == "" {
		err = errors.New("the answer does not name its node")
	}
	v.tally.count(Votes, "grpc", server != v.node, err)
	return err
}
