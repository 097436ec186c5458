/*
 * Limits of a machine's process, as an instance names them, put into control files of one cgroup.
 *
 *     member         cgroup v2       cgroup v1
 *     cpu_limit      cpu.max         cpu.cfs_quota_us of cpu.cfs_period_us
 *     cpu_weight     cpu.weight      cpu.shares, 1024 for 100
 *     memory_limit   memory.max      memory.limit_in_bytes
 *     memory_swap    memory.swap.max memory.memsw.limit_in_bytes (memory and swap together)
 *     pids_limit     pids.max        pids.max
 *
 * Which of the two serves a controller is the host's choice (container/cg.h).
 */
#ifndef FONDA_CONTAINER_LIMIT_LIMIT_H
#define FONDA_CONTAINER_LIMIT_LIMIT_H

#include <jansson.h>

#include "base/err.h"
#include "container/cg.h"

/* limits: an object with the members above; cpu_limit is a text ("1.5"), the others are integers. Members
 * that aren't there have no limit; with `update` a limit that was there before is taken away, and less memory
 * than is in use is refused.
 * Errors: -EINVAL (no such limit, or no number), -EOPNOTSUPP (the host can't), -EACCES (this user may not),
 * -EBUSY, those of the control files. The text names the member. */
int limit_apply(struct cg *cg, const json_t *limits, bool update, struct err *err);

#endif
