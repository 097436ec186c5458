/*
 * See user.h.
 *
 * libslirp wants to be polled: before the loop sleeps, slirp_pollfds_fill names descriptors and a timeout;
 * afterwards slirp_pollfds_poll looks at what happened. Descriptors are watched by one epoll instance, which
 * the loop watches in turn, so that libuv needs no handle per connection.
 *
 * Invariants
 *  1. Frames from the guest are copied before libslirp sees them, with checksums made and no partial ones
 *     left.
 *  2. Segments stay whole as far as libslirp is concerned: it takes any IP packet.
 */
#include "net/user.h"

#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <slirp/libslirp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/options.h"
#include "base/util.h"

#define POLLS_MAX  1024 /* connections that are looked at; more wait */
#define QUEUE_MAX  256u /* frames for a guest that has no room; more are dropped */
#define CONFIG_VER 4    /* of libslirp's struct: 4.7 */

struct held_frame {
    struct held_frame *next;
    size_t len;
    uint8_t bytes[];
};

struct user {
    struct net_port port;
    uv_loop_t *loop;
    Slirp *slirp;
    uv_prepare_t prepare;
    uv_check_t check;
    uv_timer_t timer;
    uv_poll_t poll;
    int epoll_fd;
    unsigned handles;
    bool freeing;
    struct pollfd fds[POLLS_MAX];
    unsigned fd_count;
    int watched[POLLS_MAX]; /* what the epoll instance has */
    unsigned watched_count;
    struct held_frame *held, **held_end;
    unsigned held_count;
    uint8_t buf[NET_HEADER_BYTES + NET_FRAME_MAX];
};

struct user_timer {
    uv_timer_t timer;
    SlirpTimerCb fn;
    void *opaque;
};

static int64_t now_ns(void *opaque)
{
    return (int64_t)clock_host_ns();
}

/* --- to the guest --- */

static bool give(struct user *user, const uint8_t *frame, size_t len)
{
    static const struct net_header plain;
    const struct net_peer *peer = &user->port.peer;
    const struct iovec iov[2] = {{(void *)(uintptr_t)&plain, sizeof(plain)}, {(void *)(uintptr_t)frame, len}};
    return !peer->receive || peer->receive(peer->opaque, iov, 2);
}

static ssize_t on_packet(const void *bytes, size_t len, void *opaque)
{
    struct user *user = opaque;
    if (user->freeing || (!user->held && give(user, bytes, len))) {
        return (ssize_t)len;
    }
    struct held_frame *frame = user->held_count < QUEUE_MAX ? malloc(sizeof(*frame) + len) : NULL;
    if (!frame) {
        user->port.dropped++;
        return (ssize_t)len;
    }
    frame->next = NULL;
    frame->len = len;
    memcpy(frame->bytes, bytes, len);
    *user->held_end = frame;
    user->held_end = &frame->next;
    user->held_count++;
    return (ssize_t)len;
}

static void drop_held(struct user *user)
{
    struct held_frame *frame = user->held;
    user->held = frame->next;
    user->held_count--;
    if (!user->held) {
        user->held_end = &user->held;
    }
    free(frame);
}

static void user_readable(struct net_port *port)
{
    struct user *user = CONTAINER_OF(port, struct user, port);
    while (user->held && give(user, user->held->bytes, user->held->len)) {
        drop_held(user);
    }
}

/* --- from the guest --- */

static void emit_input(void *opaque, const uint8_t *frame, size_t len)
{
    struct user *user = opaque;
    slirp_input(user->slirp, frame + NET_HEADER_BYTES, (int)(len - NET_HEADER_BYTES));
}

static bool user_send(struct net_port *port, const struct iovec *iov, unsigned count)
{
    struct user *user = CONTAINER_OF(port, struct user, port);
    size_t len = 0;
    for (unsigned i = 0; i < count; i++) {
        if (iov[i].iov_len > sizeof(user->buf) - len) {
            port->dropped++;
            return true;
        }
        memcpy(user->buf + len, iov[i].iov_base, iov[i].iov_len);
        len += iov[i].iov_len;
    }
    /* A large segment is one IP packet to libslirp, but for its checksum. */
    struct net_header *header = (void *)user->buf;
    if (len > NET_HEADER_BYTES) {
        header->gso_type = NET_GSO_NONE;
    }
    if (!net_frame_lower(user->buf, len, 0, emit_input, user)) {
        port->dropped++;
    }
    return true;
}

