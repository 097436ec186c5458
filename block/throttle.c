/*
 * The filter throttle: limits requests and bytes a second, reads and writes together. See throttle.h.
 *
 * Requests pass in the order of their arrival: the first that has to wait holds the gate, the others queue
 * behind it. Flushes and maps pass freely.
 */
#include "block/throttle.h"

#include <errno.h>

#include "block/block_provider.h"

#define NS_PER_S 1000000000ull
/* Default burst: a tenth of a second's worth. */
#define BURST_DIVISOR 10u
/* The limits may change while a request waits: it looks as often. */
#define NAP_NS (NS_PER_S / 10)

struct throttle {
    struct throttle_bucket requests, bytes;
    struct co_mutex gate;
};

void throttle_bucket_init(struct throttle_bucket *bucket, uint64_t rate, uint64_t burst, uint64_t now_ns)
{
    if (rate && !burst) {
        burst = MAX(rate / BURST_DIVISOR, 1u);
    }
    *bucket =
        (struct throttle_bucket){.rate = rate, .burst = burst, .level = (double)burst, .last_ns = now_ns};
}

uint64_t throttle_bucket_wait_ns(struct throttle_bucket *bucket, uint64_t now_ns)
{
    if (!bucket->rate) {
        return 0;
    }
    double elapsed_s = now_ns > bucket->last_ns ? (double)(now_ns - bucket->last_ns) / (double)NS_PER_S : 0;
    bucket->last_ns = now_ns;
    bucket->level = MIN(bucket->level + elapsed_s * (double)bucket->rate, (double)bucket->burst);
    if (bucket->level > 0) {
        return 0;
    }
    /* Rounded up, so that one wait is enough. */
    return (uint64_t)(-bucket->level / (double)bucket->rate * (double)NS_PER_S) + 1000u;
}

void throttle_bucket_take(struct throttle_bucket *bucket, uint64_t units)
{
    if (bucket->rate) {
        bucket->level -= (double)units;
    }
}

static void set_limits(struct throttle *throttle, const struct blk_throttle_limits *limits)
{
    uint64_t now_ns = blk_loop_now_ns();
    throttle_bucket_init(&throttle->requests, limits->iops, limits->iops_burst, now_ns);
    throttle_bucket_init(&throttle->bytes, limits->bytes_per_s, limits->bytes_burst, now_ns);
}

static int throttle_open(struct blk_node *node, const struct blk_open_options *options, struct err *err)
{
    struct throttle *throttle = node->state;
    co_mutex_init(&throttle->gate, node->loop);
    set_limits(throttle, &options->throttle);
    node->size_bytes = node->file->size_bytes;
    return 0;
}

static int throttle_co_io(struct blk_node *node, struct blk_req *req)
{
    struct throttle *throttle = node->state;
    if (req->op != BLK_FLUSH && req->op != BLK_MAP) {
        co_mutex_lock(&throttle->gate);
        for (;;) {
            uint64_t now_ns = blk_loop_now_ns();
            uint64_t requests_ns = throttle_bucket_wait_ns(&throttle->requests, now_ns);
            uint64_t bytes_ns = throttle_bucket_wait_ns(&throttle->bytes, now_ns);
            uint64_t wait_ns = MAX(requests_ns, bytes_ns);
            if (!wait_ns) {
                break;
            }
            blk_loop_sleep(node->loop, MIN(wait_ns, NAP_NS));
        }
        throttle_bucket_take(&throttle->requests, 1);
        throttle_bucket_take(&throttle->bytes, req->op <= BLK_WRITE ? req->bytes : 0);
        co_mutex_unlock(&throttle->gate);
    }
    return blk_co_io(node->file, req);
}

int blk_set_throttle(struct blk_node *node, const struct blk_throttle_limits *limits)
{
    if (node->driver != &blk_throttle_driver) {
        return -ENOTSUP;
    }
    set_limits(node->state, limits);
    return 0;
}

const struct blk_driver blk_throttle_driver = {
    .name = "throttle",
    .state_size = sizeof(struct throttle),
    .open = throttle_open,
    .co_io = throttle_co_io,
};
