/*
 * The loop: one epoll descriptor over host I/O (uring.c or pool.c), a timer and posts from other threads, and
 * the queues of what is ready to run.
 *
 * 1. done() callbacks and coroutines run from blk_loop_poll() only (a coroutine's start excepted), on the
 *    loop's thread.
 * 2. When something is ready outside of blk_loop_poll(), the event descriptor makes blk_loop_fd() readable.
 * 3. post_lock guards posts; everything else belongs to the loop's thread.
 */
#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <time.h>

#include "base/clock.h"
#include "block/aio_int.h"

struct post {
    void (*fn)(void *arg);
    void *arg;
    struct post *next;
};

struct sleeper {
    uint64_t deadline_ns;
    struct co *co;
    struct sleeper *next;
};

struct blk_loop {
    int epoll_fd, event_fd, timer_fd;
    struct aio_uring *uring; /* NULL: pool */
    struct aio_pool *pool;
    unsigned plugged;
    bool polling, signalled;
    struct blk_aio *aio_head, **aio_tail; /* wait for room in uring */
    struct blk_req *done_head, **done_tail;
    struct co_queue ready;
    struct sleeper *sleepers;          /* by deadline */
    const struct blk_open_file *given; /* while a graph is opened */
    unsigned given_count;
    pthread_mutex_t post_lock;
    struct post *post_head, **post_tail;
};

static int watch(struct blk_loop *loop, int fd)
{
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    return epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
}

static int open_engine(struct blk_loop *loop, enum blk_engine engine, struct err *err)
{
    const char *forced = getenv("FONDA_BLOCK_ENGINE");
    if (engine == BLK_ENGINE_AUTO && forced) {
        if (strcmp(forced, "uring") == 0) {
            engine = BLK_ENGINE_URING;
        } else if (strcmp(forced, "threads") == 0) {
            engine = BLK_ENGINE_THREADS;
        } else {
            return err_set(err, -EINVAL, "FONDA_BLOCK_ENGINE: '%s' is not uring or threads", forced);
        }
    }
    int error = 0;
    if (engine != BLK_ENGINE_THREADS) {
        error = aio_uring_new(&loop->uring);
        if (error < 0 && engine == BLK_ENGINE_URING) {
            return err_sys(err, error, "io_uring is not available on this host");
        }
    }
    if (!loop->uring) {
        error = aio_pool_new(&loop->pool);
        if (error < 0) {
            return err_sys(err, error, "cannot start threads for disk I/O");
        }
    }
    return 0;
}

int blk_loop_new(enum blk_engine engine, struct blk_loop **ret_loop, struct err *err)
{
    struct blk_loop *loop = calloc(1, sizeof(*loop));
    if (!loop) {
        return err_sys(err, -ENOMEM, "cannot create a block loop");
    }
    loop->aio_tail = &loop->aio_head;
    loop->done_tail = &loop->done_head;
    loop->post_tail = &loop->post_head;
    co_queue_init(&loop->ready);
    pthread_mutex_init(&loop->post_lock, NULL);
    loop->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    loop->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    loop->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    int error = loop->epoll_fd < 0 || loop->event_fd < 0 || loop->timer_fd < 0 ? -errno : 0;
    if (error) {
        err_sys(err, error, "cannot create a block loop");
    } else {
        error = open_engine(loop, engine, err);
    }
    if (!error) {
        error = watch(loop, loop->event_fd);
        error = error ? error : watch(loop, loop->timer_fd);
        error =
            error ? error : watch(loop, loop->uring ? aio_uring_fd(loop->uring) : aio_pool_fd(loop->pool));
        if (error) {
            err_sys(err, error, "cannot watch disk I/O");
        }
    }
    if (error) {
        blk_loop_free(loop);
        return error;
    }
    *ret_loop = loop;
    return 0;
}

