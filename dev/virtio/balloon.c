/*
 * See balloon.h. Section numbers are those of virtio 1.2.
 *
 * Queues (5.5.2): inflate, deflate, and behind them those of statistics, hinting and reporting, as far as
 * negotiated.
 *
 * A round of hinting (5.5.6.5): we set a command ID; the guest sends it, then its free pages, which it keeps
 * to itself meanwhile, then the stop ID; we set "done", and it takes its pages back.
 */
#include "dev/virtio/balloon.h"

#include <stdio.h>
#include <string.h>

#include <errno.h>

#include "base/state.h"

#define F_STATS_VQ       BIT64(1)
#define F_DEFLATE_ON_OOM BIT64(2)
#define F_FREE_PAGE_HINT BIT64(3)
#define F_REPORTING      BIT64(5)

#define INFLATE 0u
#define DEFLATE 1u
#define NONE    UINT32_MAX

#define HINT_STOP  0u
#define HINT_DONE  1u
#define HINT_FIRST 2u

#define PAGE_SHIFT   12u
#define ROUND_CHAINS 32u    /* then the main loop gets a turn */
#define CHAIN_PAGES  65536u /* of one inflate request that are looked at */
#define STAT_BYTES   10u

struct bal_config { /* 5.5.4 */
    uint32_t num_pages, actual, hint_command, poison;
};

struct vbal {
    struct vdev dev;
    struct bal_config space;
    struct vbal_info info;
    uint32_t hint_next; /* the command ID of the next round */
    bool hint_round, hint_started;
    bool has_stats_chain; /* the driver's buffer, which we keep until we want news */
    struct vq_chain stats_chain;
    struct vq_chain chain;
};

/* The queue of a feature, or NONE. */
static unsigned queue_of(const struct vdev *dev, uint64_t feature)
{
    static const uint64_t order[] = {F_STATS_VQ, F_FREE_PAGE_HINT, F_REPORTING};
    unsigned queue = DEFLATE + 1;
    for (size_t i = 0; i < ARRAY_SIZE(order); i++) {
        if (vdev_has(dev, order[i])) {
            if (order[i] == feature) {
                return queue;
            }
            queue++;
        }
    }
    return NONE;
}

static uint64_t give_up(struct vbal *bal, uint64_t gpa, uint64_t bytes)
{
    return mem_ram_discard(bal->dev.mem, GPA(gpa), bytes) == 0 ? bytes : 0;
}

/* --- the balloon --- */

static void inflate(struct vbal *bal, const struct vq_chain *chain)
{
    uint64_t pages = MIN(chain->out_bytes / 4, CHAIN_PAGES);
    uint64_t run_start = 0, run_pages = 0;
    for (uint64_t i = 0; i < pages; i++) {
        uint32_t pfn;
        viov_read(chain->segs, chain->out_count, i * 4, &pfn, sizeof(pfn));
        if (run_pages && pfn == run_start + run_pages) {
            run_pages++;
        } else if (run_pages && pfn + 1ull == run_start) { /* Linux hands pages out downwards */
            run_start--;
            run_pages++;
        } else {
            bal->info.given_bytes += give_up(bal, run_start << PAGE_SHIFT, run_pages << PAGE_SHIFT);
            run_start = pfn;
            run_pages = 1;
        }
    }
    bal->info.given_bytes += give_up(bal, run_start << PAGE_SHIFT, run_pages << PAGE_SHIFT);
}

static void ranges(struct vbal *bal, const struct vq_chain *chain, uint64_t *counter)
{
    const uint8_t *base = mem_ram_base(bal->dev.mem);
    for (unsigned i = 0; i < chain->in_count; i++) {
        const struct iovec *seg = &chain->segs[chain->out_count + i];
        gpa_t gpa = mem_ram_gpa(bal->dev.mem, (uint64_t)((const uint8_t *)seg->iov_base - base));
        *counter += give_up(bal, gpa.v, seg->iov_len);
    }
}

/* --- hinting --- */

static void set_hint_command(struct vbal *bal, uint32_t command)
{
    mem_lock(bal->dev.mem);
    bal->space.hint_command = command;
    mem_unlock(bal->dev.mem);
    vdev_config_changed(&bal->dev);
}