static void user_set_offloads(struct net_port *port, unsigned takes)
{
}

/* --- timers of libslirp's (router advertisements) --- */

static void on_user_timer(uv_timer_t *timer)
{
    struct user_timer *ut = timer->data;
    ut->fn(ut->opaque);
}

static void *timer_new(SlirpTimerCb fn, void *fn_opaque, void *opaque)
{
    struct user *user = opaque;
    struct user_timer *ut = calloc(1, sizeof(*ut));
    if (ut) {
        uv_timer_init(user->loop, &ut->timer);
        ut->timer.data = ut;
        ut->fn = fn;
        ut->opaque = fn_opaque;
    }
    return ut;
}

static void timer_closed(uv_handle_t *handle)
{
    free(handle->data);
}

static void timer_free(void *timer, void *opaque)
{
    struct user_timer *ut = timer;
    if (ut) {
        uv_close((uv_handle_t *)&ut->timer, timer_closed);
    }
}

static void timer_mod(void *timer, int64_t expire_ms, void *opaque)
{
    struct user_timer *ut = timer;
    int64_t wait = expire_ms - now_ns(NULL) / 1000000;
    if (ut) {
        uv_timer_start(&ut->timer, on_user_timer, (uint64_t)MAX(wait, 1), 0);
    }
}

static void guest_error(const char *text, void *opaque)
{
}

static void ignore_fd(int fd, void *opaque)
{
}

static void ignore(void *opaque)
{
}

static const SlirpCb callbacks = {
    .send_packet = on_packet,
    .guest_error = guest_error,
    .clock_get_ns = now_ns,
    .timer_new = timer_new,
    .timer_free = timer_free,
    .timer_mod = timer_mod,
    .register_poll_fd = ignore_fd,
    .unregister_poll_fd = ignore_fd,
    .notify = ignore,
};

/* --- polling --- */

static int add_poll(int fd, int events, void *opaque)
{
    struct user *user = opaque;
    if (user->fd_count == POLLS_MAX) {
        return -1;
    }
    short wanted = 0;
    wanted = (short)(wanted | (events & SLIRP_POLL_IN ? POLLIN : 0) |
                     (events & SLIRP_POLL_OUT ? POLLOUT : 0) | (events & SLIRP_POLL_PRI ? POLLPRI : 0));
    user->fds[user->fd_count] = (struct pollfd){fd, wanted, 0};
    return (int)user->fd_count++;
}

static int get_revents(int index, void *opaque)
{
    const struct user *user = opaque;
    short got = index >= 0 && (unsigned)index < user->fd_count ? user->fds[index].revents : 0;
    return (got & POLLIN ? SLIRP_POLL_IN : 0) | (got & POLLOUT ? SLIRP_POLL_OUT : 0) |
           (got & POLLPRI ? SLIRP_POLL_PRI : 0) | (got & POLLERR ? SLIRP_POLL_ERR : 0) |
           (got & POLLHUP ? SLIRP_POLL_HUP : 0);
}

static bool has_fd(const struct user *user, int fd)
{
    for (unsigned i = 0; i < user->fd_count; i++) {
        if (user->fds[i].fd == fd) {
            return true;
        }
    }
    return false;
}

/* Tells the epoll instance what libslirp waits for. Every descriptor is told anew, as one that was closed and
 * opened again since has the same number and is not watched any more. */
