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
const (
	healthName  = "grpc.health.v1.Health"
	healthCheck = "/" + healthName + "/Check"
	healthWatch = "/" + healthName + "/Watch"
)

// The procedures of gRPC server reflection.
const (
	reflection      = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
	reflectionAlpha = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
)

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

func (h *health) register(serve func(path string, h http.Handler), options connect.HandlerOption) {
	limit := connect.WithReadMaxBytes(maxPublic)
	serve(healthCheck, connect.NewUnaryHandlerSimple(healthCheck, h.check, limit, options))
	serve(healthWatch, connect.NewServerStreamHandlerSimple(healthWatch, h.watch, limit, options))
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
