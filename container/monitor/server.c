/*
 * The control socket: JSON objects, one per line, both ways (docs/containers.md, "Control protocol").
 * methods.c has the table of methods. Only the socket file's owner and root are let in.
 */
#include "container/monitor/monitor.h"

#include "base/log.h"
#include "base/util.h"

#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

static void client_free(struct client *c)
{
    struct monitor *m = c->m;
    for (struct client **p = &m->clients; *p; p = &(*p)->next) {
        if (*p == c) {
            *p = c->next;
            m->client_count--;
            break;
        }
    }
    loop_close(&m->loop, &c->source);
    c->gone = true;
    c->subscribed = false;
    free(c->in);
    free(c->out);
    c->in = c->out = NULL;
    if (c->waiting == 0) {
        free(c);
        malloc_trim(0); /* a monitor that nobody talks to should be small */
    }
}

void server_release(struct client *c)
{
    if (--c->waiting == 0 && c->gone) {
        free(c);
    }
}

static void watch(struct client *c)
{
    loop_change(&c->m->loop, &c->source,
                (c->closing ? 0 : (uint32_t)EPOLLIN) | (c->out_size ? (uint32_t)EPOLLOUT : 0));
}

static bool flush(struct client *c)
{
    while (c->out && c->out_size) {
        ssize_t n = send(c->source.fd, c->out, c->out_size, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0) {
            return errno == EAGAIN || errno == EINTR;
        }
        c->out_size -= (size_t)n;
        memmove(c->out, c->out + n, c->out_size);
    }
    free(c->out);
    c->out = NULL;
    c->out_room = 0;
    return !c->closing;
}

static bool append(struct client *c, const char *text, size_t size)
{
    if (c->out_size + size > c->out_room) {
        size_t room = MAX(c->out_room * 2, c->out_size + size);
        char *out = realloc(c->out, room);
        if (!out) {
            return false;
        }
        c->out = out;
        c->out_room = room;
    }
    memcpy(c->out + c->out_size, text, size);
    c->out_size += size;
    return true;
}

/* Queues one message; it goes out with the next turn of the loop, so that no client is freed under its
 * caller. */
static void send_json(struct client *c, json_t *message)
{
    static const char overflow[] = "{\"event\": \"overflow\"}\n";
    char *text = c->gone || c->closing ? NULL : json_dumps(message, JSON_COMPACT);
    json_decref(message);
    if (!text) {
        return;
    }
    size_t size = strlen(text);
    text[size++] = '\n'; /* over the NUL */
    if (c->out_size + size > CLIENT_OUTPUT_MAX + (64u << 10)) {
        append(c, overflow, sizeof(overflow) - 1);
        c->closing = true;
    } else {
        append(c, text, size);
    }
    free(text);
    watch(c);
}

void server_reply(struct client *c, json_t *id, json_t *result)
{
    json_t *o = json_object();
    json_object_set_new(o, "id", id);
    json_object_set_new(o, "result", result ? result : json_object());
    send_json(c, o);
}

void server_error(struct client *c, json_t *id, const char *code, const char *hint, const char *fmt, ...)
{
    char text[ERR_TEXT_MAX];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    json_t *message = json_string(text);
    json_t *error =
        json_pack("{s:s, s:o}", "code", code, "message", message ? message : json_string("(not text)"));
    if (hint) {
        json_object_set_new(error, "hint", json_string(hint));
    }
    json_t *o = json_object();
    json_object_set_new(o, "id", id);
    json_object_set_new(o, "error", error);
    send_json(c, o);
}

void server_event(struct monitor *m, const char *name, json_t *data)
{
    for (struct client *c = m->clients; c; c = c->next) {
        if (c->subscribed) {
            send_json(c, json_pack("{s:s, s:I, s:O}", "event", name, "time_ns", (json_int_t)loop_wall_ns(),
                                   "data", data));
        }
    }
    json_decref(data);
}

static void handle_line(struct client *c, const char *line, size_t size)
{
    json_error_t why;
    json_t *request = json_loadb(line, size, JSON_REJECT_DUPLICATES, &why);
    if (!json_is_object(request)) {
        server_error(c, json_null(), "bad_request", "send one JSON object a line", "not a JSON object: %s",
                     request ? "another type of value" : why.text);
    } else {
        method_call(c, request);
    }
    json_decref(request);
}

