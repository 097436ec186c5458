/*
 * The container's output goes to the log and to attached clients; their input goes to the container.
 *
 * A client that is slow holds the container up once CLIENT_OUTPUT_MAX bytes wait for it, as a pipe would, and
 * is cut when it takes nothing for ATTACH_STALL.
 */
#include "container/monitor/monitor.h"

#include "base/log.h"
#include "base/util.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>

#define CHUNK       16384
#define INPUT_CHUNK 4096
#define DRAIN_MAX   (16u << 20) /* what is read behind the end of the container */

/* --- attached clients --- */

static void flow(struct monitor *m);

static void attached_free(struct attached *a)
{
    struct monitor *m = a->m;
    for (struct attached **p = &m->attached; *p; p = &(*p)->next) {
        if (*p == a) {
            *p = a->next;
            break;
        }
    }
    loop_timer_stop(&m->loop, &a->timer);
    loop_close(&m->loop, &a->source);
    free(a->queue);
    free(a);
    m->client_count--;
    flow(m);
    m->loop.ended = m->loop.ended || (m->finished && !m->attached);
}

static bool wants_open_stream(const struct attached *a)
{
    const struct monitor *m = a->m;
    return (a->wants & 1 && m->streams[0].source.fd >= 0) || (a->wants & 2 && m->streams[1].source.fd >= 0);
}

static void watch(struct attached *a)
{
    bool reads = !a->held && !a->in_ended;
    loop_change(&a->m->loop, &a->source,
                (reads ? (uint32_t)EPOLLIN : 0) | (a->queued ? (uint32_t)EPOLLOUT : 0));
}

static bool send_queue(struct attached *a)
{
    ssize_t n = send(a->source.fd, a->queue, a->queued, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0) {
        return errno == EAGAIN || errno == EINTR;
    }
    a->queued -= (size_t)n;
    memmove(a->queue, a->queue + n, a->queued);
    if (a->queued == 0) {
        free(a->queue);
        a->queue = NULL;
    }
    if (a->timer.due_ns) {
        loop_timer_set(&a->m->loop, &a->timer, ATTACH_STALL);
    }
    return true;
}

/* False: the client is gone. */
static bool give(struct attached *a, const char *bytes, size_t size)
{
    ssize_t n = a->queued ? 0 : send(a->source.fd, bytes, size, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0 && errno != EAGAIN && errno != EINTR) {
        return false;
    }
    n = MAX(n, 0);
    if ((size_t)n < size) {
        char *queue = realloc(a->queue, a->queued + size - (size_t)n);
        if (!queue) {
            return false;
        }
        memcpy(queue + a->queued, bytes + n, size - (size_t)n);
        a->queue = queue;
        a->queued += size - (size_t)n;
        watch(a);
    }
    return true;
}

static void on_stalled(struct loop_timer *timer)
{
    attached_free(CONTAINER_OF(timer, struct attached, timer));
}

/* Reads from the container go on or stop as the attached clients keep up. */
static void flow(struct monitor *m)
{
    unsigned stalled = 0;
    for (struct attached *a = m->attached; a; a = a->next) {
        bool full = a->queued >= CLIENT_OUTPUT_MAX;
        stalled |= full ? a->wants & 3 : 0;
        if (full && !a->timer.due_ns) {
            loop_timer_set(&m->loop, &a->timer, ATTACH_STALL);
        } else if (!full && !m->finished) {
            loop_timer_stop(&m->loop, &a->timer);
        }
    }
    for (unsigned i = 0; i < 2; i++) {
        struct stream *s = &m->streams[i];
        bool stop = stalled >> i & 1;
        if (s->source.fd >= 0 && s->stalled != stop) {
            s->stalled = stop;
            loop_change(&m->loop, &s->source, stop ? 0 : EPOLLIN);
        }
    }
}

/* --- input --- */

static void hold_input(struct monitor *m, bool hold)
{
    for (struct attached *a = m->attached; a; a = a->next) {
        if (a->wants & ATTACH_INPUT) {
            a->held = hold;
            watch(a);
        }
    }
}