void blk_loop_free(struct blk_loop *loop)
{
    if (!loop) {
        return;
    }
    aio_uring_free(loop->uring);
    aio_pool_free(loop->pool);
    int fds[] = {loop->epoll_fd, loop->event_fd, loop->timer_fd};
    for (size_t i = 0; i < ARRAY_SIZE(fds); i++) {
        if (fds[i] >= 0) {
            close(fds[i]);
        }
    }
    while (loop->post_head) {
        struct post *post = loop->post_head;
        loop->post_head = post->next;
        free(post);
    }
    pthread_mutex_destroy(&loop->post_lock);
    free(loop);
    co_trim();
}

void blk_loop_rest(struct blk_loop *loop)
{
    if (loop->pool) {
        aio_pool_rest(loop->pool);
    }
}

const char *blk_loop_engine_name(struct blk_loop *loop)
{
    return loop->uring ? "io_uring" : "threads";
}

int blk_loop_fd(struct blk_loop *loop)
{
    return loop->epoll_fd;
}

uint64_t blk_loop_now_ns(void)
{
    return clock_host_ns();
}

/* Something became ready: whoever watches the loop has to call blk_loop_poll(). */
static void signal_ready(struct blk_loop *loop)
{
    if (!loop->polling && !loop->signalled) {
        loop->signalled = true;
        eventfd_write(loop->event_fd, 1);
    }
}

void blk_loop_wake(struct blk_loop *loop, struct co *co)
{
    co_queue_push(&loop->ready, co);
    signal_ready(loop);
}

void blk_loop_done(struct blk_loop *loop, struct blk_req *req)
{
    req->next = NULL;
    *loop->done_tail = req;
    loop->done_tail = &req->next;
    signal_ready(loop);
}

int blk_loop_post(struct blk_loop *loop, void (*fn)(void *arg), void *arg)
{
    struct post *post = malloc(sizeof(*post));
    if (!post) {
        return -ENOMEM;
    }
    *post = (struct post){.fn = fn, .arg = arg};
    pthread_mutex_lock(&loop->post_lock);
    *loop->post_tail = post;
    loop->post_tail = &post->next;
    pthread_mutex_unlock(&loop->post_lock);
    eventfd_write(loop->event_fd, 1);
    return 0;
}

static void arm_timer(struct blk_loop *loop)
{
    struct itimerspec when = {0};
    if (loop->sleepers) {
        when.it_value.tv_sec = (time_t)(loop->sleepers->deadline_ns / 1000000000u);
        when.it_value.tv_nsec = (long)(loop->sleepers->deadline_ns % 1000000000u);
    }
    timerfd_settime(loop->timer_fd, TFD_TIMER_ABSTIME, &when, NULL);
}

void blk_loop_give(struct blk_loop *loop, const struct blk_open_file *files, unsigned count)
{
    loop->given = files;
    loop->given_count = count;
}

const struct blk_open_file *blk_loop_given(const struct blk_loop *loop, const char *path)
{
    for (unsigned i = 0; i < loop->given_count; i++) {
        if (strcmp(loop->given[i].path, path) == 0) {
            return &loop->given[i];
        }
    }
    return NULL;
}

void blk_loop_sleep(struct blk_loop *loop, uint64_t ns)
{
    struct sleeper sleeper = {.deadline_ns = blk_loop_now_ns() + ns, .co = co_self()};
    struct sleeper **p = &loop->sleepers;
    while (*p && (*p)->deadline_ns <= sleeper.deadline_ns) {
        p = &(*p)->next;
    }
    sleeper.next = *p;
    *p = &sleeper;
    arm_timer(loop);
    co_suspend();
}

static void submit_waiting(struct blk_loop *loop)
{
    while (loop->aio_head) {
        struct blk_aio *aio = loop->aio_head, *next = aio->next;
        if (!aio_uring_queue(loop->uring, aio)) {
            break;
        }
        loop->aio_head = next;
        if (!next) {
            loop->aio_tail = &loop->aio_head;
        }
    }
    aio_uring_submit(loop->uring);
}

