/*
 * The machine clock: nanoseconds since its creation, and a binary min-heap of timers.
 *
 * Neighbours: devices arm timers, the main loop of vm/ sleeps until clock_next_deadline() and calls
 * clock_run().
 *
 * Invariants
 *  1. heap[1..count] is a min-heap by deadline; heap[i]->heap_index == i, and 0 in a timer means "not armed".
 *  2. announced_ns is the deadline until which the main loop believes it may sleep: the wake callback runs
 *     only when a timer is armed for an earlier time, and not from inside a timer callback (the loop looks
 *     again then).
 *  3. One clock_run() runs at most as many callbacks as timers were armed when it began, so that a timer that
 *     re-arms itself for the past cannot hold the main loop.
 */
#include "base/clock.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

#define NS_PER_S 1000000000ull

struct clock {
    pthread_mutex_t lock; /* guards everything below but now_ns */
    bool manual;
    _Atomic bool stopped;       /* host clock: it holds now_ns */
    _Atomic uint64_t origin_ns; /* host clock: CLOCK_MONOTONIC at time 0 */
    _Atomic uint64_t now_ns;    /* manual clock; host clock while it is stopped */
    struct clock_timer **heap;
    unsigned count;
    unsigned capacity;
    uint64_t announced_ns;
    void (*wake)(void *opaque);
    void *wake_opaque;
};

/* The clock whose callbacks this thread is running. */
static _Thread_local const struct clock *running_clock;

static struct clock *clock_new(bool manual)
{
    struct clock *clock = calloc(1, sizeof(*clock));
    if (!clock) {
        return NULL;
    }
    pthread_mutex_init(&clock->lock, NULL);
    clock->manual = manual;
    clock->origin_ns = clock_host_ns();
    clock->announced_ns = CLOCK_NEVER;
    return clock;
}

struct clock *clock_new_host(void)
{
    return clock_new(false);
}

struct clock *clock_new_manual(void)
{
    return clock_new(true);
}

void clock_free(struct clock *clock)
{
    if (!clock) {
        return;
    }
    for (unsigned i = 1; i <= clock->count; i++) {
        clock->heap[i]->heap_index = 0;
    }
    pthread_mutex_destroy(&clock->lock);
    free(clock->heap);
    free(clock);
}

uint64_t clock_now_ns(struct clock *clock)
{
    if (clock->manual || atomic_load(&clock->stopped)) {
        return atomic_load_explicit(&clock->now_ns, memory_order_relaxed);
    }
    return clock_host_ns() - atomic_load_explicit(&clock->origin_ns, memory_order_relaxed);
}

/* now_ns is set before `stopped` is, and origin_ns before it is cleared: whoever sees the flag sees the
 * value. */
void clock_stop(struct clock *clock)
{
    atomic_store(&clock->now_ns, clock_host_ns() - clock->origin_ns);
    atomic_store(&clock->stopped, true);
}

void clock_go(struct clock *clock)
{
    atomic_store(&clock->origin_ns, clock_host_ns() - clock->now_ns);
    atomic_store(&clock->stopped, false);
}

void clock_set_ns(struct clock *clock, uint64_t now_ns)
{
    atomic_store(&clock->now_ns, now_ns);
}

static void heap_put(struct clock *clock, unsigned i, struct clock_timer *timer)
{
    clock->heap[i] = timer;
    timer->heap_index = i;
}

static void heap_sift_up(struct clock *clock, unsigned i)
{
    struct clock_timer *timer = clock->heap[i];
    while (i > 1 && clock->heap[i / 2]->deadline_ns > timer->deadline_ns) {
        heap_put(clock, i, clock->heap[i / 2]);
        i /= 2;
    }
    heap_put(clock, i, timer);
}

static void heap_sift_down(struct clock *clock, unsigned i)
{
    struct clock_timer *timer = clock->heap[i];
    for (;;) {
        unsigned child = 2 * i;
        if (child > clock->count) {
            break;
        }
        if (child < clock->count && clock->heap[child + 1]->deadline_ns < clock->heap[child]->deadline_ns) {
            child++;
        }
        if (clock->heap[child]->deadline_ns >= timer->deadline_ns) {
            break;
        }
        heap_put(clock, i, clock->heap[child]);
        i = child;
    }
    heap_put(clock, i, timer);
}

