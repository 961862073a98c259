// Package e2e has the tests that need a real Kubernetes cluster. A process has one cluster of two nodes for all of its tests that share
// one, and a namespace for each test (package kubetest). `make e2e` runs several processes side by side.
package e2e
