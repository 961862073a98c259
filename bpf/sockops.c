// SPDX-License-Identifier: GPL-2.0
// sockops: carries the client's address from the proxy's connecting socket to the application's accepted one, watches for
// connections of enrolled pods that escaped, and keeps the list of the kubelet's. It runs for every TCP socket of the node,
// several times, so everything but two operations returns at once; a third comes only for sockets that asked for it.

static __always_inline struct cdt_addr local_addr(struct bpf_sock_ops *ctx)
{
	__u32 a = CTX_READ(ctx->local_ip6[0]), b = CTX_READ(ctx->local_ip6[1]);
	__u32 c = CTX_READ(ctx->local_ip6[2]), d = CTX_READ(ctx->local_ip6[3]);
	__u32 v4 = CTX_READ(ctx->local_ip4);

	return CTX_READ(ctx->family) == AF_INET ? addr_from4(v4) : addr_from6(a, b, c, d);
}

static __always_inline struct cdt_addr remote_addr(struct bpf_sock_ops *ctx)
{
	__u32 a = CTX_READ(ctx->remote_ip6[0]), b = CTX_READ(ctx->remote_ip6[1]);
	__u32 c = CTX_READ(ctx->remote_ip6[2]), d = CTX_READ(ctx->remote_ip6[3]);
	__u32 v4 = CTX_READ(ctx->remote_ip4);

	return CTX_READ(ctx->family) == AF_INET ? addr_from4(v4) : addr_from6(a, b, c, d);
}

// bpf_sock_ops has the local port in host order, the remote port in network order in the upper half.
static __always_inline __u16 remote_port(struct bpf_sock_ops *ctx)
{
	return bpf_ntohl(CTX_READ(ctx->remote_port));
}

// The route that a connecting socket has chosen leads over lo. An unreadable route counts as right: this is a watch,
// and must not cry wolf.
static __always_inline bool routed_to_lo(struct bpf_sock *sk)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	struct dst_entry *dst;
	struct net_device *dev;

	if (!tp)
		return true;
	dst = BPF_CORE_READ((struct sock *)tp, sk_dst_cache);
	dev = BPF_CORE_READ(dst, dev);
	return !dev || BPF_CORE_READ(dev, flags) & IFF_LOOPBACK;
}

// A SYN of an enrolled pod is about to leave to a foreign address. The connect hook must have judged it; one that it
// has not seen is the fault that "enrolled" promises to notice. Connections from before the enrolment never come here.
static __always_inline void watch(struct bpf_sock *sk, __u64 cookie, const struct cdt_sock_tag *tag)
{
	if (sk->mark == CDT_MARK) {
		if (!routed_to_lo(sk))
			count_bypass(cookie, CDT_BYPASS_UNROUTED); // goes out as it is: there is no refusing from here
		return;
	}
	if (tag && tag->kind != CDT_KIND_NONE)
		return; // the proxy's own, or passed while no proxy was alive: counted there
	count_bypass(cookie, CDT_BYPASS_UNSEEN); // goes out as it is, likewise
}

static __always_inline void connecting(struct bpf_sock_ops *ctx, struct bpf_sock *sk, __u64 cookie,
				       const struct cdt_pod *pod)
{
	struct cdt_carry_key key = { .cookie = cookie };
	struct cdt_sock_tag *tag = bpf_sk_storage_get(&cdt_tags, sk, NULL, 0);

	key.src = local_addr(ctx);
	key.dst = remote_addr(ctx);
	key.sport = CTX_READ(ctx->local_port);
	key.dport = remote_port(ctx);
	if (!addr_is_local(pod, &key.dst)) {
		if (!(pod->flags & CDT_POD_FLAG_LEFT))
			watch(sk, cookie, tag);
		return;
	}
	if (tag && tag->kind == CDT_KIND_VIRTUAL) {
		struct cdt_sock_tag peer = *tag;

		peer.kind = CDT_KIND_PEER;
		// Should the map refuse, the application sees the proxy's address.
		bpf_map_update_elem(&cdt_carry, &key, &peer, BPF_ANY);
	} else {
		// An ordinary local connection must not inherit what a failed dial of the proxy left behind.
		bpf_map_delete_elem(&cdt_carry, &key);
	}
}

static __always_inline void accepted(struct bpf_sock_ops *ctx, struct bpf_sock *sk, __u64 cookie)
{
	struct cdt_carry_key key = { .cookie = cookie };
	struct cdt_sock_tag *carried, *tag, peer;

	key.src = remote_addr(ctx);
	key.dst = local_addr(ctx);
	key.sport = remote_port(ctx);
	key.dport = CTX_READ(ctx->local_port);
	carried = bpf_map_lookup_elem(&cdt_carry, &key);
	if (!carried)
		return; // not from the proxy: the true peer is shown
	peer = *carried;
	bpf_map_delete_elem(&cdt_carry, &key);
	tag = bpf_sk_storage_get(&cdt_tags, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (tag) // without memory the application sees the proxy's address
		*tag = peer;
}

static __always_inline struct cdt_tuple outgoing(struct bpf_sock_ops *ctx)
{
	return (struct cdt_tuple){
		.src = local_addr(ctx), .dst = remote_addr(ctx), .sport = CTX_READ(ctx->local_port), .dport = remote_port(ctx),
	};
}

SEC("sockops")
int cdt_sockops(struct bpf_sock_ops *ctx)
{
	__u32 op = ctx->op, state = CTX_READ(ctx->args[1]);
	struct cdt_tuple conn;
	struct bpf_sock *sk;
	struct cdt_pod *pod;
	__u64 cookie;

	if (op == BPF_SOCK_OPS_STATE_CB && state != BPF_TCP_CLOSE)
		return 1; // not its end: the connection goes on
	if (op != BPF_SOCK_OPS_TCP_CONNECT_CB && op != BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB && op != BPF_SOCK_OPS_STATE_CB)
		return 1; // nothing to do: the connection goes on
	sk = ctx->sk;
	if (!sk)
		return 1; // not a full socket, which these operations never see: the connection goes on
	if (op == BPF_SOCK_OPS_STATE_CB) {
		conn = outgoing(ctx);
		kubelet_closed(sk, &conn);
		return 1;
	}
	cookie = bpf_get_netns_cookie(ctx);
	// A pod that has left too: the proxy goes on dialling for connections that were steered before.
	pod = bpf_map_lookup_elem(&cdt_pods, &cookie);
	if (!pod) {
		if (op == BPF_SOCK_OPS_TCP_CONNECT_CB) {
			conn = outgoing(ctx);
			kubelet_connecting(ctx, sk, cookie, &conn);
		}
		return 1; // not a pod of the mesh: the connection goes on
	}
	if (op == BPF_SOCK_OPS_TCP_CONNECT_CB)
		connecting(ctx, sk, cookie, pod);
	else
		accepted(ctx, sk, cookie);
	return 1;
}