static void hint(struct vbal *bal, const struct vq_chain *chain)
{
    uint32_t command;
    if (viov_read(chain->segs, chain->out_count, 0, &command, sizeof(command)) == sizeof(command)) {
        if (bal->hint_round && command == bal->space.hint_command) {
            bal->hint_started = true;
        } else if (bal->hint_round && bal->hint_started && command == HINT_STOP) {
            bal->hint_round = bal->hint_started = false;
            set_hint_command(bal, HINT_DONE);
        }
    }
    if (bal->hint_started) {
        ranges(bal, chain, &bal->info.hinted_bytes);
    }
}

bool vbal_trim(struct vdev *dev)
{
    struct vbal *bal = CONTAINER_OF(dev, struct vbal, dev);
    if (!dev->live || bal->hint_round || queue_of(dev, F_FREE_PAGE_HINT) == NONE) {
        return false;
    }
    bal->hint_round = true;
    bal->hint_started = false;
    set_hint_command(bal, bal->hint_next);
    bal->hint_next = bal->hint_next == UINT32_MAX ? HINT_FIRST : bal->hint_next + 1;
    return true;
}

bool vbal_reports(const struct vdev *dev)
{
    return dev->live && queue_of(dev, F_REPORTING) != NONE;
}

/* --- statistics --- */

static void take_stats(struct vbal *bal)
{
    struct vq_chain *chain = &bal->chain;
    unsigned queue = queue_of(&bal->dev, F_STATS_VQ);
    while (vdev_pop(&bal->dev, queue, chain)) {
        if (bal->has_stats_chain) { /* a driver that gives two at once gets the older one back */
            vq_push(&bal->dev.queues[queue], &bal->stats_chain, 0);
        }
        uint64_t count = MIN(chain->out_bytes / STAT_BYTES, 64);
        for (uint64_t i = 0; i < count; i++) {
            uint8_t bytes[STAT_BYTES];
            uint16_t tag;
            viov_read(chain->segs, chain->out_count, i * STAT_BYTES, bytes, sizeof(bytes));
            memcpy(&tag, bytes, 2);
            if (tag < VBAL_STATS) {
                memcpy(&bal->info.stats[tag], bytes + 2, 8);
            }
        }
        bal->stats_chain = *chain;
        bal->has_stats_chain = true;
    }
}

void vbal_ask_stats(struct vdev *dev)
{
    struct vbal *bal = CONTAINER_OF(dev, struct vbal, dev);
    unsigned queue = queue_of(dev, F_STATS_VQ);
    if (dev->live && bal->has_stats_chain && queue != NONE) {
        bal->has_stats_chain = false;
        vq_push(&dev->queues[queue], &bal->stats_chain, 0);
        vdev_signal(dev, queue);
    }
}

/* --- the device --- */

static void bal_kick(struct vdev *dev, unsigned queue)
{
    struct vbal *bal = CONTAINER_OF(dev, struct vbal, dev);
    if (queue == queue_of(dev, F_STATS_VQ)) {
        take_stats(bal);
        return;
    }
    for (unsigned n = 0; n < ROUND_CHAINS && vdev_pop(dev, queue, &bal->chain); n++) {
        if (queue == INFLATE) {
            inflate(bal, &bal->chain);
        } else if (queue == queue_of(dev, F_FREE_PAGE_HINT)) {
            hint(bal, &bal->chain);
        } else if (queue == queue_of(dev, F_REPORTING)) {
            ranges(bal, &bal->chain, &bal->info.reported_bytes);
        }
        vq_push(&dev->queues[queue], &bal->chain, 0);
    }
    vdev_signal(dev, queue);
    if (vq_enable_notify(&dev->queues[queue])) {
        vdev_again(dev, queue);
    }
}

static void bal_stop(struct vdev *dev)
{
    struct vbal *bal = CONTAINER_OF(dev, struct vbal, dev);
    bal->has_stats_chain = bal->hint_round = bal->hint_started = false;
    memset(bal->info.stats, 0xff, sizeof(bal->info.stats));
    mem_lock(dev->mem);
    bal->space.hint_command = HINT_STOP;
    bal->space.actual = 0;
    mem_unlock(dev->mem);
}