static void drop_input(struct monitor *m)
{
    free(m->input_text);
    m->input_text = NULL;
    m->input_size = 0;
    loop_close(&m->loop, &m->input);
    hold_input(m, false);
}

static void push_input(struct monitor *m)
{
    ssize_t n = write(m->input.fd, m->input_text, m->input_size);
    if (n < 0 && errno != EAGAIN && errno != EINTR) {
        drop_input(m); /* nobody reads any more */
        return;
    }
    m->input_size -= (size_t)MAX(n, 0);
    memmove(m->input_text, m->input_text + MAX(n, 0), m->input_size);
    if (m->input_size == 0) {
        free(m->input_text);
        m->input_text = NULL;
    }
    loop_change(&m->loop, &m->input, m->input_size ? EPOLLOUT : 0);
    hold_input(m, m->input_size > 0);
}

/*
 * Nobody has the terminal open: programs such as init close it in between, and login programs hang it up. It
 * is looked at again in a while, as epoll would tell of it without end.
 */
static void hang(struct monitor *m)
{
    (void)epoll_ctl(m->loop.epoll_fd, EPOLL_CTL_DEL, m->streams[0].source.fd, NULL);
    (void)epoll_ctl(m->loop.epoll_fd, EPOLL_CTL_DEL, m->input.fd, NULL);
    loop_timer_set(&m->loop, &m->streams[0].hung, HUNG_NS);
}

static void on_hung(struct loop_timer *timer)
{
    struct stream *s = CONTAINER_OF(timer, struct stream, hung);
    struct monitor *m = s->m;
    if (s->source.fd >= 0 && loop_add(&m->loop, &s->source, s->stalled ? 0 : EPOLLIN) < 0) {
        loop_timer_set(&m->loop, timer, HUNG_NS);
    } else if (m->input.fd >= 0) {
        (void)loop_add(&m->loop, &m->input, m->input_size ? EPOLLOUT : 0);
    }
}

static void on_input(struct loop_source *source, uint32_t events)
{
    struct monitor *m = CONTAINER_OF(source, struct monitor, input);
    if (events & EPOLLOUT && m->input_size) {
        push_input(m);
    } else if (m->terminal && m->streams[0].source.fd >= 0) {
        hang(m);
    } else {
        drop_input(m);
    }
}

static void take_input(struct monitor *m, const char *bytes, size_t size)
{
    char *text = m->input.fd >= 0 && size ? realloc(m->input_text, m->input_size + size) : NULL;
    if (text) {
        memcpy(text + m->input_size, bytes, size);
        m->input_text = text;
        m->input_size += size;
        push_input(m);
    }
}

static void on_attached(struct loop_source *source, uint32_t events)
{
    struct attached *a = CONTAINER_OF(source, struct attached, source);
    struct monitor *m = a->m;
    if (events & EPOLLOUT && a->queued && !send_queue(a)) {
        attached_free(a);
        return;
    }
    if (events & EPOLLIN && !a->held) {
        char text[INPUT_CHUNK];
        ssize_t n = read(source->fd, text, sizeof(text));
        if (n > 0 && a->wants & ATTACH_INPUT) {
            take_input(m, text, (size_t)n);
        } else if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) {
            a->in_ended = true;
            if (a->wants & ATTACH_INPUT && !m->terminal && n == 0) {
                drop_input(m); /* the container sees the end of its input */
            }
        }
    }
    if (events & (EPOLLERR | EPOLLHUP) || (!a->queued && !wants_open_stream(a) && m->life != LIFE_CREATED)) {
        attached_free(a);
        return;
    }
    watch(a);
    flow(m);
}

