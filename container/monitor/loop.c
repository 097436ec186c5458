#include "container/monitor/loop.h"

#include "base/util.h"

#include <errno.h>
#include <limits.h>
#include <sys/epoll.h>
#include <time.h>

static int64_t clock_ns(clockid_t clock)
{
    struct timespec ts;
    clock_gettime(clock, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

int64_t loop_now_ns(void)
{
    return clock_ns(CLOCK_MONOTONIC);
}

int64_t loop_wall_ns(void)
{
    return clock_ns(CLOCK_REALTIME);
}

int loop_init(struct loop *loop)
{
    *loop = (struct loop){.epoll_fd = epoll_create1(EPOLL_CLOEXEC)};
    return loop->epoll_fd < 0 ? -errno : 0;
}

void loop_done(struct loop *loop)
{
    close(loop->epoll_fd);
}

int loop_add(struct loop *loop, struct loop_source *source, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = source};
    return epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, source->fd, &event) < 0 ? -errno : 0;
}

void loop_change(struct loop *loop, struct loop_source *source, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = source};
    if (source->fd >= 0) {
        (void)epoll_ctl(loop->epoll_fd, EPOLL_CTL_MOD, source->fd,
                        &event); /* of one that was added: can't fail */
    }
}

void loop_close(struct loop *loop, struct loop_source *source)
{
    if (source->fd >= 0) {
        /* Closing would not take it out while a child still has a copy. */
        (void)epoll_ctl(loop->epoll_fd, EPOLL_CTL_DEL, source->fd, NULL);
        close(source->fd);
        source->fd = -1;
    }
}

void loop_timer_stop(struct loop *loop, struct loop_timer *timer)
{
    for (struct loop_timer **p = &loop->timers; *p; p = &(*p)->next) {
        if (*p == timer) {
            *p = timer->next;
            break;
        }
    }
    timer->due_ns = 0;
}

void loop_timer_set(struct loop *loop, struct loop_timer *timer, int64_t delay_ns)
{
    loop_timer_stop(loop, timer);
    timer->due_ns = loop_now_ns() + MAX(delay_ns, 1);
    struct loop_timer **p = &loop->timers;
    while (*p && (*p)->due_ns <= timer->due_ns) {
        p = &(*p)->next;
    }
    timer->next = *p;
    *p = timer;
}

static int wait_ms(const struct loop *loop)
{
    if (!loop->timers) {
        return -1;
    }
    int64_t left = loop->timers->due_ns - loop_now_ns();
    return left <= 0 ? 0 : (int)MIN((left + 999999) / 1000000, (int64_t)INT_MAX);
}

void loop_run(struct loop *loop)
{
    while (!loop->ended) {
        struct epoll_event event;
        int n = epoll_wait(loop->epoll_fd, &event, 1, wait_ms(loop));
        if (n == 1) {
            struct loop_source *source = event.data.ptr;
            source->ready(source, event.events);
        }
        while (!loop->ended && loop->timers && loop->timers->due_ns <= loop_now_ns()) {
            struct loop_timer *timer = loop->timers;
            loop_timer_stop(loop, timer);
            timer->fire(timer);
        }
    }
}
