// SPDX-License-Identifier: GPL-2.0
// cgroup/getpeername4 and 6: an application that accepted a connection from the proxy sees the real client, in
// getpeername(2) and in accept(2) alike. Only the socket's tag is asked, so that this goes on for a pod that has left.
// The same hooks tell who accepts a connection (witness.h).

static __always_inline struct cdt_sock_tag *shown_peer(struct bpf_sock_addr *ctx)
{
	struct cdt_sock_tag *tag = bpf_sk_storage_get(&cdt_tags, ctx->sk, NULL, 0);

	return tag && tag->kind == CDT_KIND_PEER ? tag : NULL;
}

SEC("cgroup/getpeername4")
int cdt_peername4(struct bpf_sock_addr *ctx)
{
	struct cdt_sock_tag *tag = shown_peer(ctx);

	if (!tag) {
		struct cdt_addr own = addr_from4(ctx->sk->src_ip4), peer = addr_from4(ctx->user_ip4);

		witness(ctx, &own, &peer);
		return 1; // not accepted from the proxy: the true peer is shown
	}
	if (!addr_is4(&tag->addr))
		return 1; // an IPv6 client does not fit into an IPv4 socket's answer: the proxy's address is shown
	ctx->user_ip4 = tag->addr.w[3];
	ctx->user_port = tag->port;
	return 1;
}

SEC("cgroup/getpeername6")
int cdt_peername6(struct bpf_sock_addr *ctx)
{
	struct cdt_sock_tag *tag = shown_peer(ctx);

	if (!tag) {
		struct bpf_sock *sk = ctx->sk;
		struct cdt_addr own = addr_from6(sk->src_ip6[0], sk->src_ip6[1], sk->src_ip6[2], sk->src_ip6[3]);
		struct cdt_addr peer = addr_from6(ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3]);

		witness(ctx, &own, &peer);
		return 1; // not accepted from the proxy: the true peer is shown
	}
	ctx->user_ip6[0] = tag->addr.w[0];
	ctx->user_ip6[1] = tag->addr.w[1];
	ctx->user_ip6[2] = tag->addr.w[2];
	ctx->user_ip6[3] = tag->addr.w[3];
	ctx->user_port = tag->port;
	return 1;
}
