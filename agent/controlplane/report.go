package controlplane

import (
	"context"
	"maps"
	"slices"
	"time"

	"conduit.io/conduit/api/nodev1"
	"conduit.io/conduit/api/nodev1/nodev1connect"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
)

const (
	// reportEvery is how often counters are reported, and that the agent is alive: the controller waits 45 s.
	reportEvery = 10 * time.Second
	// reportPause is between two looks: while pods start, something changes all the time.
	reportPause = 100 * time.Millisecond
	// maxReport is how many pods go into one message: what the controller takes.
	maxReport = 1024
)

// Report is what there is to say of the node. Neither is changed afterwards.
type Report struct {
	Agent *nodev1.AgentState
	Pods  []*nodev1.PodState // each with its UID
}

// Reporter tells the controller what the kernel was seen to do with this node's pods. It is safe for concurrent use.
type Reporter struct {
	cfg    Config
	client nodev1connect.NodeServiceClient
	look   func(context.Context) Report
	kick   chan struct{}
}

// NewReporter makes a Reporter of what look finds; Run reports.
func NewReporter(cfg Config, look func(context.Context) Report) *Reporter {
	return &Reporter{cfg: cfg, look: look, kick: make(chan struct{}, 1),
		client: nodev1connect.NewNodeServiceClient(cfg.Client, cfg.URL, connect.WithGRPC(), connect.WithReadMaxBytes(maxMessage))}
}

// Kick has Run look again soon; it never blocks.
func (r *Reporter) Kick() {
	select {
	case r.kick <- struct{}{}:
	default:
	}
}

// Run reports until ctx ends.
func (r *Reporter) Run(ctx context.Context) {
	insist(ctx, r.follow, func(err error, again bool) {
		if !again {
			r.cfg.Log.Warn("node is not reported to the controller; trying again", "error", err)
		}
	})
}

// follow reports on one stream until it ends.
func (r *Reporter) follow(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := r.client.Report(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = stream.CloseResponse() }()
	defer func() { _ = stream.CloseRequest() }()
	over := make(chan error, 1)
	go func() {
		for {
			if _, err := stream.Receive(); err != nil {
				over <- err
				return
			}
		}
	}()
	tick := time.NewTicker(reportEvery)
	defer tick.Stop()
	var told told
	for {
		pause := time.After(reportPause)
		for _, m := range told.tell(r.look(ctx)) {
			if err := stream.Send(m); err != nil {
				return <-over // Send's error says less
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-over:
			return err
		case <-tick.C:
		case <-r.kick:
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-pause:
			}
		}
	}
}

// told is what a stream was told.
type told struct {
	begun bool
	pods  map[string]*nodev1.PodState
}

// tell is what to send so that the controller knows now. It is never nothing: that the agent lives is told, too.
func (t *told) tell(now Report) []*nodev1.ReportRequest {
	pods := make(map[string]*nodev1.PodState, len(now.Pods))
	var fresh []*nodev1.PodState
	for _, p := range now.Pods {
		if pods[p.GetUid()] = p; !proto.Equal(p, t.pods[p.GetUid()]) {
			fresh = append(fresh, p)
		}
	}
	first := &nodev1.ReportRequest{Full: !t.begun, Agent: now.Agent}
	for _, uid := range slices.Sorted(maps.Keys(t.pods)) {
		if pods[uid] == nil {
			first.RemovedPods = append(first.RemovedPods, uid)
		}
	}
	t.begun, t.pods = true, pods
	out := []*nodev1.ReportRequest{first}
	for part := range slices.Chunk(fresh, maxReport) {
		if last := out[len(out)-1]; len(last.Pods) == 0 {
			last.Pods = part
		} else {
			out = append(out, &nodev1.ReportRequest{Pods: part})
		}
	}
	return out
}
