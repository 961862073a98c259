// SPDX-License-Identifier: GPL-2.0
// Which process accepts a connection: accept(2) asks for the peer's name, and so runs these hooks in the process that
// accepts. It is how the agent knows the kubelet, by the port that it serves, from a container that sees no process of the
// node. One question stands at a time; while there is none, this costs one comparison.
#pragma once

#include "addr.h"
#include "maps.h"
#include "process.h"

static __always_inline void witness(struct bpf_sock_addr *ctx, const struct cdt_addr *own, const struct cdt_addr *peer)
{
	struct cdt_process who;
	struct cdt_witness *w;
	__u32 one = 0;

	w = bpf_map_lookup_elem(&cdt_witness, &one);
	if (!w || !w->conn.sport || w->conn.sport != bpf_ntohs(ctx->user_port))
		return; // nothing is asked, or not of this connection
	// Anybody may have a UDP socket with the same addresses and ports.
	if (ctx->protocol != IPPROTO_TCP || ctx->sk->src_port != w->conn.dport || w->who.tgid)
		return;
	if (bpf_get_netns_cookie(ctx) != w->cookie || !addr_equal(peer, &w->conn.src) || !addr_equal(own, &w->conn.dst))
		return;
	who = process_current();
	w->uid = bpf_get_current_uid_gid();
	w->pid_ns = BPF_CORE_READ(process_pid_ns(), ns.inum);
	w->pid_ns_parent = BPF_CORE_READ(process_pid_ns(), parent, ns.inum);
	w->who = who; // last: it is the sign that the rest is there
}
