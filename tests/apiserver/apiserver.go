// Package apiserver runs a real kube-apiserver and etcd, on loopback, with nothing else of a cluster.
package apiserver

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"k8s.io/client-go/rest"
)

// Admin is the token of a member of system:masters.
const Admin = "admin"

// Server is an API server that runs until its test ends.
type Server struct {
	*Instance
	t testing.TB
}

// Start runs etcd and kube-apiserver until the test ends. It skips the test where they are missing.
func Start(t testing.TB) *Server {
	t.Helper()
	i, err := Open(t.TempDir())
	if errors.Is(err, ErrMissing) {
		t.Skipf("SKIPPED: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(i.Close)
	return &Server{i, t}
}

// Up starts the API server, and returns when it is ready.
func (s *Server) Up() {
	s.t.Helper()
	if err := s.Instance.Up(); err != nil {
		s.t.Fatal(err)
	}
}

// Instance is an API server with its etcd.
type Instance struct {
	Config    *rest.Config // as Admin
	log       string
	args      []string
	etcd, api *process
}

// Open runs etcd and kube-apiserver, with all they keep in dir, until Close. etcd does not wait for the disk. The programs are
// looked for in $TEST_ASSET_KUBE_APISERVER and $TEST_ASSET_ETCD, where tests/cluster keeps what it builds, and in $PATH; the error
// wraps ErrMissing when they are not there.
func Open(dir string) (*Instance, error) {
	etcd, err := find("etcd")
	if err != nil {
		return nil, err
	}
	api, err := find("kube-apiserver")
	if err != nil {
		return nil, err
	}
	ports, err := free(3)
	if err != nil {
		return nil, err
	}
	client, peer, secure := "http://127.0.0.1:"+ports[0], "http://127.0.0.1:"+ports[1], ports[2]
	key, tokens := filepath.Join(dir, "sa.key"), filepath.Join(dir, "tokens.csv")
	secret, err := accountKey()
	if err == nil {
		err = os.WriteFile(key, secret, 0o600)
	}
	if err == nil {
		err = os.WriteFile(tokens, []byte(Admin+",admin,1,system:masters\n"), 0o600)
	}
	if err != nil {
		return nil, fmt.Errorf("prepare kube-apiserver: %w", err)
	}
	i := &Instance{log: filepath.Join(dir, "apiserver.log"), args: []string{api, "--etcd-servers", client,
		"--bind-address", "127.0.0.1", "--secure-port", secure, "--cert-dir", filepath.Join(dir, "certs"),
		"--service-cluster-ip-range", "10.96.0.0/16", "--token-auth-file", tokens, "--authorization-mode", "RBAC",
		"--service-account-issuer", "https://kubernetes.default.svc", "--service-account-key-file", key,
		"--service-account-signing-key-file", key, "--disable-admission-plugins", "ServiceAccount"}}
	i.Config = &rest.Config{Host: "https://127.0.0.1:" + secure, BearerToken: Admin, QPS: 1000, Burst: 1000,
		TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
	i.etcd, err = run(filepath.Join(dir, "etcd.log"), etcd, "--data-dir", filepath.Join(dir, "etcd"), "--unsafe-no-fsync=true",
		"--listen-client-urls", client, "--advertise-client-urls", client, "--listen-peer-urls", peer,
		"--initial-advertise-peer-urls", peer, "--initial-cluster", "default="+peer)
	if err != nil {
		return nil, err
	}
	if err := i.Up(); err != nil {
		i.Close()
		return nil, err
	}
	return i, nil
}

// Up starts the API server, and returns when it is ready.
func (i *Instance) Up() (err error) {
	if i.api, err = run(i.log, i.args[0], i.args[1:]...); err != nil {
		return err
	}
	return i.awaitReady()
}

// Down kills the API server; etcd goes on.
func (i *Instance) Down() { i.api.end() }

// Close kills both.
func (i *Instance) Close() {
	i.api.end()
	i.etcd.end()
}

// Processes are the ids of the two.
func (i *Instance) Processes() (api, etcd int) { return i.api.cmd.Process.Pid, i.etcd.cmd.Process.Pid }

func (i *Instance) awaitReady() error {
	client, err := rest.HTTPClientFor(i.Config)
	if err != nil {
		return err
	}
	for deadline := time.Now().Add(2 * time.Minute); ; {
		res, err := client.Get(i.Config.Host + "/readyz")
		if err == nil {
			res.Body.Close()
			if res.StatusCode == 200 {
				return nil
			}
		}
		select {
		case <-i.api.done:
			return fmt.Errorf("kube-apiserver ended:\n%s", tail(i.log))
		case <-time.After(100 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("kube-apiserver is not ready:\n%s", tail(i.log))
		}
	}
}

// free are n ports that are free now; nobody else is expected to take them.
func free(n int) ([]string, error) {
	var ports []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		ports = append(ports, strconv.Itoa(l.Addr().(*net.TCPAddr).Port))
	}
	return ports, nil
}

func accountKey() ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), nil
}