static void watch_all(struct user *user)
{
    for (unsigned i = 0; i < user->fd_count; i++) {
        struct epoll_event event = {.events = (uint32_t)user->fds[i].events, .data.fd = user->fds[i].fd};
        if (epoll_ctl(user->epoll_fd, EPOLL_CTL_MOD, event.data.fd, &event) < 0 && errno == ENOENT) {
            (void)epoll_ctl(user->epoll_fd, EPOLL_CTL_ADD, event.data.fd, &event);
        }
    }
    for (unsigned i = 0; i < user->watched_count; i++) {
        if (!has_fd(user, user->watched[i])) {
            (void)epoll_ctl(user->epoll_fd, EPOLL_CTL_DEL, user->watched[i], NULL); /* it may be closed */
        }
    }
    user->watched_count = user->fd_count;
    for (unsigned i = 0; i < user->fd_count; i++) {
        user->watched[i] = user->fds[i].fd;
    }
}

/* Both only end the loop's sleep; on_check does the work. */
static void on_timeout(uv_timer_t *timer)
{
}

static void on_poll(uv_poll_t *poll, int status, int events)
{
}

/* Before the loop sleeps. */
static void on_prepare(uv_prepare_t *prepare)
{
    struct user *user = prepare->data;
    uint32_t timeout_ms = UINT32_MAX;
    user->fd_count = 0;
    slirp_pollfds_fill(user->slirp, &timeout_ms, add_poll, user);
    watch_all(user);
    if (timeout_ms == UINT32_MAX) {
        uv_timer_stop(&user->timer);
    } else {
        uv_timer_start(&user->timer, on_timeout, timeout_ms, 0);
    }
}

/* When it woke up, for whatever reason. */
static void on_check(uv_check_t *check)
{
    struct user *user = check->data;
    int rc = poll(user->fds, user->fd_count, 0);
    slirp_pollfds_poll(user->slirp, rc < 0, get_revents, user);
}

/* --- life --- */

static void on_closed(uv_handle_t *handle)
{
    struct user *user = handle->data;
    if (--user->handles == 0) {
        close(user->epoll_fd);
        free(user);
    }
}

static void user_free(struct net_port *port)
{
    struct user *user = CONTAINER_OF(port, struct user, port);
    uv_handle_t *handles[] = {(uv_handle_t *)&user->prepare, (uv_handle_t *)&user->check,
                              (uv_handle_t *)&user->timer, (uv_handle_t *)&user->poll};
    user->freeing = true;
    slirp_cleanup(user->slirp);
    while (user->held) {
        drop_held(user);
    }
    uv_prepare_stop(&user->prepare);
    uv_check_stop(&user->check);
    for (size_t i = 0; i < ARRAY_SIZE(handles); i++) {
        uv_close(handles[i], on_closed);
    }
}

static const struct net_port_ops user_ops = {"user", user_send, user_readable, user_set_offloads, user_free};

static struct in_addr ipv4(const char *text)
{
    struct in_addr address;
    inet_pton(AF_INET, text, &address);
    return address;
}

static Slirp *make_slirp(struct user *user)
{
    SlirpConfig config = {
        .version = CONFIG_VER,
        .in_enabled = true,
        .vnetwork = ipv4("10.0.2.0"),
        .vnetmask = ipv4("255.255.255.0"),
        .vhost = ipv4("10.0.2.2"),
        .vdhcp_start = ipv4("10.0.2.15"),
        .vnameserver = ipv4("10.0.2.3"),
        .in6_enabled = true,
        .vprefix_len = 64,
        .if_mtu = NET_USER_MTU,
        .if_mru = NET_USER_MTU,
    };
    inet_pton(AF_INET6, "fec0::", &config.vprefix_addr6);
    inet_pton(AF_INET6, "fec0::2", &config.vhost6);
    inet_pton(AF_INET6, "fec0::3", &config.vnameserver6);
    return slirp_new(&config, &callbacks, user);
}

static int add_forwards(struct user *user, const struct net_forward *forwards, unsigned count,
                        struct err *err)
{
    for (unsigned i = 0; i < count; i++) {
        const struct net_forward *f = &forwards[i];
        if (slirp_add_hostfwd(user->slirp, f->udp, ipv4(f->host_address), f->host_port, ipv4("10.0.2.15"),
                              f->guest_port) < 0) {
            const char *hint = errno == EADDRINUSE      ? "; choose another one"
                               : errno == EACCES        ? "; without privilege it is to be 1024 or above"
                               : errno == EADDRNOTAVAIL ? ", which is not this host's"
                                                        : "";
            return err_set(err, -errno, "--publish: cannot listen on %s port %u of %s: %s%s",
                           f->udp ? "UDP" : "TCP", f->host_port, f->host_address, strerror(errno), hint);
        }
    }
    return 0;
}

