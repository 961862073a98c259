package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"conduit.io/conduit/cli/cluster"
	"conduit.io/conduit/deploy"
	"conduit.io/conduit/tests/apiserver"

	authv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// site is a real API server with what an installation of Conduit has there, but for what would run: the harness plays that.
type site struct {
	dir     string
	api     *apiserver.Instance
	config  *rest.Config // as an administrator, without a bound on the rate of its requests
	client  *kubernetes.Clientset
	dynamic *dynamic.DynamicClient
}

func openSite(ctx context.Context, dir string) (*site, error) {
	api, err := apiserver.Open(dir)
	if err != nil {
		return nil, err
	}
	s := &site{dir: dir, api: api, config: rest.CopyConfig(api.Config)}
	s.config.QPS = -1
	if s.dynamic, err = dynamic.NewForConfig(s.config); err == nil {
		s.config.ContentType, s.config.AcceptContentTypes = "application/vnd.kubernetes.protobuf", "application/vnd.kubernetes.protobuf,application/json"
		s.client, err = kubernetes.NewForConfig(s.config)
	}
	if err == nil {
		err = s.install(ctx)
	}
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *site) close() { s.api.Close() }

// apiPid is kube-apiserver's process.
func (s *site) apiPid() int {
	pid, _ := s.api.Processes()
	return pid
}

// install applies what the chart has of accounts, rights and definitions, so that the controller is who it would be.
func (s *site) install(ctx context.Context) error {
	objects, err := deploy.Render(nil)
	if err != nil {
		return err
	}
	c, err := cluster.New(s.api.Config)
	if err != nil {
		return err
	}
	kinds := []string{"Namespace", "CustomResourceDefinition", "ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"}
	for _, o := range objects {
		if !slices.Contains(kinds, o.GetKind()) {
			continue
		}
		if _, err := c.Apply(ctx, o, true); err != nil {
			return err
		}
	}
	return nil
}

// token is one of an account of Conduit's namespace, for the audience (the API server's own, if empty), bound to a pod unless that
// is nil.
func (s *site) token(ctx context.Context, account, audience string, pod *authv1.BoundObjectReference) (string, error) {
	req := &authv1.TokenRequest{Spec: authv1.TokenRequestSpec{BoundObjectRef: pod, ExpirationSeconds: new(int64((12 * time.Hour).Seconds()))}}
	if audience != "" {
		req.Spec.Audiences = []string{audience}
	}
	res, err := s.client.CoreV1().ServiceAccounts(deploy.Namespace).CreateToken(ctx, account, req, metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("token of %s: %w", account, err)
	}
	return res.Status.Token, nil
}

// kubeconfig is a file by which the controller reaches the API server as its own account.
func (s *site) kubeconfig(ctx context.Context) (string, error) {
	token, err := s.token(ctx, deploy.Controller, "", nil)
	if err != nil {
		return "", err
	}
	cfg := clientcmdapi.NewConfig()
	cfg.Clusters["scale"] = &clientcmdapi.Cluster{Server: s.config.Host, InsecureSkipTLSVerify: true}
	cfg.AuthInfos["controller"] = &clientcmdapi.AuthInfo{Token: token}
	cfg.Contexts["scale"] = &clientcmdapi.Context{Cluster: "scale", AuthInfo: "controller"}
	cfg.CurrentContext = "scale"
	path := filepath.Join(s.dir, "kubeconfig")
	return path, clientcmd.WriteToFile(*cfg, path)
}

// roots writes the trust bundle, which the controller has published, to a file, as the kubelet would for agents.
func (s *site) roots(ctx context.Context) (string, error) {
	m, err := s.client.CoreV1().ConfigMaps(deploy.Namespace).Get(ctx, "conduit-trust-roots", metav1.GetOptions{})
	if err != nil {
		return "", err
	}
	if m.Data["ca.crt"] == "" {
		return "", errors.New("the trust bundle is empty")
	}
	path := filepath.Join(s.dir, "ca.crt")
	return path, os.WriteFile(path, []byte(m.Data["ca.crt"]), 0o600)
}