int attach_new(struct monitor *m, int fd, unsigned wants, const char *first, size_t first_size)
{
    struct attached *a = calloc(1, sizeof(*a));
    if (!a) {
        close(fd);
        return -ENOMEM;
    }
    *a = (struct attached){.m = m, .wants = wants, .held = m->input_size > 0, .timer.fire = on_stalled};
    a->source = (struct loop_source){.fd = fd, .ready = on_attached};
    int rc = loop_add(&m->loop, &a->source, EPOLLIN);
    if (rc < 0) {
        close(fd);
        free(a);
        return rc;
    }
    a->next = m->attached;
    m->attached = a;
    m->client_count++;
    if (wants & ATTACH_INPUT) {
        take_input(m, first, first_size);
    }
    return 0;
}

/* --- output --- */

static void stream_close(struct stream *s)
{
    struct monitor *m = s->m;
    if (s->source.fd < 0) {
        return;
    }
    logfile_end(&m->log, s->index, loop_wall_ns());
    loop_close(&m->loop, &s->source);
    for (struct attached *a = m->attached, *next; a; a = next) {
        next = a->next;
        if (!a->queued && !wants_open_stream(a)) {
            attached_free(a);
        }
    }
}

/* Bytes read; 0: the end, or nothing there for now. */
static size_t stream_read(struct stream *s)
{
    struct monitor *m = s->m;
    char text[CHUNK];
    ssize_t n = read(s->source.fd, text, sizeof(text));
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
        return 0;
    }
    if (n < 0 && errno == EIO && m->terminal && !s->ending) {
        hang(m);
        return 0;
    }
    if (n <= 0) {
        stream_close(s);
        return 0;
    }
    logfile_write(&m->log, s->index, loop_wall_ns(), text, (size_t)n);
    for (struct attached *a = m->attached, *next; a; a = next) {
        next = a->next;
        if (a->wants >> s->index & 1 && !give(a, text, (size_t)n)) {
            attached_free(a);
        }
    }
    flow(m);
    return (size_t)n;
}

static void on_stream(struct loop_source *source, uint32_t events)
{
    struct stream *s = CONTAINER_OF(source, struct stream, source);
    if (!s->stalled) {
        stream_read(s);
    } else if (events & (EPOLLHUP | EPOLLERR) && s->m->terminal) {
        hang(s->m);
    } else if (events & (EPOLLHUP | EPOLLERR)) {
        /* Would be told again and again; life.c drains the stream when the container has ended. */
        (void)epoll_ctl(s->m->loop.epoll_fd, EPOLL_CTL_DEL, source->fd, NULL);
    }
}

static int stream_open(struct monitor *m, int index, int fd)
{
    struct stream *s = &m->streams[index];
    *s = (struct stream){
        .m = m, .index = index, .source = {.fd = fd, .ready = on_stream}, .hung.fire = on_hung};
    (void)fcntl(fd, F_SETFL, O_NONBLOCK);
    return loop_add(&m->loop, &s->source, EPOLLIN);
}

static int input_open(struct monitor *m, int fd)
{
    m->input = (struct loop_source){.fd = fd, .ready = on_input};
    (void)fcntl(fd, F_SETFL, O_NONBLOCK);
    return loop_add(&m->loop, &m->input, 0);
}

int receiver_listen(struct monitor *m, struct loop_source *source, const char *name, struct err *err)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    snprintf(addr.sun_path, sizeof(addr.sun_path), "/proc/self/fd/%d/%s", m->dir_fd, name);
    (void)unlinkat(m->dir_fd, name, 0);
    source->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (source->fd < 0 || bind(source->fd, (struct sockaddr *)&addr, sizeof(addr)) < 0 ||
        listen(source->fd, 1) < 0) {
        return err_sys(err, -errno, "cannot make %s", name);
    }
    return 0;
}

static int receive_fd(int conn)
{
    char text[64];
    struct iovec iov = {text, sizeof(text)};
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(sizeof(int))];
    } control;
    struct msghdr msg = {.msg_iov = &iov,
                         .msg_iovlen = 1,
                         .msg_control = control.room,
                         .msg_controllen = sizeof(control.room)};
    ssize_t n = recvmsg(conn, &msg, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    struct cmsghdr *cmsg = n > 0 ? CMSG_FIRSTHDR(&msg) : NULL;
    int fd = -1;
    if (cmsg && cmsg->cmsg_type == SCM_RIGHTS && cmsg->cmsg_len == CMSG_LEN(sizeof(int))) {
        memcpy(&fd, CMSG_DATA(cmsg), sizeof(fd));
    }
    return fd;
}

