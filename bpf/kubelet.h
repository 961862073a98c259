// SPDX-License-Identifier: GPL-2.0
// The kubelet's probes. They are plaintext from the node's address, which every process of the node's namespace shares, so
// the address proves nothing. What does is who called connect(2): a socket that the kubelet's process connects in the
// node's namespace is tagged, sockops puts its 4-tuple into cdt_vouched before the SYN leaves, and the pod's lookup program
// hands a SYN that is there to the application itself. To the application, and not to the proxy, because a probe must tell
// the truth about it: also while no proxy is alive, and also that nobody listens on a port.
//
// Nobody inherits an entry. It is deleted when the socket is closed, before its port is free for another, and whoever
// connects with the same 4-tuple without being the kubelet deletes it, too.
#pragma once

#include "maps.h"
#include "process.h"

// connect(2) in a namespace that is no pod's.
static __always_inline void kubelet_connect(struct bpf_sock_addr *ctx, __u64 cookie)
{
	struct cdt_process *kubelet = bpf_map_lookup_elem(&cdt_kubelet, &cookie);
	struct cdt_process self;
	struct cdt_sock_tag *tag;
	bool own;

	if (!kubelet)
		return; // not a node's namespace
	self = process_current();
	own = process_equal(kubelet, &self);
	// Without memory for the tag the probe is refused as any other plaintext.
	tag = bpf_sk_storage_get(&cdt_tags, ctx->sk, NULL, own ? BPF_SK_STORAGE_GET_F_CREATE : 0);
	if (!tag)
		return;
	if (own)
		tag->kind = CDT_KIND_KUBELET;
	else if (tag->kind == CDT_KIND_KUBELET)
		tag->kind = CDT_KIND_NONE; // the kubelet's socket in other hands
}

static __always_inline bool kubelet_owns(struct bpf_sock *sk)
{
	struct cdt_sock_tag *tag = bpf_sk_storage_get(&cdt_tags, sk, NULL, 0);

	return tag && tag->kind == CDT_KIND_KUBELET;
}

// A SYN is about to leave a namespace that is no pod's. The caller has made the tuple.
static __always_inline void kubelet_connecting(struct bpf_sock_ops *ctx, struct bpf_sock *sk, __u64 cookie,
					       const struct cdt_tuple *conn)
{
	__u8 yes = 1;

	if (!bpf_map_lookup_elem(&cdt_kubelet, &cookie))
		return; // not a node's namespace
	// Vouched for only if its end will be told of.
	if (kubelet_owns(sk) && !bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG))
		bpf_map_update_elem(&cdt_vouched, conn, &yes, BPF_ANY);
	else
		bpf_map_delete_elem(&cdt_vouched, conn);
}

// A socket whose states are told of has been closed; its addresses and ports are still its own.
static __always_inline void kubelet_closed(struct bpf_sock *sk, const struct cdt_tuple *conn)
{
	if (kubelet_owns(sk))
		bpf_map_delete_elem(&cdt_vouched, conn);
}
