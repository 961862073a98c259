// SPDX-License-Identifier: GPL-2.0
// Every map. All are pinned by name, and shared by the cgroup programs and by each pod's lookup program.
#pragma once

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "types.h"

// More pods than a node may carry, stale entries of dead namespaces included.
#define CDT_MAX_PODS 2048

// The enrolled pods. An entry is written last at enrolment: from then on connects are steered.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, CDT_MAX_PODS);
	__type(key, __u64);
	__type(value, struct cdt_pod);
} cdt_pods SEC(".maps");

// The ports at which an enrolled pod is probed. A pod without an entry is not.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, CDT_MAX_PODS);
	__type(key, __u64);
	__type(value, struct cdt_probes);
} cdt_probes SEC(".maps");

// What a socket is to the mesh. User space writes by descriptor, so that nobody without the map can forge it (a mark
// could be forged: CAP_NET_RAW is enough).
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct cdt_sock_tag);
} cdt_tags SEC(".maps");

// The proxy's listeners. The kernel removes a closed one, so the map is also the signal that a proxy is alive.
struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(max_entries, CDT_MAX_PODS * CDT_SLOT__COUNT);
	__type(key, struct cdt_listener_key);
	__type(value, __u64);
} cdt_listeners SEC(".maps");

// Client addresses on their way from the proxy's connecting socket to the application's accepted one. Entries live
// from the SYN to the end of the handshake; those of failed dials are evicted.
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 32768);
	__type(key, struct cdt_carry_key);
	__type(value, struct cdt_sock_tag);
} cdt_carry SEC(".maps");

// Counters per pod. Entries are made and dropped by user space only; a pod without one is not counted.
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, CDT_MAX_PODS);
	__type(key, __u64);
	__type(value, struct cdt_counters);
} cdt_counters SEC(".maps");

// The kubelet of a node, keyed by the node's network namespace cookie. Written by user space; a dead process's entry
// matches no other.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8);
	__type(key, __u64);
	__type(value, struct cdt_process);
} cdt_kubelet SEC(".maps");

// The kubelet's connections, from before the SYN until the socket is closed. What is evicted, or does not fit, is refused
// as any other plaintext. The size is for the kernel's free lists of 128 processors, each of which holds up to 128 entries.
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct cdt_tuple);
	__type(value, __u8);
} cdt_vouched SEC(".maps");

// One question, and its answer.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct cdt_witness);
} cdt_witness SEC(".maps");
