package server

import (
	"context"
	"errors"
	"net/http"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/grpc/health/grpc_health_v1"
)

// healthName is the service of the gRPC Health Checking Protocol.
const healthName = "grpc.health.v1.Health"

// healthEvery is how often a watcher's answer is looked at again.
const healthEvery = time.Second

type health struct {
	names    []string
	ready    func() error
	draining <-chan struct{}
}

func newHealth(names []string, ready func() error, draining <-chan struct{}) *health {
	return &health{names: names, ready: ready, draining: draining}
}

func (h *health) register(mux *http.ServeMux) {
	limit := connect.WithReadMaxBytes(maxPublic)
	mux.Handle("/"+healthName+"/Check", connect.NewUnaryHandlerSimple("/"+healthName+"/Check", h.check, limit))
	mux.Handle("/"+healthName+"/Watch", connect.NewServerStreamHandlerSimple("/"+healthName+"/Watch", h.watch, limit))
}

func (h *health) status(service string) grpc_health_v1.HealthCheckResponse_ServingStatus {
	known := service == ""
	for _, n := range h.names {
		known = known || n == service
	}
	select {
	case <-h.draining:
		return grpc_health_v1.HealthCheckResponse_NOT_SERVING
	default:
	}
	switch {
	case !known:
		return grpc_health_v1.HealthCheckResponse_SERVICE_UNKNOWN
	case h.ready != nil && h.ready() != nil:
		return grpc_health_v1.HealthCheckResponse_NOT_SERVING
	}
	return grpc_health_v1.HealthCheckResponse_SERVING
}

func (h *health) check(_ context.Context, req *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	status := h.status(req.Service)
	if status == grpc_health_v1.HealthCheckResponse_SERVICE_UNKNOWN {
		return nil, connect.NewError(connect.CodeNotFound, errors.New("no such service"))
	}
	return &grpc_health_v1.HealthCheckResponse{Status: status}, nil
}

func (h *health) watch(ctx context.Context, req *grpc_health_v1.HealthCheckRequest, out *connect.ServerStream[grpc_health_v1.HealthCheckResponse]) error {
	tick := time.NewTicker(healthEvery)
	defer tick.Stop()
	for last := grpc_health_v1.HealthCheckResponse_ServingStatus(-1); ; {
		if now := h.status(req.Service); now != last {
			last = now
			if err := out.Send(&grpc_health_v1.HealthCheckResponse{Status: now}); err != nil {
				return err
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		case <-h.draining:
			return connect.NewError(connect.CodeUnavailable, errors.New("this replica of the controller is going away"))
		}
	}
}
