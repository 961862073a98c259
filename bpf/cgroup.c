// SPDX-License-Identifier: GPL-2.0
// The programs that are attached to the cgroup, as one object.
#include <linux/bpf.h>
#include <linux/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <bpf/bpf_helpers.h>

#include "kernel.h"
#include "addr.h"
#include "pod.h"
#include "kubelet.h"
#include "witness.h"

#include "create.c"
#include "connect.c"
#include "sockopt.c"
#include "sockops.c"
#include "peername.c"

char _license[] SEC("license") = "GPL";
