package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"conduit.io/conduit/agent/admin"
	"conduit.io/conduit/agent/controlplane"
	"conduit.io/conduit/agent/enrol"
	"conduit.io/conduit/agent/kube"
	"conduit.io/conduit/agent/manifest"
	"conduit.io/conduit/identity"
	"conduit.io/conduit/identity/remote"
	"conduit.io/conduit/mesh"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// controllerIdentity is who the controller of a trust domain is.
func controllerIdentity(trustDomain string) mesh.Identity {
	return mesh.Identity{TrustDomain: trustDomain, Namespace: "conduit", ServiceAccount: "conduit-controller"}
}

// surroundings are what surrounds the node: files, or a cluster.
type surroundings struct {
	name       string
	objects    source
	issuer     identity.Issuer
	directory  *controlplane.Directory // nil: objects has everything
	controller controlplane.Config     // where directory is
}

// source is where the pods of the node are described.
type source interface {
	enrol.Objects
	admin.Faulty
	Watch(ctx context.Context, changed func()) error
}

// Faults is what cannot be read of the pods' descriptions, or of the controller.
func (s *surroundings) Faults() []manifest.Fault {
	out := s.objects.Faults()
	if s.directory == nil {
		return out
	}
	if st := s.directory.Status(); st.Fault != nil {
		out = append(out, manifest.Fault{File: "controller", Message: st.Fault.Error()})
	}
	return out
}

func open(c config, log *slog.Logger) (*surroundings, error) {
	if c.standalone {
		return openFiles(c, log)
	}
	return openCluster(c, log)
}

func openFiles(c config, log *slog.Logger) (*surroundings, error) {
	manifests, err := manifest.Open(c.manifests, log)
	if err != nil {
		return nil, err
	}
	ca, err := identity.OpenCA(c.caDir, c.trustDomain, nil)
	if err != nil {
		return nil, err
	}
	return &surroundings{name: c.manifests, objects: manifests, issuer: ca}, nil
}

func openCluster(c config, log *slog.Logger) (*surroundings, error) {
	cfg, err := apiServer(c.kubeconfig)
	if err != nil {
		return nil, err
	}
	cfg.UserAgent = "conduit-agent/" + mesh.Version()
	objects, err := kube.Open(cfg, c.node, log)
	if err != nil {
		return nil, err
	}
	issuer := remote.New(remote.Config{
		URL: c.controller, Address: c.controlAt, TokenFile: c.tokenFile, RootsFile: c.rootsFile, Controller: controllerIdentity(c.trustDomain), Log: log,
	})
	at := controlplane.Config{URL: c.controller, Client: issuer.HTTPClient(), Node: c.node, Log: log}
	return &surroundings{name: cfg.Host, objects: objects, issuer: issuer, directory: controlplane.New(at), controller: at}, nil
}

// apiServer says how to reach the API server.
func apiServer(kubeconfig string) (*rest.Config, error) {
	if kubeconfig != "" {
		cfg, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
		if err != nil {
			return nil, fmt.Errorf("read --kubeconfig: %w", err)
		}
		return cfg, nil
	}
	cfg, err := rest.InClusterConfig()
	if errors.Is(err, rest.ErrNotInCluster) {
		return nil, errors.New("this is no pod of a cluster: run 'conduit-agent --standalone --manifests DIR', or name a cluster with --kubeconfig FILE")
	}
	if err != nil {
		return nil, fmt.Errorf("reach the API server as a pod does: %w", err)
	}
	return cfg, nil
}

// proxyBinary is empty where the proxy is started by others.
func proxyBinary(c config) string {
	if c.ownProxy {
		return c.proxy
	}
	return ""
}
