// Package e2e has the tests that need a real Kubernetes cluster. `make e2e` runs them: one cluster of two nodes for all, a namespace
// for each test (package kubetest).
package e2e
