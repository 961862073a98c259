// Package api is the parent of Conduit's interfaces: messages between its processes, and what it reads in Kubernetes
// objects. The protobuf sources are in proto, the Go code made from them in discoveryv1, identityv1 and nodev1.
package api

//go:generate go tool -modfile=../tools/buf/go.mod buf generate proto --template proto/buf.gen.yaml
