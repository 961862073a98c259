// Package apiserver runs a real kube-apiserver and etcd for a test, on loopback, with nothing else of a cluster.
package apiserver

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/rest"
)

// Admin is the token of a member of system:masters.
const Admin = "admin"

// Server is a running API server.
type Server struct {
	Config *rest.Config // as Admin
	t      testing.TB
	args   []string
	api    *process
}

// Start runs etcd and kube-apiserver until the test ends. It skips the test where they are missing: they are looked for in
// $TEST_ASSET_KUBE_APISERVER and $TEST_ASSET_ETCD, where tests/cluster keeps what it builds, and in $PATH.
func Start(t testing.TB) *Server {
	t.Helper()
	etcd, api := find(t, "etcd"), find(t, "kube-apiserver")
	dir := t.TempDir()
	client, peer, secure := port(t), port(t), port(t)
	run(t, filepath.Join(dir, "etcd.log"), etcd, "--data-dir", filepath.Join(dir, "etcd"), "--unsafe-no-fsync=true",
		"--listen-client-urls", "http://127.0.0.1:"+client, "--advertise-client-urls", "http://127.0.0.1:"+client,
		"--listen-peer-urls", "http://127.0.0.1:"+peer, "--initial-advertise-peer-urls", "http://127.0.0.1:"+peer,
		"--initial-cluster", "default=http://127.0.0.1:"+peer)
	key, tokens := filepath.Join(dir, "sa.key"), filepath.Join(dir, "tokens.csv")
	write(t, key, accountKey(t))
	write(t, tokens, []byte(Admin+",admin,1,system:masters\n"))
	s := &Server{t: t, args: []string{filepath.Join(dir, "apiserver.log"), api, "--etcd-servers", "http://127.0.0.1:" + client,
		"--bind-address", "127.0.0.1", "--secure-port", secure, "--cert-dir", filepath.Join(dir, "certs"),
		"--service-cluster-ip-range", "10.96.0.0/16", "--token-auth-file", tokens, "--authorization-mode", "RBAC",
		"--service-account-issuer", "https://kubernetes.default.svc", "--service-account-key-file", key,
		"--service-account-signing-key-file", key, "--disable-admission-plugins", "ServiceAccount"}}
	s.Config = &rest.Config{Host: "https://127.0.0.1:" + secure, BearerToken: Admin, QPS: 1000, Burst: 1000,
		TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
	s.Up()
	return s
}

// Up starts the API server, and returns when it is ready.
func (s *Server) Up() {
	s.t.Helper()
	s.api = run(s.t, s.args[0], s.args[1], s.args[2:]...)
	s.awaitReady()
}

// Down kills the API server; etcd goes on.
func (s *Server) Down() { s.api.end() }

func (s *Server) awaitReady() {
	s.t.Helper()
	client, err := rest.HTTPClientFor(s.Config)
	if err != nil {
		s.t.Fatal(err)
	}
	for deadline := time.Now().Add(2 * time.Minute); ; {
		res, err := client.Get(s.Config.Host + "/readyz")
		if err == nil {
			res.Body.Close()
			if res.StatusCode == 200 {
				return
			}
		}
		select {
		case <-s.api.done:
			s.t.Fatalf("kube-apiserver ended:\n%s", tail(s.args[0]))
		case <-time.After(100 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("kube-apiserver is not ready:\n%s", tail(s.args[0]))
		}
	}
}

func find(t testing.TB, name string) string {
	t.Helper()
	variable := "TEST_ASSET_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
	if p := os.Getenv(variable); p != "" {
		return p
	}
	cache := os.Getenv("CONDUIT_CLUSTER_CACHE")
	if dir, err := os.UserCacheDir(); cache == "" && err == nil {
		cache = filepath.Join(dir, "conduit-cluster")
	}
	if built, _ := filepath.Glob(filepath.Join(cache, "kubernetes-*", name)); len(built) > 0 {
		return slices.Max(built)
	}
	p, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("SKIPPED: needs %s: run 'make e2e' once, or set %s", name, variable)
	}
	return p
}

// process is a program that was started; done is closed when it has ended.
type process struct {
	cmd  *exec.Cmd
	done chan struct{}
}

func (p *process) end() {
	_ = p.cmd.Process.Kill() // it may have ended
	<-p.done
}

func run(t testing.TB, log, program string, args ...string) *process {
	t.Helper()
	f, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := &process{cmd: exec.CommandContext(context.Background(), program, args...), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = f, f
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = p.cmd.Wait() // killed: its status says so
		close(p.done)
	}()
	t.Cleanup(p.end)
	return p
}

// port is free now; nobody else is expected to take it.
func port(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}

func accountKey(t testing.TB) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
}

func write(t testing.TB, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

// tail is the end of a log.
func tail(path string) string {
	b, _ := os.ReadFile(path)
	lines := bytes.Split(b, []byte("\n"))
	return string(bytes.Join(lines[max(0, len(lines)-20):], []byte("\n")))
}
