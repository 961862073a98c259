// SPDX-License-Identifier: GPL-2.0
// cgroup/setsockopt: keeps the mark of a steered socket. A process with CAP_NET_RAW, which containers have by default, may
// set another one on a connected socket; the kernel would then route it anew, and what the application says next would
// leave by the pod's interface, in plaintext. The call succeeds and changes nothing: what a mark does to a steered
// connection is the mesh's affair. It runs for every setsockopt of the node, so that all but one option return at once.

#ifndef IPPROTO_MPTCP
#define IPPROTO_MPTCP 262
#endif

#define OPT_PAGE 4096
#define OPT_DONE (-1) // the kernel's own handler is not called
#define OPT_ASIS 0    // the kernel takes the caller's buffer

SEC("cgroup/setsockopt")
int cdt_setsockopt(struct bpf_sockopt *ctx)
{
	struct bpf_sock *sk;
	__u64 cookie;

	if (ctx->level != SOL_SOCKET || ctx->optname != SO_MARK) {
		if (ctx->optlen > OPT_PAGE)
			ctx->optlen = OPT_ASIS; // else refused with EFAULT before Linux 6.5
		return 1; // any other option: as ever
	}
	sk = ctx->sk;
	if (!sk)
		return 1; // no socket, which this hook never sees: as ever
	// The mark is on the subflows of an MPTCP socket, to which the kernel passes a new one on.
	if (sk->mark != CDT_MARK && sk->protocol != IPPROTO_MPTCP)
		return 1; // not steered: as ever; a connect that is steered overwrites it
	cookie = bpf_get_netns_cookie(ctx);
	if (!bpf_map_lookup_elem(&cdt_pods, &cookie))
		return 1; // not a pod of the mesh: as ever
	ctx->optlen = OPT_DONE; // steered, be the pod enrolled or on its way out: the mark stays
	return 1;
}