/* Whole lines of the input; false: the client is not ours any more. */
static bool handle_lines(struct client *c)
{
    char *end;
    while (c->in_size && !c->closing && (end = memchr(c->in, '\n', c->in_size))) {
        size_t size = (size_t)(end - c->in);
        char *line = malloc(size + 1);
        if (!line) {
            return true;
        }
        memcpy(line, c->in, size);
        c->in_size -= size + 1;
        memmove(c->in, end + 1, c->in_size);
        c->waiting++; /* keeps it alive */
        handle_line(c, line, size);
        free(line);
        bool gone = c->gone;
        server_release(c);
        if (gone) {
            return false;
        }
    }
    if (c->in_size == 0) {
        free(c->in);
        c->in = NULL;
        c->in_room = 0;
    }
    return true;
}

static bool read_some(struct client *c)
{
    if (c->in_room - c->in_size < 4096) {
        size_t room = MAX(c->in_room * 2, (size_t)8192);
        char *in = realloc(c->in, room);
        if (!in) {
            return false;
        }
        c->in = in;
        c->in_room = room;
    }
    ssize_t n = read(c->source.fd, c->in + c->in_size, c->in_room - c->in_size);
    if (n <= 0) {
        return n < 0 && (errno == EAGAIN || errno == EINTR);
    }
    c->in_size += (size_t)n;
    return true;
}

static void on_client(struct loop_source *source, uint32_t events)
{
    struct client *c = CONTAINER_OF(source, struct client, source);
    bool alive = !(events & EPOLLERR);
    if (alive && events & (EPOLLIN | EPOLLHUP)) {
        alive = read_some(c);
        if (!handle_lines(c)) {
            return;
        }
        if (c->in_size > CLIENT_INPUT_MAX && !c->closing) {
            server_error(c, json_null(), "too_long", NULL, "a request is longer than %u bytes",
                         CLIENT_INPUT_MAX);
            c->closing = true;
        }
    }
    bool idle = !c->waiting && !c->subscribed;
    if (!flush(c) || events & (EPOLLHUP | EPOLLERR) || (!alive && idle && !c->out_size)) {
        client_free(c);
        return;
    }
    watch(c);
    if (!alive) { /* it has sent all, and waits for replies */
        loop_change(&c->m->loop, &c->source, c->out_size ? EPOLLOUT : 0);
    }
}

int server_hijack(struct client *c, char **ret_rest, size_t *ret_size)
{
    int fd = fcntl(c->source.fd, F_DUPFD_CLOEXEC, 3);
    if (fd < 0) {
        return -errno;
    }
    /* The reply has to be out before anything of the stream: the socket's buffer takes it unless the client
     * doesn't read. */
    if (!flush(c) || c->out_size) {
        close(fd);
        return -EPIPE;
    }
    *ret_rest = c->in;
    *ret_size = c->in_size;
    c->in = NULL;
    c->in_size = 0;
    client_free(c);
    return fd;
}

static void on_connection(struct loop_source *source, uint32_t events)
{
    struct monitor *m = CONTAINER_OF(source, struct monitor, server);
    struct ucred peer = {.uid = (uid_t)-1};
    socklen_t size = sizeof(peer);
    int fd = accept4(source->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) {
        return;
    }
    struct client *c = m->client_count < CLIENTS_MAX ? calloc(1, sizeof(*c)) : NULL;
    if (!c || getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0 ||
        (peer.uid != geteuid() && peer.uid != 0)) {
        close(fd);
        free(c);
        return;
    }
    *c = (struct client){.m = m, .source = {.fd = fd, .ready = on_client}};
    if (loop_add(&m->loop, &c->source, EPOLLIN) < 0) {
        close(fd);
        free(c);
        return;
    }
    c->next = m->clients;
    m->clients = c;
    m->client_count++;
}

int server_start(struct monitor *m, struct err *err)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    snprintf(addr.sun_path, sizeof(addr.sun_path), "/proc/self/fd/%d/control.sock", m->dir_fd);
    (void)unlinkat(m->dir_fd, "control.sock", 0);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    mode_t mask = umask(0177);
    int rc =
        fd < 0 || bind(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0 || listen(fd, 16) < 0 ? -errno : 0;
    umask(mask);
    m->server = (struct loop_source){.fd = fd, .ready = on_connection};
    rc = rc < 0 ? rc : loop_add(&m->loop, &m->server, EPOLLIN);
    return rc < 0 ? err_sys(err, rc, "cannot make the control socket in '%s'", m->o.dir) : 0;
}

void server_stop(struct monitor *m)
{
    (void)unlinkat(m->dir_fd, "control.sock", 0);
    loop_close(&m->loop, &m->server);
    while (m->clients) {
        (void)flush(m->clients);
        client_free(m->clients);
    }
}
