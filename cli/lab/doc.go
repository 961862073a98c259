// Package lab builds a small cluster network on one machine, without Kubernetes and without touching the machine's
// own network: nodes are network namespaces joined by a switch, pods are network namespaces wired by a CNI chain
// that libcni runs inside the node's namespace, exactly as a container runtime would. A node may run conduit-agent.
//
//	pod ns -- veth -- node ns (conduit-agent, conduit-proxy) -- veth -- switch ns -- veth -- node ns -- veth -- pod ns
//
// Everything a Lab makes (namespaces, processes, directories, BPF pins) carries the lab's name and is removed by
// Close, also after a partial failure. A Lab needs root. Its methods, and those of its nodes and pods, may be called
// from several goroutines.
//
// The package runs no external program but the CNI plugins and the Conduit binaries.
package lab
