// SPDX-License-Identifier: GPL-2.0
// cgroup/sock_create: counts the TCP sockets that an enrolled pod creates. It never refuses one.

#ifndef IPPROTO_MPTCP
#define IPPROTO_MPTCP 262
#endif

SEC("cgroup/sock_create")
int cdt_create(struct bpf_sock *ctx)
{
	struct cdt_pod *pod;
	__u64 cookie;

	if (ctx->protocol != IPPROTO_TCP && ctx->protocol != IPPROTO_MPTCP)
		return 1; // not TCP: created, not counted
	cookie = bpf_get_netns_cookie(ctx);
	pod = bpf_map_lookup_elem(&cdt_pods, &cookie);
	if (!pod || pod->flags & CDT_POD_FLAG_LEFT)
		return 1; // not an enrolled pod: created, not counted
	count_created(cookie);
	return 1;
}
