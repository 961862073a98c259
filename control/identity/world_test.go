package identity

import (
	"bytes"
	"context"
	"crypto/x509"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"conduit.io/conduit/api/identityv1/identityv1connect"
	"conduit.io/conduit/control/access"
	certs "conduit.io/conduit/identity"
	"conduit.io/conduit/identity/remote"
	"conduit.io/conduit/mesh"
	"conduit.io/conduit/tests/apiserver"

	"connectrpc.com/connect"
	authv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

const domain = "cluster.local"

func identityOf(namespace, account string) mesh.Identity {
	return mesh.Identity{TrustDomain: domain, Namespace: namespace, ServiceAccount: account}
}

// clock is the time that the services live in: the real one, moved.
type clock struct{ ahead atomic.Int64 }

func (c *clock) now() time.Time          { return time.Now().Add(time.Duration(c.ahead.Load())) }
func (c *clock) advance(d time.Duration) { c.ahead.Add(int64(d)) }

// logs collects what services and agents log.
type logs struct {
	mu  sync.Mutex
	all bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.String()
}

// world is a cluster of an API server alone, with two replicas of the service.
type world struct {
	t        *testing.T
	client   *kubernetes.Clientset
	server   *apiserver.Server
	clock    clock
	logs     logs
	replicas [2]*replica
}

type replica struct {
	*Service
	url  string
	stop context.CancelFunc
}

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, server: apiserver.Start(t)}
	w.client = must[*kubernetes.Clientset](t)(kubernetes.NewForConfig(w.server.Config))
	ctx := t.Context()
	for _, name := range []string{"conduit", "shop"} {
		must[*corev1.Namespace](t)(w.client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}))
	}
	for _, name := range []string{"n1", "n2"} {
		must[*corev1.Node](t)(w.client.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}))
		w.pod("conduit", "conduit-agent-"+name, AgentAccount, name)
	}
	w.pod("shop", "web-1", "web", "n1")
	w.pod("shop", "api-1", "api", "n2")
	for i := range w.replicas {
		w.replicas[i] = w.replica()
	}
	return w
}

// replica starts a Service with its API.
func (w *world) replica() *replica {
	w.t.Helper()
	log := slog.New(slog.NewTextHandler(&w.logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	s := must[*Service](w.t)(New(Config{Client: w.client, DNSNames: []string{"conduit-controller.conduit.svc"}, RootDelay: 5 * time.Second,
		Log: log, Now: w.clock.now}))
	gate := &access.Gate{Authn: s, Rules: map[string]access.Rule{identityv1connect.IdentityServiceGetRootsProcedure: access.Public,
		identityv1connect.IdentityServiceCertifyProcedure: access.AgentsOnly, identityv1connect.IdentityServiceWatchRootsProcedure: access.AgentsOnly}}
	_, api := identityv1connect.NewIdentityServiceHandler(s, connect.WithReadMaxBytes(MaxMessage))
	mux := gate.Handler(api)
	l := must[net.Listener](w.t)(net.Listen("tcp", "127.0.0.1:0"))
	h := &http.Server{Handler: mux, TLSConfig: s.TLSConfig(), ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelInfo)}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { s.Run(ctx) })
	wg.Go(func() { _ = h.ServeTLS(l, "", "") }) // it is closed
	w.t.Cleanup(func() { cancel(); h.Close(); wg.Wait() })
	return &replica{Service: s, url: "https://" + l.Addr().String(), stop: cancel}
}

// lead makes a replica the leader until the function that it returns is called.
func (w *world) lead(r *replica) (end func()) {
	ctx, cancel := context.WithCancel(w.t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := r.Lead(ctx); err != nil {
			w.t.Error(err)
		}
	})
	return func() { cancel(); wg.Wait() }
}

// eventually waits until the condition holds.
func (w *world) eventually(what string, holds func() bool) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			w.t.Fatalf("it never came that %s\n%s", what, w.logs.String())
		}
	}
}

func (w *world) pod(namespace, name, account, node string) *corev1.Pod {
	w.t.Helper()
	_, err := w.client.CoreV1().ServiceAccounts(namespace).Get(w.t.Context(), account, metav1.GetOptions{})
	if err != nil {
		must[*corev1.ServiceAccount](w.t)(w.client.CoreV1().ServiceAccounts(namespace).Create(w.t.Context(),
			&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: account}}, metav1.CreateOptions{}))
	}
	return must[*corev1.Pod](w.t)(w.client.CoreV1().Pods(namespace).Create(w.t.Context(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PodSpec{NodeName: node, ServiceAccountName: account, Containers: []corev1.Container{{Name: "c", Image: "none"}}}}, metav1.CreateOptions{}))
}

// token is a real one, bound to a pod if pod is not empty.
func (w *world) token(namespace, account, pod, audience string) string {
	w.t.Helper()
	req := &authv1.TokenRequest{Spec: authv1.TokenRequestSpec{Audiences: []string{audience}}}
	if pod != "" {
		p := must[*corev1.Pod](w.t)(w.client.CoreV1().Pods(namespace).Get(w.t.Context(), pod, metav1.GetOptions{}))
		req.Spec.BoundObjectRef = &authv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: pod, UID: p.UID}
	}
	res := must[*authv1.TokenRequest](w.t)(w.client.CoreV1().ServiceAccounts(namespace).CreateToken(w.t.Context(), account, req, metav1.CreateOptions{}))
	return res.Status.Token
}

// agent is what a node has: an issuer that asks a replica, and a keeper with it.
type agent struct {
	*certs.Keeper
	*remote.Issuer
	dir    string
	failed atomic.Int64
}

func (w *world) agent(r *replica, node string) *agent {
	w.t.Helper()
	a := &agent{dir: w.t.TempDir()}
	w.write(a.dir, "token", w.token("conduit", AgentAccount, "conduit-agent-"+node, Audience))
	b, _ := r.authority.trust()
	w.write(a.dir, "roots", string(b.pem()))
	log := slog.New(slog.NewTextHandler(&w.logs, nil))
	a.Issuer = remote.New(remote.Config{URL: r.url, TokenFile: filepath.Join(a.dir, "token"), RootsFile: filepath.Join(a.dir, "roots"),
		Controller: identityOf("conduit", ControllerAccount), Now: w.clock.now, Log: log})
	a.Keeper = certs.NewKeeper(a.Issuer, w.clock.now)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		a.Run(ctx, func([]*certs.Leaf) {}, func(err error) {
			a.failed.Add(1)
			log.Error("agent", "error", err)
		})
	})
	w.t.Cleanup(func() { cancel(); wg.Wait(); a.HTTPClient().CloseIdleConnections() })
	return a
}

func (w *world) write(dir, name, content string) {
	w.t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// verify checks a chain under a bundle, and returns the root's fingerprint.
func (w *world) verify(chain, roots []byte) (root string, err error) {
	pool, between := x509.NewCertPool(), x509.NewCertPool()
	pool.AppendCertsFromPEM(roots)
	first, rest, _ := strings.Cut(string(chain), "-----END CERTIFICATE-----\n")
	between.AppendCertsFromPEM([]byte(rest))
	leaf, err := parseOne(first + "-----END CERTIFICATE-----\n")
	if err != nil {
		return "", err
	}
	paths, err := leaf.Verify(x509.VerifyOptions{Roots: pool, Intermediates: between, CurrentTime: w.clock.now()})
	if err != nil {
		return "", err
	}
	return fingerprint(paths[0][len(paths[0])-1].Raw), nil
}
