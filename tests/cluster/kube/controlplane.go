package kube

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"time"

	"conduit.io/conduit/tests/cluster/machine"
)

const (
	binDir   = "/opt/kubernetes/bin" // on every machine
	confDir  = "/etc/kubernetes"
	apiPort  = "6443"
	cpName   = "control-plane"
	etcdAddr = "http://127.0.0.1:2379"

	frontProxy = "front-proxy-client" // as which the API server calls extensions of itself
)

// startControlPlane starts the first machine, and on it etcd and the API server; the rest comes with startControllers.
func (c *Cluster) startControlPlane(ctx context.Context, bins Binaries) error {
	ca, err := newAuthority()
	if err != nil {
		return err
	}
	c.ca = ca
	files, err := c.controlPlaneFiles()
	if err != nil {
		return err
	}
	dir := filepath.Join(c.dir, cpName)
	if err := writeFiles(filepath.Join(dir, "root"), files); err != nil {
		return err
	}
	c.cp, err = machine.Start(filepath.Join(c.dir, "initd"), machine.Config{
		Name: cpName, Dir: dir, Group: c.group(cpName), Owned: true,
		Binds: []machine.Bind{{Host: bins.Kubernetes, Inside: binDir}}, Sysctls: routerSysctls(),
		Forward: "127.0.0.1:" + apiPort,
	})
	if err != nil {
		return err
	}
	if err := c.makeBridge(); err != nil {
		return err
	}
	if err := c.writeKubeconfig(); err != nil {
		return err
	}
	c.say("starting etcd and kube-apiserver")
	for _, d := range []machine.Daemon{c.etcd(), c.apiServer()} {
		if err := c.cp.StartDaemon(d); err != nil {
			return err
		}
	}
	return c.waitForAPI(ctx)
}

func (c *Cluster) controlPlaneFiles() (map[string][]byte, error) {
	server, err := c.ca.issue("kube-apiserver", "", append([]string{"127.0.0.1", "localhost", "kubernetes", "kubernetes.default",
		"kubernetes.default.svc", "kubernetes.default.svc.cluster.local"}, c.net.apiAddrs()...)...)
	if err != nil {
		return nil, err
	}
	toKubelets, err := c.ca.issue("kube-apiserver-kubelet-client", "system:masters")
	if err != nil {
		return nil, err
	}
	toExtensions, err := c.ca.issue(frontProxy, "")
	if err != nil {
		return nil, err
	}
	tokens, err := serviceAccountKeys()
	if err != nil {
		return nil, err
	}
	caKey, err := pemKey(c.ca.key)
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{
		"ca.crt": c.ca.pem, "ca.key": caKey, "apiserver.crt": server.cert, "apiserver.key": server.key,
		"kubelet-client.crt": toKubelets.cert, "kubelet-client.key": toKubelets.key, "sa.pub": tokens.cert, "sa.key": tokens.key,
		"front-proxy.crt": toExtensions.cert, "front-proxy.key": toExtensions.key,
	}
	for file, user := range map[string]string{"controller-manager.conf": "system:kube-controller-manager", "scheduler.conf": "system:kube-scheduler"} {
		if files[file], err = c.ca.client("https://127.0.0.1:"+apiPort, user, ""); err != nil {
			return nil, err
		}
	}
	in := map[string][]byte{}
	for name, data := range files {
		in[filepath.Join(confDir, name)] = data
	}
	return in, nil
}

func (c *Cluster) writeKubeconfig() error {
	admin, err := c.ca.issue("admin", "system:masters")
	if err != nil {
		return err
	}
	conf, err := c.ca.kubeconfig("https://"+c.cp.Addr(), admin)
	if err != nil {
		return err
	}
	return writeFiles(c.dir, map[string][]byte{kubeconfigFile: conf, "admin.crt": admin.cert, "admin.key": admin.key, "ca.crt": c.ca.pem})
}

func conf(name string) string { return filepath.Join(confDir, name) }

func (c *Cluster) etcd() machine.Daemon {
	return machine.Daemon{Name: "etcd", Argv: []string{"etcd", "--data-dir=/var/lib/etcd", "--listen-client-urls=" + etcdAddr,
		"--advertise-client-urls=" + etcdAddr, "--listen-peer-urls=http://127.0.0.1:2380", "--unsafe-no-fsync=true"}}
}

