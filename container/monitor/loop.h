/*
 * The monitor's event loop: descriptors by epoll, timers by a sorted list. Small on purpose: libuv with its
 * thread pool costs more memory than the whole monitor may use (docs/containers.md, "What a container
 * costs").
 *
 * Invariant: one event is taken at a time, so that a callback may free any source, its own included.
 */
#ifndef FONDA_CONTAINER_MONITOR_LOOP_H
#define FONDA_CONTAINER_MONITOR_LOOP_H

#include <stdbool.h>
#include <stdint.h>

struct loop_source {
    int fd;                                                     /* -1: not in a loop */
    void (*ready)(struct loop_source *source, uint32_t events); /* EPOLL* */
};

struct loop_timer {
    int64_t due_ns; /* CLOCK_MONOTONIC; 0: not set */
    void (*fire)(struct loop_timer *timer);
    struct loop_timer *next;
};

struct loop {
    int epoll_fd;
    struct loop_timer *timers; /* the earliest first */
    bool ended;
};

int loop_init(struct loop *loop); /* 0 or a negative errno */
void loop_done(struct loop *loop);

/* source->fd and ready are set by the caller. 0 or a negative errno. */
int loop_add(struct loop *loop, struct loop_source *source, uint32_t events);
void loop_change(struct loop *loop, struct loop_source *source, uint32_t events);
void loop_close(struct loop *loop, struct loop_source *source); /* closes the descriptor; fd becomes -1 */

void loop_timer_set(struct loop *loop, struct loop_timer *timer, int64_t delay_ns); /* again: moves it */
void loop_timer_stop(struct loop *loop, struct loop_timer *timer);

void loop_run(struct loop *loop); /* until ended is set */

int64_t loop_now_ns(void);  /* CLOCK_MONOTONIC */
int64_t loop_wall_ns(void); /* CLOCK_REALTIME */

#endif
