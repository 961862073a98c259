// Package machine makes machines out of namespaces: each has mount, network, PID, UTS, IPC and cgroup namespaces of its
// own, a root directory of its own (with the host's /usr, read-only), and an init that keeps daemons running. A
// Kubernetes node in one sees what it would see on a computer: its own /etc/cni/net.d, /opt/cni/bin, /var/lib/kubelet,
// /run, bpffs, cgroup roots and processes. The kernel, its sysctls that are not namespaced, and its clock are shared.
//
// A machine is one process on the host, its init, and everything else of it hangs on that process: when it dies, by
// Stop, by a signal, or because the process that owns it has died, the kernel ends every process inside, and with the
// last one the namespaces go, and with these the links, the mounts and the pinned BPF objects. What is then left
// is on disk, the directory and empty cgroups, and Remove takes it away, also for machines of dead owners.
//
// Nothing of a machine is in the host's network namespace. Its links are made inside (Plug), and Config.Forward lets
// the host reach one port inside through a listener on the host's loopback.
package machine
