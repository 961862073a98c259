// SPDX-License-Identifier: GPL-2.0
// sk_lookup: one copy per pod, attached to its network namespace. It decides by addresses alone (ingress_ifindex names
// eth0 for local traffic too):
//   from an own address to a foreign one   outbound: only the marked route brings such a SYN here
//   between own addresses                  the application to itself, or the proxy to it: ordinary lookup
//   from a foreign address to an own one   inbound: the proxy's, but for the probes of the node's kubelet
//   between foreign addresses              refused: it is outbound from, or inbound to, an address of the pod that the
//                                          loader was not told of (yet). Taken for the wrong one of the two, the proxy
//                                          would carry it on in plaintext, or under the pod's identity.
#include <linux/bpf.h>
#include <linux/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <bpf/bpf_helpers.h>

#include "addr.h"
#include "pod.h"

// The pod's namespace: this program type may not ask for it. Set by the loader, once, before it attaches its copy; until then it is nobody's.
volatile __u64 cdt_cookie;

static __always_inline struct cdt_addr dst_addr(struct bpf_sk_lookup *ctx)
{
	__u32 a = CTX_READ(ctx->local_ip6[0]), b = CTX_READ(ctx->local_ip6[1]);
	__u32 c = CTX_READ(ctx->local_ip6[2]), d = CTX_READ(ctx->local_ip6[3]);
	__u32 v4 = CTX_READ(ctx->local_ip4);

	return CTX_READ(ctx->family) == AF_INET ? addr_from4(v4) : addr_from6(a, b, c, d);
}

static __always_inline struct cdt_addr src_addr(struct bpf_sk_lookup *ctx)
{
	__u32 a = CTX_READ(ctx->remote_ip6[0]), b = CTX_READ(ctx->remote_ip6[1]);
	__u32 c = CTX_READ(ctx->remote_ip6[2]), d = CTX_READ(ctx->remote_ip6[3]);
	__u32 v4 = CTX_READ(ctx->remote_ip4);

	return CTX_READ(ctx->family) == AF_INET ? addr_from4(v4) : addr_from6(a, b, c, d);
}

// One of the ports at which the pod itself wants to be probed. The kubelet can be made to dial others: by a probe of another
// pod that names this one's address, and where it is one process with the API server.
__noinline int probed(__u64 cookie, __u32 port)
{
	struct cdt_probes *probes = bpf_map_lookup_elem(&cdt_probes, &cookie);

	if (!probes)
		return false;
	for (__u32 i = 0; i < CDT_MAX_PROBES; i++) {
		if (i >= probes->nports)
			return false;
		if (probes->ports[i] == port)
			return true;
	}
	return false;
}

// The node's kubelet has dialled this, and nobody else (kubelet.h).
static __always_inline bool vouched(struct bpf_sk_lookup *ctx, const struct cdt_addr *src, const struct cdt_addr *dst)
{
	struct cdt_tuple conn = { .src = *src, .dst = *dst };

	// Half of the field that it was before Linux 5.18: the half in which the port is.
	conn.sport = bpf_ntohs(*(const volatile __be16 *)&ctx->remote_port);
	conn.dport = CTX_READ(ctx->local_port);
	return bpf_map_lookup_elem(&cdt_vouched, &conn);
}

// Gives the SYN to the listener in a slot. One that is dropped is answered with RST (ECONNREFUSED) when it is inbound or
// IPv6; an outbound IPv4 one gets no answer, as the RST would bear an address that is not the pod's, and is sent again by
// the client until a proxy listens.
// NO_REUSEPORT, or the kernel would choose again in the listener's reuseport group, and hand half of the connections to
// an older proxy that is draining.
static __always_inline int steer(struct bpf_sk_lookup *ctx, __u64 cookie, enum cdt_slot slot, bool *alive)
{
	struct bpf_sock *sk = pod_listener(cookie, slot);
	long err;

	*alive = sk != NULL;
	if (!sk)
		return SK_DROP;
	err = bpf_sk_assign(ctx, sk, BPF_SK_LOOKUP_F_NO_REUSEPORT);
	bpf_sk_release(sk);
	return err ? SK_DROP : SK_PASS;
}

SEC("sk_lookup")
int cdt_lookup(struct bpf_sk_lookup *ctx)
{
	struct cdt_addr dst, src;
	struct cdt_pod *pod;
	bool alive, v4;
	__u64 cookie = cdt_cookie;
	int verdict;

	if (CTX_READ(ctx->protocol) != IPPROTO_TCP)
		return SK_PASS; // UDP: ordinary lookup
	pod = bpf_map_lookup_elem(&cdt_pods, &cookie);
	if (!pod)
		return SK_PASS; // not enrolled yet, so nothing is marked yet: ordinary lookup
	dst = dst_addr(ctx);
	src = src_addr(ctx);
	v4 = addr_is4(&dst);
	if (addr_equal(&src, &dst))
		return SK_PASS; // surely to itself, whatever address that is: ordinary lookup
	if (addr_is_own(pod, &src)) {
		if (addr_is_local(pod, &dst))
			return SK_PASS; // inside the pod: ordinary lookup
		// Outbound. Never an ordinary lookup: an application listening on the wildcard would answer itself.
		if (pod->flags & CDT_POD_FLAG_LEFT)
			return SK_DROP; // a SYN that was under way when the pod left: dropped
		return steer(ctx, cookie, v4 ? CDT_SLOT_OUT_V4 : CDT_SLOT_OUT_V6, &alive); // dropped if none is alive
	}
	// A link-local source is no less foreign: it is a neighbour.
	if (pod->flags & CDT_POD_FLAG_LEFT)
		return SK_PASS; // no longer enrolled: straight to the application
	if (!addr_is_local(pod, &dst)) {
		count_bypass(cookie, CDT_BYPASS_IN_REFUSED);
		return SK_DROP; // neither end is known as the pod's: refused
	}
	// Inbound.
	if (probed(cookie, CTX_READ(ctx->local_port)) && vouched(ctx, &src, &dst)) {
		count_bypass(cookie, CDT_BYPASS_PROBE);
		return SK_PASS; // a probe: straight to the application
	}
	verdict = steer(ctx, cookie, v4 ? CDT_SLOT_IN_V4 : CDT_SLOT_IN_V6, &alive);
	if (alive)
		return verdict; // to the proxy, or refused should the kernel not take it
	if (pod->flags & CDT_POD_FLAG_IN_OPEN) {
		count_bypass(cookie, CDT_BYPASS_IN_OPEN);
		return SK_PASS; // mode open: straight to the application
	}
	count_bypass(cookie, CDT_BYPASS_IN_REFUSED);
	return SK_DROP; // mode closed: refused
}

char _license[] SEC("license") = "GPL";
