// SPDX-License-Identifier: GPL-2.0
// Addresses: IPv4 is folded into v4-mapped IPv6 where it enters, so that every decision is written once.
#pragma once

#include <linux/types.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "types.h"

#define AF_INET 2
#define AF_INET6 10

// Reads a context field with a load of its own. clang otherwise merges the loads of two branches into one through a
// modified context pointer, which the verifier refuses ("dereference of modified ctx ptr").
#define CTX_READ(field) (*(const volatile typeof(field) *)&(field))

static __always_inline struct cdt_addr addr_from4(__be32 a)
{
	return (struct cdt_addr){ .w = { 0, 0, bpf_htonl(0xffff), a } };
}

static __always_inline struct cdt_addr addr_from6(__be32 a, __be32 b, __be32 c, __be32 d)
{
	return (struct cdt_addr){ .w = { a, b, c, d } };
}

static __always_inline bool addr_is4(const struct cdt_addr *a)
{
	return !a->w[0] && !a->w[1] && a->w[2] == bpf_htonl(0xffff);
}

// One branch: each is a way that the verifier goes.
static __always_inline bool addr_equal(const struct cdt_addr *a, const struct cdt_addr *b)
{
	return !((a->w[0] ^ b->w[0]) | (a->w[1] ^ b->w[1]) | (a->w[2] ^ b->w[2]) | (a->w[3] ^ b->w[3]));
}

// 127/8, ::1, and the unspecified addresses, which connect(2) takes for loopback.
static __always_inline bool addr_is_loopback(const struct cdt_addr *a)
{
	if (addr_is4(a))
		return (a->w[3] & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000) || !a->w[3];
	return !a->w[0] && !a->w[1] && !a->w[2] && (a->w[3] == bpf_htonl(1) || !a->w[3]);
}

// 169.254/16 (RFC 3927) and fe80::/10 (RFC 4291, 2.5.6).
static __always_inline bool addr_is_link_local(const struct cdt_addr *a)
{
	if (addr_is4(a))
		return (a->w[3] & bpf_htonl(0xffff0000)) == bpf_htonl(0xa9fe0000);
	return (a->w[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000);
}

// One of the pod's own addresses, loopback included. Not a static function: so the verifier goes through it once, and not for every call
// in every state. It wants to see that neither is NULL.
__noinline int addr_is_own(const struct cdt_pod *pod, const struct cdt_addr *a)
{
	if (!pod || !a)
		return false;
	if (addr_is_loopback(a))
		return true;
	for (__u32 i = 0; i < CDT_MAX_ADDRS; i++) {
		if (i >= pod->naddrs)
			return false;
		if (addr_equal(&pod->addrs[i], a))
			return true;
	}
	return false;
}

// A destination that the mesh leaves alone.
static __always_inline bool addr_is_local(const struct cdt_pod *pod, const struct cdt_addr *a)
{
	return addr_is_link_local(a) || addr_is_own(pod, a);
}
