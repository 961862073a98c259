// Package grpctest has the streaming calls of gRPC's own test service, for servers of tests.
package grpctest

import (
	"bytes"
	"errors"
	"io"

	"google.golang.org/grpc/codes"
	rpc "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// Streams serves them.
type Streams struct {
	rpc.UnimplementedTestServiceServer
	Cut func(error) // called, if not nil, when a FullDuplexCall does not end well, with why its context ended
}

// StreamingOutputCall answers with as many messages as it is told, and then fails if it is told.
func (*Streams) StreamingOutputCall(r *rpc.StreamingOutputCallRequest, out rpc.TestService_StreamingOutputCallServer) error {
	for i, p := range r.GetResponseParameters() {
		if err := out.Send(&rpc.StreamingOutputCallResponse{Payload: Filled(byte(i), int(p.GetSize()))}); err != nil {
			return err
		}
	}
	if r.GetResponseStatus().GetCode() != 0 {
		return status.Error(codes.Code(r.GetResponseStatus().GetCode()), r.GetResponseStatus().GetMessage())
	}
	return nil
}

// StreamingInputCall answers with how many bytes came.
func (*Streams) StreamingInputCall(in rpc.TestService_StreamingInputCallServer) error {
	total := 0
	for {
		r, err := in.Recv()
		if errors.Is(err, io.EOF) {
			return in.SendAndClose(&rpc.StreamingInputCallResponse{AggregatedPayloadSize: int32(total)})
		}
		if err != nil {
			return err
		}
		total += len(r.GetPayload().GetBody())
	}
}

// FullDuplexCall sends back every message, and a trailer in the end.
func (s *Streams) FullDuplexCall(both rpc.TestService_FullDuplexCallServer) error {
	for {
		r, err := both.Recv()
		if errors.Is(err, io.EOF) {
			both.SetTrailer(metadata.Pairs("in-trailer", "the end"))
			return nil
		}
		if err != nil {
			if s.Cut != nil {
				s.Cut(both.Context().Err())
			}
			return err
		}
		if err := both.Send(&rpc.StreamingOutputCallResponse{Payload: r.GetPayload()}); err != nil {
			return err
		}
	}
}

// Filled is a payload of n bytes b.
func Filled(b byte, n int) *rpc.Payload { return &rpc.Payload{Body: bytes.Repeat([]byte{b}, n)} }