void blk_aio_submit(struct blk_loop *loop, struct blk_aio *aio)
{
    if (loop->pool) {
        aio_pool_queue(loop->pool, aio);
        return;
    }
    aio->next = NULL;
    *loop->aio_tail = aio;
    loop->aio_tail = &aio->next;
    if (!loop->plugged) {
        submit_waiting(loop);
    }
}

void blk_loop_plug(struct blk_loop *loop)
{
    loop->plugged++;
}

void blk_loop_unplug(struct blk_loop *loop)
{
    if (--loop->plugged == 0 && loop->uring) {
        submit_waiting(loop);
    }
}

static int run_aio(struct blk_loop *loop)
{
    int count = 0;
    struct blk_aio *aio;
    while ((aio = loop->uring ? aio_uring_reap(loop->uring) : aio_pool_reap(loop->pool))) {
        aio->done(aio);
        count++;
    }
    return count;
}

static int run_timers(struct blk_loop *loop)
{
    int count = 0;
    uint64_t now_ns = loop->sleepers ? blk_loop_now_ns() : 0;
    while (loop->sleepers && loop->sleepers->deadline_ns <= now_ns) {
        struct sleeper *sleeper = loop->sleepers;
        loop->sleepers = sleeper->next;
        co_queue_push(&loop->ready, sleeper->co);
        count++;
    }
    if (count) {
        arm_timer(loop);
    }
    return count;
}

static int run_posts(struct blk_loop *loop)
{
    pthread_mutex_lock(&loop->post_lock);
    struct post *post = loop->post_head;
    loop->post_head = NULL;
    loop->post_tail = &loop->post_head;
    pthread_mutex_unlock(&loop->post_lock);
    int count = 0;
    while (post) {
        struct post *next = post->next;
        post->fn(post->arg);
        free(post);
        post = next;
        count++;
    }
    return count;
}

/* Runs what is ready now; what that makes ready is left for the next round, so that one call is bounded. */
static int run_ready(struct blk_loop *loop)
{
    int count = 0;
    struct co_queue ready = loop->ready;
    if (ready.head) {
        co_queue_init(&loop->ready);
        struct co *co;
        while ((co = co_queue_pop(&ready))) {
            co_resume(co);
            count++;
        }
    }
    struct blk_req *req = loop->done_head;
    loop->done_head = NULL;
    loop->done_tail = &loop->done_head;
    while (req) {
        struct blk_req *next = req->next;
        blk_req_finish(req);
        req = next;
        count++;
    }
    return count;
}

int blk_loop_poll(struct blk_loop *loop, int timeout_ms)
{
    loop->polling = true;
    blk_loop_plug(loop);
    int count = run_ready(loop) + run_aio(loop);
    blk_loop_unplug(loop);
    if (count || loop->ready.head || loop->done_head) {
        timeout_ms = 0;
    }
    if (loop->uring && aio_uring_unsubmitted(loop->uring) && timeout_ms != 0) {
        timeout_ms = AIO_RETRY_MS;
    }
    struct epoll_event events[4];
    int n = epoll_wait(loop->epoll_fd, events, ARRAY_SIZE(events), timeout_ms);
    blk_loop_plug(loop);
    for (int i = 0; i < n; i++) {
        if (events[i].data.fd == loop->event_fd) {
            eventfd_t value;
            eventfd_read(loop->event_fd, &value);
            loop->signalled = false;
            count += run_posts(loop);
        } else if (events[i].data.fd == loop->timer_fd) {
            uint64_t value;
            ssize_t got = read(loop->timer_fd, &value, sizeof(value));
            (void)got; /* it only has to stop being readable */
        }
    }
    count += run_timers(loop) + run_aio(loop) + run_ready(loop);
    blk_loop_unplug(loop);
    loop->polling = false;
    if (loop->ready.head || loop->done_head) {
        signal_ready(loop);
    }
    return count;
}