func (c *Cluster) apiServer() machine.Daemon {
	return machine.Daemon{Name: "kube-apiserver", Argv: append([]string{"kube-apiserver",
		"--etcd-servers=" + etcdAddr, "--secure-port=" + apiPort, "--bind-address=0.0.0.0", "--advertise-address=" + c.net.controlPlane(),
		"--service-cluster-ip-range=" + c.net.services(), "--service-node-port-range=30000-32767",
		"--client-ca-file=" + conf("ca.crt"), "--tls-cert-file=" + conf("apiserver.crt"), "--tls-private-key-file=" + conf("apiserver.key"),
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file=" + conf("sa.pub"), "--service-account-signing-key-file=" + conf("sa.key"),
		"--kubelet-client-certificate=" + conf("kubelet-client.crt"), "--kubelet-client-key=" + conf("kubelet-client.key"),
		"--kubelet-certificate-authority=" + conf("ca.crt"), "--kubelet-preferred-address-types=InternalIP",
		"--proxy-client-cert-file=" + conf("front-proxy.crt"), "--proxy-client-key-file=" + conf("front-proxy.key"),
		"--requestheader-client-ca-file=" + conf("ca.crt"), "--requestheader-allowed-names=" + frontProxy,
		"--requestheader-username-headers=X-Remote-User", "--requestheader-group-headers=X-Remote-Group", "--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--feature-gates=SizeBasedListCostEstimate=false", // Debian's etcd is too old for it, and it says so every second
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged=true",
	}, c.opts.APIServerArgs...)}
}

func (c *Cluster) startControllers() error {
	for _, d := range []machine.Daemon{
		{Name: "kube-controller-manager", Argv: []string{"kube-controller-manager", "--kubeconfig=" + conf("controller-manager.conf"),
			"--authentication-kubeconfig=" + conf("controller-manager.conf"), "--authorization-kubeconfig=" + conf("controller-manager.conf"),
			"--service-account-private-key-file=" + conf("sa.key"), "--root-ca-file=" + conf("ca.crt"), "--use-service-account-credentials",
			"--cluster-signing-cert-file=" + conf("ca.crt"), "--cluster-signing-key-file=" + conf("ca.key"), "--leader-elect=false",
			// Or all nodes count as lost, and no Service has endpoints, when an API server comes back that was away on a busy computer.
			"--node-monitor-grace-period=3m"}},
		{Name: "kube-scheduler", Argv: []string{"kube-scheduler", "--kubeconfig=" + conf("scheduler.conf"),
			"--authentication-kubeconfig=" + conf("scheduler.conf"), "--authorization-kubeconfig=" + conf("scheduler.conf"), "--leader-elect=false"}},
	} {
		if err := c.cp.StartDaemon(d); err != nil {
			return err
		}
	}
	return nil
}

// waitForAPI returns when the API server says that it is ready.
func (c *Cluster) waitForAPI(ctx context.Context) error {
	cert, err := tls.LoadX509KeyPair(filepath.Join(c.dir, "admin.crt"), filepath.Join(c.dir, "admin.key"))
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AddCert(c.ca.cert)
	transport := &http.Transport{TLSClientConfig: &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: roots}, DisableKeepAlives: true}
	client := http.Client{Transport: transport, Timeout: 5 * time.Second}
	return Poll(ctx, 250*time.Millisecond, "kube-apiserver is ready", func() error {
		resp, err := client.Get("https://" + c.cp.Addr() + "/readyz")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<12))
		if err == nil && resp.StatusCode != http.StatusOK {
			err = fmt.Errorf("%s: %s", resp.Status, body)
		}
		return err
	})
}

// Poll calls ok until it returns nil or ctx ends; the error then is ok's last one. What takes long is asked for less and less often, down
// to once a second: to ask costs this computer more than to wait.
func Poll(ctx context.Context, every time.Duration, what string, ok func() error) error {
	began := time.Now()
	for {
		err := ok()
		if err == nil {
			return nil
		}
		select {
		case <-time.After(max(every, min(time.Since(began)/8, time.Second))):
		case <-ctx.Done():
			return fmt.Errorf("wait until %s: %w", what, errors.Join(ctx.Err(), err))
		}
	}
}