static void heap_remove(struct clock *clock, struct clock_timer *timer)
{
    unsigned i = timer->heap_index;
    struct clock_timer *last = clock->heap[clock->count--];
    timer->heap_index = 0;
    if (last != timer) {
        heap_put(clock, i, last);
        heap_sift_down(clock, i);
        heap_sift_up(clock, last->heap_index);
    }
}

void clock_timer_init(struct clock_timer *timer, void (*fn)(void *opaque), void *opaque)
{
    *timer = (struct clock_timer){.fn = fn, .opaque = opaque};
}

int clock_timer_arm(struct clock *clock, struct clock_timer *timer, uint64_t deadline_ns)
{
    void (*wake)(void *opaque) = NULL;
    void *wake_opaque = NULL;

    pthread_mutex_lock(&clock->lock);
    if (timer->heap_index) {
        timer->deadline_ns = deadline_ns;
        heap_sift_down(clock, timer->heap_index);
        heap_sift_up(clock, timer->heap_index);
    } else {
        if (clock->count + 1 >= clock->capacity) {
            unsigned capacity = clock->capacity ? clock->capacity * 2 : 32;
            struct clock_timer **heap = realloc(clock->heap, capacity * sizeof(struct clock_timer *));
            if (!heap) {
                pthread_mutex_unlock(&clock->lock);
                return -ENOMEM;
            }
            clock->heap = heap;
            clock->capacity = capacity;
        }
        timer->deadline_ns = deadline_ns;
        clock->heap[++clock->count] = timer;
        heap_sift_up(clock, clock->count);
    }
    if (deadline_ns < clock->announced_ns && running_clock != clock) {
        clock->announced_ns = deadline_ns;
        wake = clock->wake;
        wake_opaque = clock->wake_opaque;
    }
    pthread_mutex_unlock(&clock->lock);

    if (wake) {
        wake(wake_opaque);
    }
    return 0;
}

void clock_timer_cancel(struct clock *clock, struct clock_timer *timer)
{
    pthread_mutex_lock(&clock->lock);
    if (timer->heap_index) {
        heap_remove(clock, timer);
    }
    pthread_mutex_unlock(&clock->lock);
}

void clock_set_wake(struct clock *clock, void (*wake)(void *opaque), void *opaque)
{
    pthread_mutex_lock(&clock->lock);
    clock->wake = wake;
    clock->wake_opaque = opaque;
    pthread_mutex_unlock(&clock->lock);
}

uint64_t clock_next_deadline(struct clock *clock)
{
    pthread_mutex_lock(&clock->lock);
    bool runs = clock->count && !atomic_load(&clock->stopped);
    uint64_t deadline_ns = runs ? clock->heap[1]->deadline_ns : CLOCK_NEVER;
    clock->announced_ns = deadline_ns;
    pthread_mutex_unlock(&clock->lock);
    return deadline_ns;
}

/* Runs the earliest timer when it is due at limit_ns; false when none is. A manual clock moves to its
 * deadline. */
static bool run_one(struct clock *clock, uint64_t limit_ns)
{
    pthread_mutex_lock(&clock->lock);
    struct clock_timer *timer = clock->count ? clock->heap[1] : NULL;
    if (!timer || timer->deadline_ns > limit_ns) {
        pthread_mutex_unlock(&clock->lock);
        return false;
    }
    heap_remove(clock, timer);
    if (clock->manual && timer->deadline_ns > atomic_load_explicit(&clock->now_ns, memory_order_relaxed)) {
        atomic_store_explicit(&clock->now_ns, timer->deadline_ns, memory_order_relaxed);
    }
    void (*fn)(void *opaque) = timer->fn;
    void *opaque = timer->opaque;
    pthread_mutex_unlock(&clock->lock);

    const struct clock *outer = running_clock;
    running_clock = clock;
    fn(opaque);
    running_clock = outer;
    return true;
}

void clock_run(struct clock *clock)
{
    if (atomic_load(&clock->stopped)) {
        return;
    }
    uint64_t now_ns = clock_now_ns(clock);
    pthread_mutex_lock(&clock->lock);
    unsigned budget = clock->count;
    pthread_mutex_unlock(&clock->lock);
    while (budget-- && run_one(clock, now_ns)) {
    }
}

void clock_advance(struct clock *clock, uint64_t ns)
{
    uint64_t target_ns;
    if (__builtin_add_overflow(clock_now_ns(clock), ns, &target_ns)) {
        target_ns = CLOCK_NEVER - 1;
    }
    while (run_one(clock, target_ns)) {
    }
    atomic_store_explicit(&clock->now_ns, target_ns, memory_order_relaxed);
}
