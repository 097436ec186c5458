/*
 * The arithmetic of the throttle filter, apart from clocks and requests so that it can be tested alone.
 *
 * A bucket fills at `rate` units a second up to `burst` units. A request takes its units when the bucket is not empty,
 * and may take it below zero; the next one then waits until it is back above zero. So the long-run rate is exact,
 * and a request larger than the burst is not starved.
 */
#ifndef FONDA_BLOCK_THROTTLE_H
#define FONDA_BLOCK_THROTTLE_H

#include <stdint.h>

struct throttle_bucket {
    uint64_t rate;  /* units a second; 0: no limit */
    uint64_t burst; /* units */
    double level;   /* units; negative: debt */
    uint64_t last_ns;
};

void throttle_bucket_init(struct throttle_bucket *bucket, uint64_t rate, uint64_t burst, uint64_t now_ns);
/* How long a request has to wait; 0: it may go. */
uint64_t throttle_bucket_wait_ns(struct throttle_bucket *bucket, uint64_t now_ns);
void throttle_bucket_take(struct throttle_bucket *bucket, uint64_t units);

#endif
