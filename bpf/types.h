// SPDX-License-Identifier: GPL-2.0
// Every struct and enum that the programs share with user space. Package api/kernel is generated from this file: run
// `make generate` after a change, and raise CDT_SCHEMA when the layout of a pinned map changes.
#pragma once

#include <linux/types.h>

// Version of the pinned maps' layout. It is part of the pin path, so that two layouts never meet in one map.
#define CDT_SCHEMA 1

// How many addresses one pod may have: dual stack on several interfaces.
#define CDT_MAX_ADDRS 8

// How many ports of one pod the kubelet may probe.
#define CDT_MAX_PROBES 32

// Mark of a steered socket. A rule in the pod's namespace (pref 100) turns marked packets round on lo.
#define CDT_MARK 0x4d1

// An address in network order; IPv4 is held v4-mapped (::ffff:a.b.c.d), so that every path is written once.
struct cdt_addr {
	union {
		__u8 b[16];
		__be32 w[4];
	};
};

// Listeners of one pod, in cdt_listeners. Equal to Slot in api/node.
enum cdt_slot {
	CDT_SLOT_IN_V4,
	CDT_SLOT_IN_V6,
	CDT_SLOT_OUT_V4,
	CDT_SLOT_OUT_V6,
	CDT_SLOT__COUNT,
};

// What a socket is to the mesh. Held in 16 bits.
typedef __u16 cdt_kind_t;
enum cdt_kind {
	CDT_KIND_NONE,
	CDT_KIND_PROXY,	  // set by the proxy: its own socket, never steered
	CDT_KIND_VIRTUAL, // set by the proxy: as PROXY, and the accepting application shall see addr:port as its peer
	CDT_KIND_PEER,	  // set by sockops: an application's accepted socket, whose peer is shown as addr:port
	CDT_KIND_PASSED,  // set by connect: let through and counted, because no proxy was alive
	CDT_KIND_KUBELET, // set by connect: the kubelet's own, in the node's namespace
};

// Value of cdt_tags, the socket storage. The proxy writes it by descriptor before it connects. 20 bytes, no padding.
struct cdt_sock_tag {
	struct cdt_addr addr;
	__be16 port;
	cdt_kind_t kind;
};

// How a pod is treated; a set of bits.
enum cdt_pod_flag {
	CDT_POD_FLAG_OUT_OPEN = 1, // no outbound listener alive: connect directly; otherwise refuse
	CDT_POD_FLAG_IN_OPEN = 2,  // no inbound listener alive: hand to the application; otherwise refuse
	CDT_POD_FLAG_LEFT = 4,     // un-enrolled: nothing is steered; kept so that what was steered can end in order
};

// Value of cdt_pods, keyed by network namespace cookie.
struct cdt_pod {
	enum cdt_pod_flag flags;
	__u32 naddrs;
	struct cdt_addr addrs[CDT_MAX_ADDRS];
};

// Value of cdt_probes, keyed by network namespace cookie: the ports that the pod's own probes and hooks name, in host order.
struct cdt_probes {
	__u32 nports;
	__u16 ports[CDT_MAX_PROBES];
};

// Key of cdt_listeners.
struct cdt_listener_key {
	__u64 cookie;
	enum cdt_slot slot;
	__u32 pad;
};

// Key of cdt_carry: the 4-tuple of a connection from the proxy to an application, inside one namespace. Ports are in
// host order.
struct cdt_carry_key {
	__u64 cookie;
	struct cdt_addr src;
	struct cdt_addr dst;
	__u16 sport;
	__u16 dport;
	__u32 pad;
};

// Why a connection of an enrolled pod did not go through the proxy.
enum cdt_bypass {
	CDT_BYPASS_LOCAL,     // to the pod itself, loopback, or a link-local address
	CDT_BYPASS_PROXY,     // the proxy's own connection
	CDT_BYPASS_DOWN_OPEN, // outbound, no proxy alive, mode open: connected directly
	CDT_BYPASS_REFUSED,   // outbound, no proxy alive, mode closed: refused
	CDT_BYPASS_IN_OPEN,   // inbound, no proxy alive, mode open: handed to the application
	CDT_BYPASS_IN_REFUSED, // inbound, no proxy alive, mode closed, or no end known as the pod's: refused
	CDT_BYPASS_UNSEEN,    // fault: a SYN left that the connect hook had not judged
	CDT_BYPASS_UNROUTED,  // fault: a steered SYN left by a real interface: the pod's rule or routes are gone
	CDT_BYPASS_PROBE,     // inbound, dialled by the node's kubelet: handed to the application
	CDT_BYPASS__COUNT,
};

// Value of cdt_counters (per CPU), keyed by network namespace cookie.
struct cdt_counters {
	__u64 created; // TCP sockets created in the namespace, the proxy's own included
	__u64 steered; // connects handed to the proxy
	__u64 bypassed[CDT_BYPASS__COUNT];
};

// One run of a program, so that no other is ever taken for it: neither a process that has the same number later, nor the
// program that a process becomes by execve(2).
struct cdt_process {
	__u64 start; // of the process, ns since boot
	__u64 execs; // the kernel's count of execve(2) by the process and its ancestors
	__u32 tgid;  // in the initial PID namespace
	__u32 pad;
};

// Key of cdt_vouched: a TCP connection as its client sees it. Ports are in host order.
struct cdt_tuple {
	struct cdt_addr src;
	struct cdt_addr dst;
	__u16 sport;
	__u16 dport;
};

// The element of cdt_witness: which process has accepted a connection? User space asks before it connects, and only one
// question at a time; the process that accepts answers, in the kernel, and cannot do otherwise.
struct cdt_witness {
	__u64 cookie;	       // the network namespace of both ends
	struct cdt_tuple conn; // none asked while sport is 0
	// The answer, once who.tgid is not 0.
	__u32 uid; // in the initial user namespace
	struct cdt_process who;
	__u32 pid_ns;	     // inode of its PID namespace
	__u32 pid_ns_parent; // and of the one above; 0: there is none
};
