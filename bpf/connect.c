// SPDX-License-Identifier: GPL-2.0
// cgroup/connect4 and connect6: outbound. A connection that the mesh shall carry is marked, nothing else: the rule and
// routes of the pod's namespace turn marked packets round on lo, and the lookup program hands the SYN to the proxy's
// outbound listener, whose accepted socket has the original destination as its local address.

#define SOL_SOCKET 1
#define SO_MARK 36
#define SOCK_STREAM 1
#define ECONNREFUSED 111

#define ALLOW 1
#define REFUSE 0

// Whether sock_addr programs may call bpf_set_retval. Set by the loader after a probe; the verifier prunes the call
// where the helper is missing.
const volatile __u8 cdt_have_retval = 0;

static __always_inline int set_mark(struct bpf_sock_addr *ctx, __u32 mark)
{
	return bpf_setsockopt(ctx, SOL_SOCKET, SO_MARK, &mark, sizeof(mark));
}

// Lets the connection go by itself. A socket that was steered at an earlier connect (which failed: TCP allows another
// attempt) still carries the mark, and its SYN would be turned round: take it off.
static __always_inline int pass(struct bpf_sock_addr *ctx)
{
	if (ctx->sk->mark == CDT_MARK)
		set_mark(ctx, 0);
	return ALLOW;
}

static __always_inline int refuse(struct bpf_sock_addr *ctx, __u64 cookie)
{
	count_bypass(cookie, CDT_BYPASS_REFUSED);
	if (cdt_have_retval)
		bpf_set_retval(-ECONNREFUSED); // as if nobody listened; without the helper connect(2) says EPERM
	return REFUSE;
}

static __noinline bool is_proxys(enum cdt_kind kind)
{
	return kind == CDT_KIND_PROXY || kind == CDT_KIND_VIRTUAL;
}

// No proxy is alive.
static __always_inline int proxy_down(struct bpf_sock_addr *ctx, __u64 cookie, const struct cdt_pod *pod)
{
	struct cdt_sock_tag *tag;

	if (!(pod->flags & CDT_POD_FLAG_OUT_OPEN))
		return refuse(ctx, cookie); // mode closed: never plaintext
	// Mode open: connects directly. The tag tells sockops that this SYN was judged; without memory for it the
	// connection is counted a second time, as unseen.
	tag = bpf_sk_storage_get(&cdt_tags, ctx->sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (tag)
		tag->kind = CDT_KIND_PASSED;
	count_bypass(cookie, CDT_BYPASS_DOWN_OPEN);
	return pass(ctx);
}

static __always_inline int connect(struct bpf_sock_addr *ctx, const struct cdt_addr *dst)
{
	struct cdt_sock_tag *tag;
	struct bpf_sock *listener;
	struct cdt_pod *pod;
	__u64 cookie;

	if (ctx->protocol != IPPROTO_TCP || ctx->type != SOCK_STREAM)
		return ALLOW; // not TCP: not the mesh's, connects as ever (MPTCP comes here once per TCP subflow)
	cookie = bpf_get_netns_cookie(ctx);
	pod = bpf_map_lookup_elem(&cdt_pods, &cookie);
	if (!pod) {
		kubelet_connect(ctx, cookie);
		return ALLOW; // not a pod of the mesh: connects as ever
	}
	if (pod->flags & CDT_POD_FLAG_LEFT)
		return pass(ctx); // no longer enrolled: connects directly
	tag = bpf_sk_storage_get(&cdt_tags, ctx->sk, NULL, 0);
	if (tag && is_proxys(tag->kind)) {
		count_bypass(cookie, CDT_BYPASS_PROXY);
		return ALLOW; // the proxy's own: steering it would be a loop
	}
	if (addr_is_local(pod, dst)) {
		count_bypass(cookie, CDT_BYPASS_LOCAL);
		return pass(ctx); // stays in the pod or on its link: connects directly
	}
	listener = pod_listener(cookie, addr_is4(dst) ? CDT_SLOT_OUT_V4 : CDT_SLOT_OUT_V6);
	if (!listener)
		return proxy_down(ctx, cookie, pod);
	bpf_sk_release(listener);
	// An unmarked socket would leave in plaintext. The application's own mark, if any, is overwritten.
	if (set_mark(ctx, CDT_MARK))
		return refuse(ctx, cookie);
	count_steered(cookie);
	return ALLOW; // steered
}

SEC("cgroup/connect4")
int cdt_connect4(struct bpf_sock_addr *ctx)
{
	struct cdt_addr dst = addr_from4(ctx->user_ip4);

	return connect(ctx, &dst);
}

// Also runs for ::ffff:a.b.c.d, for which connect4 does not; such a destination is v4-mapped already.
SEC("cgroup/connect6")
int cdt_connect6(struct bpf_sock_addr *ctx)
{
	struct cdt_addr dst = addr_from6(ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3]);

	return connect(ctx, &dst);
}
