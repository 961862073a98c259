package control

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	identityv1 "conduit.io/conduit/api/identityv1"
	"conduit.io/conduit/control/discovery"
	"conduit.io/conduit/control/identity"
	"conduit.io/conduit/control/kube"
	"conduit.io/conduit/control/labels"
	"conduit.io/conduit/control/lead"
	"conduit.io/conduit/control/nodes"
	"conduit.io/conduit/control/server"
	"conduit.io/conduit/mesh"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// ClusterConfig says how a replica of the controller runs on Kubernetes.
type ClusterConfig struct {
	Kube        *rest.Config
	Addr        string // host:port of the API, TLS
	Admin       string // host:port of /healthz, /readyz, /metrics and /version, in the clear
	Advertise   string // host:port where the other replicas reach Addr
	Namespace   string // the controller's
	TrustDomain string
	DrainTime   time.Duration // over which streams are ended; default 5 s
	Log         *slog.Logger
}

// cluster is a replica of the controller on Kubernetes.
type cluster struct {
	cfg      ClusterConfig
	started  time.Time
	clients  clients
	index    *discovery.Index
	streams  *discovery.Server
	identity *identity.Service
	election *lead.Election
	registry *nodes.Registry
	writer   *nodes.Writer
	api      *server.Server
	drain    chan struct{}
	serving  atomic.Bool // the API is listened for
	watcher  *kube.Watcher
}

// clients are how the parts of the controller reach the API server.
type clients struct {
	own        *kubernetes.Clientset // the controller's Secret and ConfigMap
	lease      *kubernetes.Clientset
	questions  *kubernetes.Clientset // who calls, and whether they may
	conditions *kubernetes.Clientset
	taints     *kubernetes.Clientset
	labels     *kubernetes.Clientset // Events of what is misspelt
}

// newClients bounds each part by what a large cluster needs of it, and its API server can give. 50,000 pods that are enrolled for
// the first time have their conditions after eight minutes; 1000 agents that come at once are known after five seconds.
func newClients(cfg *rest.Config) (c clients, err error) {
	for _, one := range []struct {
		to        **kubernetes.Clientset
		perSecond float32
		atOnce    int
	}{{&c.own, 5, 10}, {&c.lease, 5, 10}, {&c.questions, 200, 400}, {&c.conditions, 100, 200}, {&c.taints, 50, 100}, {&c.labels, 2, 20}} {
		if *one.to, err = kube.Client(cfg, one.perSecond, one.atOnce); err != nil {
			return c, err
		}
	}
	return c, nil
}

// RunCluster serves until ctx ends, and drains.
func RunCluster(ctx context.Context, cfg ClusterConfig) error {
	c, err := newCluster(ctx, cfg)
	if err != nil {
		return err
	}
	admin, err := new(net.ListenConfig).Listen(ctx, "tcp", cfg.Admin)
	if err != nil {
		return fmt.Errorf("serve health and metrics: %w", err)
	}
	return c.serve(ctx, func() (net.Listener, error) { return new(net.ListenConfig).Listen(ctx, "tcp", cfg.Addr) }, admin)
}

func newCluster(ctx context.Context, cfg ClusterConfig) (*cluster, error) {
	c := &cluster{cfg: cfg, started: time.Now(), index: discovery.New(), drain: make(chan struct{})}
	if c.cfg.DrainTime == 0 {
		c.cfg.DrainTime = 5 * time.Second
	}
	var err error
	if c.clients, err = newClients(cfg.Kube); err != nil {
		return nil, err
	}
	host := "conduit-controller." + cfg.Namespace
	c.identity, err = identity.New(identity.Config{Client: c.clients.own, Questions: c.clients.questions, Namespace: cfg.Namespace, TrustDomain: cfg.TrustDomain,
		DNSNames: []string{c.peerName(), host, host + ".svc.cluster.local"}, Pods: c.index,
		Draining: c.drain, DrainTime: c.cfg.DrainTime, Log: cfg.Log})
	if err != nil {
		return nil, err
	}
	c.election = lead.New(lead.Config{Client: c.clients.lease, Namespace: cfg.Namespace, Addr: cfg.Advertise, Peer: c.peer, Drain: c.drain, Log: cfg.Log})
	c.registry = nodes.NewRegistry(time.Now, func(node string) { c.writer.Changed(node) })
	c.writer = nodes.NewWriter(c.clients.conditions.CoreV1(), c.clients.taints.CoreV1(), c.registry, c.index, cfg.Log)
	c.streams = discovery.NewServer(c.index, discovery.Config{Draining: c.drain, Drain: c.cfg.DrainTime, Synced: c.synced, Log: cfg.Log})
	c.api, err = server.New(server.Config{TLS: c.identity.TLSConfig(), Authn: c.identity, Authz: kube.NewAuthorizer(c.clients.questions.AuthorizationV1()),
		Discovery: c.streams, Identity: c.identity, Nodes: nodes.NewServer(c.registry, c.drain), Leader: c.election.Forward,
		Ready: c.ready, Drain: c.drain, DrainTime: c.cfg.DrainTime, Log: cfg.Log})
	if err != nil {
		return nil, err
	}
	c.watcher, err = kube.Watch(ctx, cfg.Kube, c.index, cfg.Log)
	return c, err
}

