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