static int init_handles(struct user *user)
{
    user->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (user->epoll_fd < 0) {
        return -errno;
    }
    int rc = uv_poll_init(user->loop, &user->poll, user->epoll_fd);
    if (rc < 0) {
        close(user->epoll_fd);
        return rc;
    }
    uv_prepare_init(user->loop, &user->prepare);
    uv_check_init(user->loop, &user->check);
    uv_timer_init(user->loop, &user->timer);
    user->handles = 4;
    user->poll.data = user->prepare.data = user->check.data = user->timer.data = user;
    uv_poll_start(&user->poll, UV_READABLE, on_poll);
    uv_prepare_start(&user->prepare, on_prepare);
    uv_check_start(&user->check, on_check);
    return 0;
}

struct net_port *net_user_new(uv_loop_t *loop, const struct net_forward *forwards, unsigned count,
                              struct err *err)
{
    struct user *user = calloc(1, sizeof(*user));
    if (!user) {
        err_set(err, -ENOMEM, "out of memory");
        return NULL;
    }
    user->port =
        (struct net_port){.ops = &user_ops, .takes = NET_TAKES_ALL, .mtu = NET_USER_MTU, .link_up = true};
    user->loop = loop;
    user->held_end = &user->held;
    user->slirp = make_slirp(user);
    int rc = user->slirp ? init_handles(user) : -ENOMEM;
    if (rc < 0) {
        err_sys(err, rc, "cannot make the user-mode network");
        if (user->slirp) {
            slirp_cleanup(user->slirp);
        }
        free(user);
        return NULL;
    }
    if (add_forwards(user, forwards, count, err) < 0) {
        user_free(&user->port);
        return NULL;
    }
    return &user->port;
}

static int parse_port(const char *text, size_t len, uint16_t *ret)
{
    char copy[8];
    uint64_t value;
    if (len == 0 || len >= sizeof(copy)) {
        return -EINVAL;
    }
    memcpy(copy, text, len);
    copy[len] = '\0';
    if (parse_uint(copy, &value, NULL) < 0 || value == 0 || value > 65535) {
        return -EINVAL;
    }
    *ret = (uint16_t)value;
    return 0;
}

int net_forward_parse(const char *text, struct net_forward *ret, struct err *err)
{
    struct net_forward f = {.host_address = "127.0.0.1"};
    size_t len = strlen(text);
    if (len > 4 && (strcmp(text + len - 4, "/udp") == 0 || strcmp(text + len - 4, "/tcp") == 0)) {
        f.udp = text[len - 3] == 'u';
        len -= 4;
    }
    const char *last = memrchr(text, ':', len);
    const char *first = last ? memrchr(text, ':', (size_t)(last - text)) : NULL;
    const char *host = first ? first + 1 : text;
    size_t address_len = first ? (size_t)(first - text) : 0;
    struct in_addr address;
    if (!last || address_len >= sizeof(f.host_address) ||
        parse_port(host, (size_t)(last - host), &f.host_port) < 0 ||
        parse_port(last + 1, (size_t)(text + len - last - 1), &f.guest_port) < 0) {
        return err_set(err, -EINVAL,
                       "'%s' is not [ADDRESS:]HOST-PORT:GUEST-PORT[/udp], with ports from 1 to 65535", text);
    }
    if (first) {
        memcpy(f.host_address, text, address_len);
        f.host_address[address_len] = '\0';
    }
    if (inet_pton(AF_INET, f.host_address, &address) != 1) {
        return err_set(err, -EINVAL, "'%s' is not an IPv4 address of this host", f.host_address);
    }
    *ret = f;
    return 0;
}