int receiver_take(struct monitor *m, struct loop_source *source, const char *name, int *ret_fds, size_t count,
                  struct err *err)
{
    auto_close int conn = accept4(source->fd, NULL, NULL, SOCK_CLOEXEC);
    loop_close(&m->loop, source);
    (void)unlinkat(m->dir_fd, name, 0);
    for (size_t i = 0; i < count; i++) {
        ret_fds[i] = conn < 0 ? -1 : receive_fd(conn);
        if (ret_fds[i] < 0) {
            while (i > 0) {
                close(ret_fds[--i]);
            }
            return err_set(err, -EIO, "nothing came from the container on %s", name);
        }
    }
    return 0;
}

int streams_prepare(struct monitor *m, int stdio[3], struct err *err)
{
    int pairs[3][2];
    if (m->terminal) {
        return receiver_listen(m, &m->console, "console.sock", err);
    }
    for (int i = m->o.stdin_open ? 0 : 1; i < 3; i++) {
        if (pipe2(pairs[i], O_CLOEXEC) < 0) {
            return err_sys(err, -errno, "cannot make a pipe");
        }
        stdio[i] = pairs[i][i == 0 ? 0 : 1];
        int rc = i == 0 ? input_open(m, pairs[0][1]) : stream_open(m, i - 1, pairs[i][0]);
        if (rc < 0) {
            return err_sys(err, rc, "cannot watch the container's output");
        }
    }
    return 0;
}

void streams_created(struct monitor *m, int stdio[3])
{
    for (int i = 0; i < 3; i++) {
        if (stdio[i] >= 0) {
            close(stdio[i]);
            stdio[i] = -1;
        }
    }
}

int streams_take_terminal(struct monitor *m, struct err *err)
{
    int fd = -1;
    int rc = receiver_take(m, &m->console, "console.sock", &fd, 1, err);
    if (rc < 0) {
        return rc;
    }
    int input = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    rc = stream_open(m, 0, fd);
    rc = rc < 0 || input < 0 ? rc : input_open(m, input);
    return rc < 0 ? err_sys(err, rc, "cannot watch the container's terminal") : 0;
}

void streams_drain(struct monitor *m)
{
    size_t total = 0;
    for (unsigned i = 0; i < 2; i++) {
        struct stream *s = &m->streams[i];
        s->ending = true;
        loop_timer_stop(&m->loop, &s->hung);
        for (size_t n = 1; s->source.fd >= 0 && n > 0 && total < DRAIN_MAX; total += n) {
            n = stream_read(s);
        }
        stream_close(s);
    }
    drop_input(m);
    loop_close(&m->loop, &m->console);
    loop_close(&m->loop, &m->ns);
}

void streams_end(struct monitor *m)
{
    m->finished = true;
    for (struct attached *a = m->attached, *next; a; a = next) {
        next = a->next;
        if (a->queued) {
            loop_timer_set(&m->loop, &a->timer, ATTACH_STALL);
        } else {
            attached_free(a);
        }
    }
    m->loop.ended = !m->attached;
}

int streams_resize(struct monitor *m, unsigned rows, unsigned columns, struct err *err)
{
    struct winsize size = {.ws_row = (unsigned short)rows, .ws_col = (unsigned short)columns};
    if (!m->terminal || m->streams[0].source.fd < 0) {
        return err_set(err, -ENOTTY, "container '%s' has no terminal", m->o.id);
    }
    return ioctl(m->streams[0].source.fd, TIOCSWINSZ, &size) < 0
               ? err_sys(err, -errno, "cannot set the terminal's size")
               : 0;
}
