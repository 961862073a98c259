// SPDX-License-Identifier: GPL-2.0
// Looking up a pod's listeners, and counting what happens to its connections.
#pragma once

#include "maps.h"

// The listener in a slot, or NULL when no proxy is alive. The caller must bpf_sk_release it.
static __always_inline struct bpf_sock *pod_listener(__u64 cookie, enum cdt_slot slot)
{
	struct cdt_listener_key key = { .cookie = cookie, .slot = slot };

	return bpf_map_lookup_elem(&cdt_listeners, &key);
}

// The additions are atomic although the values are per CPU: a hook in process context is interrupted by one in softirq.
static __always_inline void count_created(__u64 cookie)
{
	struct cdt_counters *c = bpf_map_lookup_elem(&cdt_counters, &cookie);

	if (c)
		__sync_fetch_and_add(&c->created, 1);
}

static __always_inline void count_steered(__u64 cookie)
{
	struct cdt_counters *c = bpf_map_lookup_elem(&cdt_counters, &cookie);

	if (c)
		__sync_fetch_and_add(&c->steered, 1);
}

// A function of its own also keeps the enum in the object's BTF, from which the Go types are made.
static __noinline int count_bypass(__u64 cookie, enum cdt_bypass reason)
{
	struct cdt_counters *c = bpf_map_lookup_elem(&cdt_counters, &cookie);

	if (c && reason < CDT_BYPASS__COUNT)
		__sync_fetch_and_add(&c->bypassed[reason], 1);
	return 0;
}
