// SPDX-License-Identifier: GPL-2.0
// Which process is at work. Only for hooks that run in a system call of the process that they are about.
#pragma once

#include "kernel.h"
#include "types.h"

static __always_inline struct cdt_process process_current(void)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct task_struct *leader = BPF_CORE_READ(task, group_leader);

	return (struct cdt_process){
		.start = BPF_CORE_READ(leader, start_boottime),
		.execs = BPF_CORE_READ(leader, self_exec_id),
		.tgid = BPF_CORE_READ(task, tgid),
	};
}

static __always_inline bool process_equal(const struct cdt_process *a, const struct cdt_process *b)
{
	return a->tgid == b->tgid && a->start == b->start && a->execs == b->execs;
}

// The PID namespace in which the process makes its children: its own, or one that it has made below.
static __always_inline struct pid_namespace *process_pid_ns(void)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();

	return BPF_CORE_READ(task, nsproxy, pid_ns_for_children);
}