static bool bal_config_writable(const struct vdev *dev, unsigned offset, unsigned len)
{
    return offset == offsetof(struct bal_config, actual) && len == 4;
}

void vbal_set_target(struct vdev *dev, uint64_t bytes)
{
    struct vbal *bal = CONTAINER_OF(dev, struct vbal, dev);
    mem_lock(dev->mem);
    bal->space.num_pages = (uint32_t)MIN(bytes >> PAGE_SHIFT, UINT32_MAX);
    mem_unlock(dev->mem);
    vdev_config_changed(dev);
}

void vbal_get_info(const struct vdev *dev, struct vbal_info *ret)
{
    const struct vbal *bal = CONTAINER_OF(dev, const struct vbal, dev);
    *ret = bal->info;
    mem_lock(dev->mem);
    ret->target_pages = bal->space.num_pages;
    ret->actual_pages = bal->space.actual;
    mem_unlock(dev->mem);
}

/* 5.5.6.4 */
static const char *const stat_names[VBAL_STATS] = {
    "swap-in", "swap-out",  "major-faults", "minor-faults",     "free",
    "total",   "available", "disk-caches",  "huge-allocations", "huge-failures"};

static unsigned bal_describe(const struct vdev *dev, char *buf, unsigned size)
{
    struct vbal_info info;
    vbal_get_info(dev, &info);
    int n = snprintf(
        buf, size,
        "  target=%llu actual=%llu pages; to the host: %llu by balloon, %llu reported, %llu hinted\n",
        (unsigned long long)info.target_pages, (unsigned long long)info.actual_pages,
        (unsigned long long)info.given_bytes, (unsigned long long)info.reported_bytes,
        (unsigned long long)info.hinted_bytes);
    unsigned len = MIN((unsigned)MAX(n, 0), size);
    for (unsigned tag = 0; tag < VBAL_STATS && len < size; tag++) {
        if (info.stats[tag] != UINT64_MAX) {
            n = snprintf(buf + len, size - len, "  statistic %s=%llu\n", stat_names[tag],
                         (unsigned long long)info.stats[tag]);
            len += (unsigned)MAX(n, 0);
        }
    }
    return MIN(len, size);
}

static void bal_free(struct vdev *dev)
{
    free(CONTAINER_OF(dev, struct vbal, dev));
}

static void bal_state(struct vdev *dev, struct state *s)
{
    struct vbal *bal = CONTAINER_OF(dev, struct vbal, dev);
    bool held = bal->has_stats_chain;
    state_field(s, "hint_next", &bal->hint_next);
    state_field(s, "hint_round", &bal->hint_round);
    state_field(s, "hint_started", &bal->hint_started);
    state_field(s, "has_stats_chain", &held);
    unsigned queue = queue_of(dev, F_STATS_VQ);
    if (state_loaded(s) && held && dev->live && queue < dev->queue_count) {
        vq_unpop(&dev->queues[queue], 1); /* the first kick takes it again */
    }
}

static const struct vdev_ops bal_ops = {
    .name = "virtio-balloon",
    .id = VIRTIO_ID_BALLOON,
    .class_code = 0xff0000,
    .stop = bal_stop,
    .kick = bal_kick,
    .free = bal_free,
    .config_writable = bal_config_writable,
    .describe = bal_describe,
    .state = bal_state,
};

struct vdev *vbal_new(struct mem *mem, struct err *err)
{
    struct vbal *bal = calloc(1, sizeof(*bal));
    if (!bal) {
        err_set(err, -ENOMEM, "out of memory");
        return NULL;
    }
    bal->hint_next = HINT_FIRST;
    memset(bal->info.stats, 0xff, sizeof(bal->info.stats));
    vdev_init(&bal->dev, &bal_ops, mem, 5, F_STATS_VQ | F_DEFLATE_ON_OOM | F_FREE_PAGE_HINT | F_REPORTING,
              &bal->space, sizeof(bal->space));
    return &bal->dev;
}
