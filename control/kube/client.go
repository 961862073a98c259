// Package kube is the control plane's connection to the Kubernetes API server.
package kube

import (
	"fmt"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Config is how to reach the API server: kubeconfig if it is given, else what a pod finds in its own file system. Objects of
// Kubernetes itself travel as protobuf, which costs a third of the time that JSON does.
func Config(kubeconfig, userAgent string) (*rest.Config, error) {
	cfg, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("find the Kubernetes API server: %w", err)
	}
	cfg.UserAgent = userAgent
	cfg.ContentType = "application/vnd.kubernetes.protobuf"
	cfg.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	return cfg, nil
}

// Client is a client with a bound of its own on requests a second, and on how many may come at once: what one part of the
// controller has to ask for must not make another wait, the renewal of a Lease least of all. All of them share connections.
func Client(cfg *rest.Config, perSecond float32, atOnce int) (*kubernetes.Clientset, error) {
	own := rest.CopyConfig(cfg)
	own.QPS, own.Burst, own.RateLimiter = perSecond, atOnce, nil
	c, err := kubernetes.NewForConfig(own)
	if err != nil {
		return nil, fmt.Errorf("reach the Kubernetes API server: %w", err)
	}
	return c, nil
}