func (c *cluster) synced() bool { return c.watcher != nil && c.watcher.Synced() }

// ready says why the replica cannot do its work.
func (c *cluster) ready() error {
	if !c.synced() {
		return errors.New("the cluster has not been read yet")
	}
	return c.identity.Ready()
}

func (c *cluster) peerName() string { return "conduit-controller." + c.cfg.Namespace + ".svc" }

// peer is how to speak to another replica: it has the same names, under one of the roots of now.
func (c *cluster) peer() (*tls.Config, error) {
	res, err := c.identity.GetRoots(context.Background(), &identityv1.GetRootsRequest{})
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	for _, der := range res.Roots.Certificates {
		root, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		pool.AddCert(root)
	}
	return &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool, ServerName: c.peerName(), NextProtos: []string{"h2"}}, nil
}

// serve runs everything until ctx ends. The election ends first, so that another replica leads while this one drains.
func (c *cluster) serve(ctx context.Context, listen func() (net.Listener, error), admin net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	rest, stop := context.WithCancel(context.WithoutCancel(ctx))
	h := &http.Server{Handler: c.adminRoutes(), ReadHeaderTimeout: 10 * time.Second}
	var work, base sync.WaitGroup
	work.Go(func() { c.election.Run(ctx, c.lead) })
	base.Go(func() { c.identity.Run(rest) })
	base.Go(func() { _ = h.Serve(admin) }) // it is closed
	err := c.serveAPI(ctx, listen)
	cancel()
	work.Wait()
	stop()
	h.Close()
	base.Wait()
	c.watcher.Wait()
	c.cfg.Log.Info("controller ends")
	return err
}

// serveAPI listens when there is something to say: until then agents that come are refused, which costs nothing, while handshakes and
// tokens of a thousand of them would keep this replica, and the API server, from what it starts with.
func (c *cluster) serveAPI(ctx context.Context, listen func() (net.Listener, error)) error {
	for look := time.NewTicker(20 * time.Millisecond); c.ready() != nil; {
		select {
		case <-look.C:
		case <-ctx.Done():
			return nil
		}
	}
	l, err := listen()
	if err != nil {
		return fmt.Errorf("serve the controller's API: %w", err)
	}
	c.serving.Store(true)
	debug.FreeOSMemory() // to read all objects takes more than to keep what is needed of them
	c.cfg.Log.Info("controller serves", "address", l.Addr().String(), "version", mesh.Version())
	return c.api.Serve(ctx, l)
}

// lead is what only the leader does.
func (c *cluster) lead(ctx context.Context) {
	defer c.registry.Reset()
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := c.identity.Lead(ctx); err != nil {
			c.cfg.Log.Error("the issuer is not looked after", "error", err.Error())
		}
	})
	wg.Go(func() { c.writer.Run(ctx) })
	wg.Go(func() { labels.New(c.clients.labels.CoreV1(), c.index, c.cfg.Log).Run(ctx) })
	wg.Wait()
}

func (c *cluster) adminRoutes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		select {
		case <-c.drain:
			writeJSON(w, http.StatusServiceUnavailable, failure{Error: "draining"})
			return
		default:
		}
		err := c.ready()
		if err == nil && !c.serving.Load() {
			err = errors.New("the API is not served yet")
		}
		if err != nil {
			writeJSON(w, http.StatusServiceUnavailable, failure{Error: err.Error()})
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /version", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, map[string]string{"version": mesh.Version()})
	})
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		c.metrics(w)
	})
	return mux
}

func (c *cluster) metrics(w io.Writer) {
	process(w, c.started)
	c.streams.Metrics().Write(w)
	c.watcher.Write(w)
	c.registry.Write(w)
	c.writer.Write(w)
	c.election.Write(w)
	c.api.Write(w)
	c.identity.WriteMetrics(w)
}
