/*
 * Runners in processes of their own, so that whatever a case does to its runner ends up in its result.
 *
 * Threads: all functions on the one thread that owns the pool.
 */
#ifndef FONDA_TESTS_DIFF_POOL_H
#define FONDA_TESTS_DIFF_POOL_H

#include "tests/diff/diff.h"

#define POOL_BATCH 64u

struct pool_worker;

/* Starts a runner's process. argument is kept by reference. Returns 0, or -1 with the reason printed. */
int pool_start(const struct diff_runner *runner, const char *argument, struct pool_worker **ret_worker);
void pool_stop(struct pool_worker *worker);

/* Starts to run count (at most POOL_BATCH) cases, then waits for them. Between the two, other workers may be
 * given work. Results hold DIFF_CRASHED or DIFF_HUNG where the process had to be replaced. */
void pool_submit(struct pool_worker *worker, const struct diff_case *cases, uint32_t count);
int pool_wait(struct pool_worker *worker);
const struct diff_result *pool_result(const struct pool_worker *worker, uint32_t i);

#endif
