// Package lead has one replica of the controller lead, by a Lease, and passes on to it what only it can answer.
package lead

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync/atomic"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// LeaseName is the name of the Lease, in the controller's namespace.
const LeaseName = "conduit-controller"

// Config says who this replica is.
type Config struct {
	Client    kubernetes.Interface
	Namespace string
	Addr      string // host:port where the other replicas reach this one; it is also its name in the Lease
	// Peer is how to speak TLS to another replica: the roots, and the name that its certificate must have.
	Peer  func() (*tls.Config, error)
	Drain <-chan struct{} // closed when calls that are passed on are to end
	Log   *slog.Logger
}

// Election is one replica's part in it. It is safe for concurrent use.
type Election struct {
	cfg    Config
	leads  atomic.Bool
	leader atomic.Pointer[string] // its Addr; nil: not known
}

// New makes an Election; call Run.
func New(cfg Config) *Election { return &Election{cfg: cfg} }

// Leads reports whether this replica leads, as far as it knows. Writes must be safe under two leaders all the same: a
// Lease may be lost without notice.
func (e *Election) Leads() bool { return e.leads.Load() }

// The times of the Lease: a leader that is gone is replaced after at most leaseTime.
const (
	leaseTime = 15 * time.Second
	renewTime = 10 * time.Second
	retryTime = 2 * time.Second
)

// Run takes part until ctx ends. While this replica leads, lead runs, with a context that ends with the lead.
func (e *Election) Run(ctx context.Context, lead func(context.Context)) {
	lock := &resourcelock.LeaseLock{LeaseMeta: metav1.ObjectMeta{Namespace: e.cfg.Namespace, Name: LeaseName},
		Client: e.cfg.Client.CoordinationV1(), LockConfig: resourcelock.ResourceLockConfig{Identity: e.cfg.Addr}}
	for ctx.Err() == nil {
		over := make(chan struct{})
		elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
			Lock: lock, LeaseDuration: leaseTime, RenewDeadline: renewTime, RetryPeriod: retryTime, ReleaseOnCancel: true,
			Callbacks: leaderelection.LeaderCallbacks{
				OnStartedLeading: func(ctx context.Context) {
					defer close(over)
					e.leads.Store(true)
					e.cfg.Log.Info("this replica leads")
					lead(ctx)
					<-ctx.Done()
				},
				OnStoppedLeading: func() {
					if e.leads.Swap(false) {
						<-over // nobody leads twice at one time
						e.cfg.Log.Info("this replica leads no more")
					}
				},
				OnNewLeader: func(addr string) { e.leader.Store(&addr) },
			}})
		if err != nil { // the times contradict each other
			panic(err)
		}
		elector.Run(ctx)
	}
}

// Write writes the election's metrics in the Prometheus text exposition format.
func (e *Election) Write(w io.Writer) {
	const name = "conduit_controller_leads"
	leads := 0
	if e.Leads() {
		leads = 1
	}
	fmt.Fprintf(w, "# HELP %s 1 while this replica leads.\n# TYPE %s gauge\n%s %d\n", name, name, name, leads)
}

// forwarded marks requests that come from another replica: they are not passed on again.
const forwarded = "Conduit-Forwarded"

// Forward answers r by the leader, and reports true, unless this replica leads: then it does nothing. The leader checks the
// caller itself.
func (e *Election) Forward(w http.ResponseWriter, r *http.Request) bool {
	if e.Leads() {
		return false
	}
	addr := e.leader.Load()
	if addr == nil || *addr == e.cfg.Addr || *addr == "" || r.Header.Get(forwarded) != "" {
		http.Error(w, "no replica of the controller leads now: try again", http.StatusServiceUnavailable)
		return true
	}
	cfg, err := e.cfg.Peer()
	if err != nil {
		http.Error(w, "the leading replica cannot be reached: try again", http.StatusServiceUnavailable)
		return true
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	go func() {
		select {
		case <-e.cfg.Drain:
			cancel()
		case <-ctx.Done():
		}
	}()
	// A connection of its own for each call: they are few, and long.
	transport := &http.Transport{TLSClientConfig: cfg, ForceAttemptHTTP2: true, TLSHandshakeTimeout: 5 * time.Second,
		HTTP2: &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 10 * time.Second}}
	defer transport.CloseIdleConnections()
	(&httputil.ReverseProxy{Transport: transport, FlushInterval: -1,
		ErrorLog: slog.NewLogLogger(e.cfg.Log.Handler(), slog.LevelDebug),
		Rewrite: func(p *httputil.ProxyRequest) {
			p.SetURL(&url.URL{Scheme: "https", Host: *addr})
			p.Out.Header.Set(forwarded, "1")
			p.Out.Header.Set("Te", "trailers") // gRPC servers want to see it
		}}).ServeHTTP(w, r.WithContext(ctx))
	return true
}
