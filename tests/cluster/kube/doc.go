// Package kube starts real Kubernetes clusters on one computer: kube-apiserver, controller-manager, scheduler, kubelet,
// kube-proxy and kubectl built from the module k8s.io/kubernetes, with Debian's etcd, containerd, runc, iptables and nftables, the CNI
// project's plugins, and CoreDNS. The control plane and every node are machines (package machine): namespaces and a cgroup
// of their own on the host's kernel. No image registry, no Docker, nothing on the host's network.
//
// Reaching the API server: it listens inside the control plane's machine. Cluster.Kubeconfig names a file that any client on the
// host can use: its server is a port of the host's loopback that the machine's init listens on and passes on, which goes
// on working while the API server restarts. Pods and Services are reached from inside: Cluster.Node(i).Command runs
// a program on a node, kubectl exec and port-forward work from the host.
//
// Addresses are the same in every cluster, for none can see another: control plane 172.30.0.1, node I 172.30.0.(10+I), its
// pods 10.244.I.0/24, Services 10.96.0.0/16, DNS 10.96.0.10; with Options.DualStack also fd00:30::/64,
// fd00:244:0:I::/64 and fd00:96::/112.
//
// A node sees the cgroup hierarchy from its own group on, so that a BPF program attached to what it mounts at
// /sys/fs/cgroup meets its own pods alone. Sysctls, clock and kernel log are the kernel's and shared.
//
// A cluster belongs to the process that starts it, and dies with it, killed or not; `go run ./tests/cluster up` lets its own go on.
// What a dead owner leaves, directories and empty cgroups, the next Up or Sweep removes.
package kube
