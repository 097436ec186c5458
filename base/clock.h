/*
 * Machine time: a nanosecond clock and its timers, shared by all devices of one machine.
 *
 * The main loop sleeps until clock_next_deadline() and then calls clock_run(); when another thread arms an
 * earlier timer, the wake callback tells the main loop. Tests drive a manual clock instead of the host's.
 *
 * Threads: clock_now_ns from any; the timer functions from any (one internal lock); callbacks run on the
 * thread that calls clock_run, without that lock held, so they may re-arm. A callback never runs after
 * clock_timer_cancel() returned on the same thread.
 */
#ifndef FONDA_BASE_CLOCK_H
#define FONDA_BASE_CLOCK_H

#include <stdbool.h>
#include <stdint.h>
#include <time.h>

/* The host's CLOCK_MONOTONIC, for who measures or waits by himself. Inline, so that the engine's runtime gets
 * it without vector registers. */
static inline uint64_t clock_host_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

struct clock;

struct clock_timer {
    void (*fn)(void *opaque);
    void *opaque;
    uint64_t deadline_ns; /* while armed */
    unsigned heap_index;  /* 0: not armed */
};

#define CLOCK_NEVER UINT64_MAX

struct clock *clock_new_host(void);   /* CLOCK_MONOTONIC, starting at 0; NULL: no memory */
struct clock *clock_new_manual(void); /* stands still until clock_advance */
void clock_free(struct clock *clock);
uint64_t clock_now_ns(struct clock *clock);
void clock_advance(struct clock *clock, uint64_t ns); /* manual clock: moves on, running timers in order */

void clock_timer_init(struct clock_timer *timer, void (*fn)(void *opaque), void *opaque);
int clock_timer_arm(struct clock *clock, struct clock_timer *timer, uint64_t deadline_ns); /* 0 or -ENOMEM */
void clock_timer_cancel(struct clock *clock, struct clock_timer *timer);

/* Holds the time, so that timers don't run and there is no next deadline; clock_go lets it go on from there.
 * Host clock, main loop; calls don't nest. */
void clock_stop(struct clock *clock);
void clock_go(struct clock *clock);
/* While it is stopped: the time that it holds, for a machine whose saved state is loaded. */
void clock_set_ns(struct clock *clock, uint64_t now_ns);

void clock_set_wake(struct clock *clock, void (*wake)(void *opaque), void *opaque);
uint64_t clock_next_deadline(struct clock *clock); /* ns, or CLOCK_NEVER */
void clock_run(struct clock *clock);               /* runs what is due */

#endif
