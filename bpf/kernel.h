// SPDX-License-Identifier: GPL-2.0
// The few kernel structures that the programs read. Offsets are relocated at load time (CO-RE), so only names matter.
#pragma once

#include <bpf/bpf_core_read.h>

#define IFF_LOOPBACK 0x8

struct net_device {
	unsigned int flags;
} __attribute__((preserve_access_index));

struct dst_entry {
	struct net_device *dev;
} __attribute__((preserve_access_index));

struct sock {
	struct dst_entry *sk_dst_cache;
} __attribute__((preserve_access_index));

struct tcp_sock;

struct ns_common {
	unsigned int inum;
} __attribute__((preserve_access_index));

struct pid_namespace {
	struct pid_namespace *parent;
	struct ns_common ns;
} __attribute__((preserve_access_index));

struct nsproxy {
	struct pid_namespace *pid_ns_for_children;
} __attribute__((preserve_access_index));

struct task_struct {
	int tgid;
	__u64 start_boottime;
	__u64 self_exec_id;
	struct task_struct *group_leader;
	struct nsproxy *nsproxy;
} __attribute__((preserve_access_index));
