/*
 * A serial console on a web socket: one thread per console attaches to the instance's process (which may
 * block) and moves bytes between it and two bounded buffers; the main loop moves them on to the web socket.
 *
 * The thread owns the instance's descriptor; the buffers are under the lock; `users` counts thread and
 * session, and the last one frees.
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include "base/util.h"
#include "daemon/server.h"

#define CONSOLE_BUFFER (64u * 1024)

struct console {
    pthread_mutex_t lock;
    unsigned users;
    struct server *server;
    struct driver_instance instance;
    const struct driver_ops *ops;
    int wake_fd;
    bool closed, ended; /* by the web socket, by the instance */
    char why[256];
    size_t out_len, in_len; /* out: to the web socket; in: to the instance */
    unsigned char out[LWS_PRE + CONSOLE_BUFFER], in[CONSOLE_BUFFER];
};

static void release(struct console *console)
{
    pthread_mutex_lock(&console->lock);
    bool last = --console->users == 0;
    pthread_mutex_unlock(&console->lock);
    if (last) {
        close(console->wake_fd);
        instance_driver_done(&console->instance);
        pthread_mutex_destroy(&console->lock);
        free(console);
    }
}

/* Moves what can be moved. False: the instance hung up. */
static bool move(struct console *console, int fd, short revents)
{
    bool alive = true;
    pthread_mutex_lock(&console->lock);
    if (revents & (POLLIN | POLLHUP | POLLERR) && console->out_len < CONSOLE_BUFFER) {
        ssize_t n = recv(fd, console->out + LWS_PRE + console->out_len, CONSOLE_BUFFER - console->out_len,
                         MSG_DONTWAIT);
        alive = n > 0 || (n < 0 && (errno == EAGAIN || errno == EINTR));
        console->out_len += n > 0 ? (size_t)n : 0;
    }
    if (console->in_len) {
        ssize_t n = send(fd, console->in, console->in_len, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n > 0) {
            memmove(console->in, console->in + n, console->in_len - (size_t)n);
            console->in_len -= (size_t)n;
        }
    }
    pthread_mutex_unlock(&console->lock);
    server_wake(console->server);
    return alive;
}

static void pump(struct console *console, int fd)
{
    for (;;) {
        pthread_mutex_lock(&console->lock);
        bool closed = console->closed;
        short want =
            (short)((console->out_len < CONSOLE_BUFFER ? POLLIN : 0) | (console->in_len ? POLLOUT : 0));
        pthread_mutex_unlock(&console->lock);
        if (closed) {
            return;
        }
        struct pollfd fds[2] = {{.fd = fd, .events = want}, {.fd = console->wake_fd, .events = POLLIN}};
        if (poll(fds, 2, -1) < 0 && errno != EINTR) {
            return;
        }
        if (fds[1].revents) {
            eventfd_t value;
            eventfd_read(console->wake_fd, &value);
        }
        if (fds[0].revents && !move(console, fd, fds[0].revents)) {
            return;
        }
    }
}

static void *run(void *arg)
{
    struct console *console = arg;
    struct fault fault = {0};
    int fd = -1;
    char first[4096];
    size_t first_len = 0;
    if (console->ops->attach(&console->instance, "serial", &fd, first, sizeof(first), &first_len, &fault) ==
        0) {
        pthread_mutex_lock(&console->lock);
        memcpy(console->out + LWS_PRE, first, first_len);
        console->out_len = first_len;
        pthread_mutex_unlock(&console->lock);
        if (first_len) {
            server_wake(console->server);
        }
        pump(console, fd);
        close(fd);
    }
    pthread_mutex_lock(&console->lock);
    console->ended = true;
    snprintf(console->why, sizeof(console->why), "%.120s",
             fault.code ? fault.detail : "the instance ended the stream");
    pthread_mutex_unlock(&console->lock);
    server_wake(console->server);
    release(console);
    return NULL;
}

int console_open(struct session *session, const char *instance)
{
    struct console *console = calloc(1, sizeof(*console));
    struct fault fault = {0};
    struct core *core = server_core(session->server);
    if (!console) {
        return -1;
    }
    core_lock(core);
    int rc = instance_driver(core, instance, &console->instance, &console->ops, &fault);
    core_unlock(core);
    console->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (rc < 0 || console->wake_fd < 0) {
        lws_close_reason(session->wsi, LWS_CLOSE_STATUS_POLICY_VIOLATION, (unsigned char *)fault.detail,
                         MIN(strlen(fault.detail), (size_t)120));
        if (console->wake_fd >= 0) {
            close(console->wake_fd);
        }
        free(console);
        return -1;
    }
    pthread_mutex_init(&console->lock, NULL);
    console->server = session->server;
    console->users = 2;
    session->console = console;
    pthread_t thread;
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, 256 * KiB);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    rc = pthread_create(&thread, &attr, run, console);
    pthread_attr_destroy(&attr);
    if (rc != 0) {
        release(console);
        return -1;
    }
    return 0;
}

bool console_pending(struct session *session)
{
    struct console *console = session->console;
    pthread_mutex_lock(&console->lock);
    bool pending = console->out_len || console->ended;
    pthread_mutex_unlock(&console->lock);
    return pending;
}

int console_writable(struct session *session)
{
    struct console *console = session->console;
    int rc = 0;
    pthread_mutex_lock(&console->lock);
    if (console->out_len) {
        int n = lws_write(session->wsi, console->out + LWS_PRE, console->out_len, LWS_WRITE_BINARY);
        rc = n < (int)console->out_len ? -1 : 0;
        console->out_len = 0;
    } else if (console->ended) {
        lws_close_reason(session->wsi, LWS_CLOSE_STATUS_NORMAL, (unsigned char *)console->why,
                         strlen(console->why));
        rc = -1;
    }
    bool more = console->ended;
    pthread_mutex_unlock(&console->lock);
    eventfd_write(console->wake_fd, 1);
    if (rc == 0 && more) {
        lws_callback_on_writable(session->wsi);
    }
    return rc;
}

bool console_input(struct session *session, const void *bytes, size_t len)
{
    struct console *console = session->console;
    pthread_mutex_lock(&console->lock);
    size_t n = MIN(len, CONSOLE_BUFFER - console->in_len);
    memcpy(console->in + console->in_len, bytes, n);
    console->in_len += n;
    bool room = CONSOLE_BUFFER - console->in_len >= CONSOLE_BUFFER / 2;
    pthread_mutex_unlock(&console->lock);
    eventfd_write(console->wake_fd, 1);
    return room;
}

bool console_wants_input(struct session *session)
{
    struct console *console = session->console;
    pthread_mutex_lock(&console->lock);
    bool room = CONSOLE_BUFFER - console->in_len >= CONSOLE_BUFFER / 2;
    pthread_mutex_unlock(&console->lock);
    return room;
}

void console_close(struct session *session)
{
    struct console *console = session->console;
    session->console = NULL;
    pthread_mutex_lock(&console->lock);
    console->closed = true;
    pthread_mutex_unlock(&console->lock);
    eventfd_write(console->wake_fd, 1);
    release(console);
}
