/*
 * One connection: lines in, messages out, or a raw byte stream.
 *
 *               first bytes               control_attach
 *     accepted -------------> CONN_OPEN -----------------> CONN_STREAM
 *         |                    |      \  too slow, line too long  | too slow, control_stream_close
 *         | too many           |       v                          v
 *         +------------------> | ---> CONN_CUT <------------------+
 *                     EOF,     v        | drained, or CONTROL_CUT_MS
 *                     error   CONN_CLOSED
 *
 * Invariants
 *  1. Nothing is read while CONTROL_CALLS_MAX calls are unanswered or CONTROL_UNSENT_HOLD bytes are unsent,
 * so that a client can make the server hold no more than one line, its calls and CONTROL_UNSENT_MAX bytes.
 *  2. Callbacks into the owner never run from inside of control_stream_write.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "base/util.h"
#include "control/control_int.h"

struct write {
    uv_write_t req;
    struct control_conn *conn;
    char *bytes;
};

static void pump(struct control_conn *conn);

/* --- life and end ----------------------------------------------------------------------------------------
 */

static void conn_release(struct control_conn *conn)
{
    if (conn->handles == 0 && conn->calls == 0) {
        struct control *control = conn->control;
        free(conn->in);
        free(conn);
        control_unref(control);
    }
}

static void on_handle_closed(uv_handle_t *handle)
{
    struct control_conn *conn = handle->data;
    conn->handles--;
    conn_release(conn);
}

void conn_close(struct control_conn *conn)
{
    if (conn->state == CONN_CLOSED) {
        return;
    }
    struct control_stream stream = conn->stream;
    conn->state = CONN_CLOSED;
    while (conn->fd_count > 0) {
        close(conn->fds[--conn->fd_count]);
    }
    conn->stream = (struct control_stream){0};
    *conn->prev = conn->next;
    if (conn->next) {
        conn->next->prev = conn->prev;
    }
    conn->control->conn_count--;
    uv_close((uv_handle_t *)&conn->pipe, on_handle_closed);
    uv_close((uv_handle_t *)&conn->timer, on_handle_closed);
    if (stream.ops.closed) {
        stream.ops.closed(stream.opaque);
    }
}

static void on_timer(uv_timer_t *timer)
{
    struct control_conn *conn = timer->data;
    if (conn->state == CONN_CUT) {
        conn_close(conn);
    } else {
        pump(conn);
    }
}

static void stop_reading(struct control_conn *conn)
{
    if (conn->reading) {
        conn->reading = false;
        uv_read_stop((uv_stream_t *)&conn->pipe);
    }
}

/* Reads no more; what is queued may still go out. The owner's closed() comes with conn_close. */
static void cut(struct control_conn *conn)
{
    if (conn->state == CONN_OPEN || conn->state == CONN_STREAM) {
        conn->state = CONN_CUT;
        conn->subscribed = false;
        stop_reading(conn);
        uv_timer_start(&conn->timer, on_timer, conn->writes ? CONTROL_CUT_MS : 0, 0);
    }
}

static void close_when_done(struct control_conn *conn)
{
    bool asks = conn->in_used > 0 && memchr(conn->in, '\n', conn->in_used);
    if (conn->writes == 0 && (conn->state == CONN_CUT || (conn->at_eof && conn->calls == 0 && !asks))) {
        conn_close(conn);
    }
}

/* --- out -------------------------------------------------------------------------------------------------
 */

static size_t unsent(const struct control_conn *conn)
{
    return uv_stream_get_write_queue_size((const uv_stream_t *)&conn->pipe);
}

static void on_written(uv_write_t *req, int status)
{
    struct write *write = CONTAINER_OF(req, struct write, req);
    struct control_conn *conn = write->conn;
    conn->writes--;
    free(write->bytes);
    free(write);
    if (conn->state == CONN_CLOSED) {
        return;
    }
    if (status < 0) {
        conn_close(conn);
        return;
    }
    close_when_done(conn);
    if (conn->state == CONN_OPEN || conn->state == CONN_STREAM) {
        pump(conn);
    }
}

/* Takes bytes (from malloc) over. */
static void send_bytes(struct control_conn *conn, char *bytes, size_t len)
{
    struct write *write = bytes ? malloc(sizeof(*write)) : NULL;
    if (!write || conn->state == CONN_CLOSED) {
        free(write);
        free(bytes);
        cut(conn); /* no memory: the other side must not wait for what never comes */
        return;
    }
    *write = (struct write){.conn = conn, .bytes = bytes};
    uv_buf_t buf = uv_buf_init(bytes, (unsigned)len);
    if (uv_write(&write->req, (uv_stream_t *)&conn->pipe, &buf, 1, on_written) < 0) {
        free(write);
        free(bytes);
        cut(conn);
        return;
    }
    conn->writes++;
}

static char *line_of(json_t *message, size_t *ret_len)
{
    size_t len = json_dumpb(message, NULL, 0, JSON_COMPACT);
    char *bytes = len ? malloc(len + 1) : NULL;
    if (bytes) {
        json_dumpb(message, bytes, len, JSON_COMPACT);
        bytes[len] = '\n';
    }
    *ret_len = len + 1;
    return bytes;
}

void conn_send(struct control_conn *conn, json_t *message)
{
    if (conn->state == CONN_OPEN) {
        size_t len;
        if (unsent(conn) > CONTROL_UNSENT_MAX) {
            json_t *overflow = json_pack("{s:s, s:I, s:{}}", "event", "overflow", "time_ns",
                                         (json_int_t)control_time_ns(), "data");
            char *bytes = line_of(overflow, &len);
            json_decref(overflow);
            send_bytes(conn, bytes, len);
            cut(conn);
        } else {
            char *bytes = line_of(message, &len);
            send_bytes(conn, bytes, len);
        }
    }
    json_decref(message);
}

/* --- answers ---------------------------------------------------------------------------------------------
 */

json_t *control_error(const char *code, const char *hint, const char *text)
{
    json_t *error = json_pack("{s:s, s:s%}", "code", code, "message", text, strlen(text));
    if (!error) { /* text that is no UTF-8: a path, say */
        error = json_pack("{s:s, s:s}", "code", code, "message", "(the message is no UTF-8)");
    }
    if (hint) {
        json_object_set_new(error, "hint", json_string(hint));
    }
    return error;
}

void control_answer(struct control_call *call, const char *member, json_t *value)
{
    struct control_conn *conn = call->conn;
    json_t *reply = json_object();
    json_object_set(reply, "id", call->id);
    json_object_set_new(reply, member, value ? value : json_object());
    conn_send(conn, reply);
    if (call->params != json_object_get(call->request, "params")) {
        json_decref(call->params);
    }
    json_decref(call->request);
    json_decref(call->id);
    free(call);
    conn->calls--;
    if (conn->state == CONN_CLOSED) {
        conn_release(conn);
        return;
    }
    close_when_done(conn);
    if (conn->state == CONN_OPEN) {
        uv_timer_start(&conn->timer, on_timer, 0,
                       0); /* requests that waited; not from here, deep in a method */
    }
}

void control_reply(struct control_call *call, json_t *result)
{
    control_answer(call, "result", result);
}

void control_fail(struct control_call *call, const char *code, const char *hint, const char *fmt, ...)
{
    char text[ERR_TEXT_MAX];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    control_answer(call, "error", control_error(code, hint, text));
}

const char *control_code(int error)
{
    switch (-error) {
    case ENOENT: return "not_found";
    case EEXIST: return "exists";
    case EINVAL: return "bad_params";
    case EBUSY:
    case EAGAIN: return "busy";
    case ENOSPC: return "no_space";
    case ENOMEM: return "no_memory";
    case EACCES:
    case EPERM: return "not_allowed";
    case ENOTSUP: return "not_supported";
    case ECANCELED: return "cancelled";
    case ETIMEDOUT: return "timeout";
    case EILSEQ:
    case EBADMSG: return "damaged";
    default: return "failed";
    }
}

void control_fail_err(struct control_call *call, const struct err *err)
{
    control_answer(call, "error", control_error(control_code(err->code), NULL, err->text));
}

/* --- requests --------------------------------------------------------------------------------------------
 */

/* A complaint that belongs to no request. */
static void complain(struct control_conn *conn, const char *code, const char *text)
{
    conn_send(conn, json_pack("{s:n, s:o}", "id", "error", control_error(code, NULL, text)));
}

static const struct control_method *find_method(struct control *control, const char *name, void **ret_opaque)
{
    *ret_opaque = control->opaque;
    for (unsigned i = 0; i < control->method_count; i++) {
        if (strcmp(control->methods[i].name, name) == 0) {
            return &control->methods[i];
        }
    }
    *ret_opaque = control;
    for (unsigned i = 0; i < control_builtin_count; i++) {
        if (strcmp(control_builtins[i].name, name) == 0) {
            return &control_builtins[i];
        }
    }
    return NULL;
}

/* Takes request over. */
static void dispatch(struct control_conn *conn, json_t *request)
{
    json_t *id = json_object_get(request, "id");
    json_t *params = json_object_get(request, "params");
    const char *name = json_string_value(json_object_get(request, "method"));
    struct control_call *call = NULL;
    if (!json_is_object(request) || (id && !json_is_integer(id) && !json_is_string(id))) {
        complain(conn, "bad_request",
                 "a request is an object with \"method\", and an \"id\" that is a number or "
                 "a string");
    } else if (!(call = calloc(1, sizeof(*call)))) {
        complain(conn, "no_memory", "out of memory");
    }
    if (!call) {
        json_decref(request);
        return;
    }
    *call = (struct control_call){.conn = conn, .id = id ? json_incref(id) : json_null(), .request = request};
    call->params = params ? params : json_object();
    conn->calls++;
    void *opaque;
    const struct control_method *method = name ? find_method(conn->control, name, &opaque) : NULL;
    if (!name) {
        control_fail(call, "bad_request", NULL, "\"method\" is missing, or not a string");
    } else if (!json_is_object(call->params)) {
        control_fail(call, "bad_request", NULL, "\"params\" is not an object");
    } else if (!method) {
        control_fail(call, "unknown_method", "the method \"methods\" lists them", "unknown method '%.64s'",
                     name);
    } else {
        method->fn(call, call->params, opaque);
    }
}

static void take_line(struct control_conn *conn, const char *line, size_t len)
{
    json_error_t error;
    json_t *request = json_loadb(line, len, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &error);
    if (!request) {
        char text[ERR_TEXT_MAX];
        snprintf(text, sizeof(text), "no JSON at byte %d: %s", error.position, error.text);
        complain(conn, "bad_json", text);
        return;
    }
    dispatch(conn, request);
}

static bool is_blank(const char *line, size_t len)
{
    return strspn(line, " \t\r") >= len;
}

/* The first complete line goes to its method; false: there is none. */
static bool take_input_line(struct control_conn *conn)
{
    char *end = conn->in_used > conn->in_scanned
                    ? memchr(conn->in + conn->in_scanned, '\n', conn->in_used - conn->in_scanned)
                    : NULL;
    if (!end) {
        conn->in_scanned = conn->in_used;
        if (conn->in_used >= CONTROL_LINE_MAX) {
            complain(conn, "line_too_long", "a line of more than 1 MiB");
            cut(conn);
        }
        return false;
    }
    size_t len = (size_t)(end - conn->in), rest = conn->in_used - len - 1;
    char *line = conn->in;
    *end = '\0';
    conn->in = NULL; /* the method may send, attach or close */
    conn->in_used = conn->in_size = conn->in_scanned = 0;
    if (rest > 0) {
        conn->in = malloc(rest);
        if (!conn->in) {
            free(line);
            cut(conn);
            return false;
        }
        memcpy(conn->in, end + 1, rest);
        conn->in_used = conn->in_size = rest;
    }
    if (!is_blank(line, len)) {
        take_line(conn, line, len);
    }
    free(line);
    return true;
}

static bool may_take(const struct control_conn *conn)
{
    return conn->state == CONN_OPEN && conn->calls < CONTROL_CALLS_MAX && unsent(conn) < CONTROL_UNSENT_HOLD;
}

static void pump_stream(struct control_conn *conn)
{
    while (conn->state == CONN_STREAM && conn->in_used > 0) {
        size_t taken = conn->stream.ops.input(conn->stream.opaque, (const uint8_t *)conn->in, conn->in_used);
        if (taken == 0 || conn->state != CONN_STREAM) {
            return;
        }
        conn->in_used -= taken;
        memmove(conn->in, conn->in + taken, conn->in_used);
    }
}

static void on_fd_closed(uv_handle_t *handle)
{
    free(handle);
}

/* libuv keeps what came until it is accepted, and accepts nothing but handles: files pass as "pipes", whose
 * descriptor is doubled, and which are closed without having been used. */
static void take_fds(struct control_conn *conn)
{
    while (uv_pipe_pending_count(&conn->pipe) > 0) {
        uv_os_fd_t fd;
        uv_pipe_t *got = malloc(sizeof(*got));
        if (!got) {
            cut(conn);
            return;
        }
        uv_pipe_init(conn->control->loop, got, 0);
        if (uv_accept((uv_stream_t *)&conn->pipe, (uv_stream_t *)got) == 0 &&
            conn->fd_count < CONTROL_FDS_MAX && uv_fileno((const uv_handle_t *)got, &fd) == 0) {
            int own = fcntl(fd, F_DUPFD_CLOEXEC, 3);
            if (own >= 0) {
                conn->fds[conn->fd_count++] = own;
            }
        }
        uv_close((uv_handle_t *)got, on_fd_closed);
    }
}

int control_take_fd(struct control_call *call)
{
    struct control_conn *conn = call->conn;
    if (conn->fd_count == 0) {
        return -1;
    }
    int fd = conn->fds[0];
    memmove(conn->fds, conn->fds + 1, --conn->fd_count * sizeof(conn->fds[0]));
    return fd;
}

static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *ret_buf)
{
    struct control_conn *conn = handle->data;
    *ret_buf = uv_buf_init(conn->read_buf, sizeof(conn->read_buf));
}

static void on_read(uv_stream_t *stream, ssize_t len, const uv_buf_t *buf)
{
    struct control_conn *conn = stream->data;
    if (len < 0) {
        stop_reading(conn);
        conn->at_eof = true;
        if (len != UV_EOF || conn->state == CONN_STREAM) {
            conn_close(conn);
        } else {
            close_when_done(conn);
        }
        return;
    }
    take_fds(conn);
    if (conn->in_used + (size_t)len > conn->in_size) {
        size_t size = MAX(conn->in_used + (size_t)len, 2 * conn->in_size);
        char *in = realloc(conn->in, size);
        if (!in) {
            cut(conn);
            return;
        }
        conn->in = in;
        conn->in_size = size;
    }
    memcpy(conn->in + conn->in_used, buf->base, (size_t)len);
    conn->in_used += (size_t)len;
    pump(conn);
}

/* Works off what has come, and decides whether more is read. */
static void pump(struct control_conn *conn)
{
    while (may_take(conn) && take_input_line(conn)) {
    }
    pump_stream(conn);
    bool want = conn->state == CONN_STREAM ? conn->in_used == 0 : may_take(conn);
    if (want && !conn->reading && !conn->at_eof) {
        conn->reading = uv_read_start((uv_stream_t *)&conn->pipe, on_alloc, on_read) == 0;
    } else if (!want) {
        stop_reading(conn);
    }
    if (conn->at_eof) {
        close_when_done(conn);
    }
}

/* --- streams ---------------------------------------------------------------------------------------------
 */

struct control_stream *control_attach(struct control_call *call, json_t *result,
                                      const struct control_stream_ops *ops, void *opaque)
{
    struct control_conn *conn = call->conn;
    if (conn->calls > 1) {
        json_decref(result);
        control_fail(call, "busy", "attach on a connection of its own",
                     "other requests on this connection are not answered yet");
        return NULL;
    }
    if (conn->state != CONN_OPEN || conn->at_eof) {
        control_reply(call, result);
        return NULL;
    }
    conn->subscribed = false;
    control_reply(call, result);
    if (conn->state != CONN_OPEN) {
        return NULL;
    }
    conn->stream = (struct control_stream){*ops, opaque};
    conn->state = CONN_STREAM;
    return &conn->stream;
}

void control_stream_write(struct control_stream *stream, const uint8_t *bytes, size_t len)
{
    struct control_conn *conn = CONTAINER_OF(stream, struct control_conn, stream);
    if (conn->state != CONN_STREAM || len == 0) {
        return;
    }
    if (unsent(conn) > CONTROL_UNSENT_MAX) {
        cut(conn);
        return;
    }
    char *copy = malloc(len);
    if (copy) {
        memcpy(copy, bytes, len);
    }
    send_bytes(conn, copy, len);
}

void control_stream_room(struct control_stream *stream)
{
    pump(CONTAINER_OF(stream, struct control_conn, stream));
}

void control_stream_close(struct control_stream *stream)
{
    struct control_conn *conn = CONTAINER_OF(stream, struct control_conn, stream);
    conn->stream = (struct control_stream){0};
    cut(conn);
}

/* --- accepting -------------------------------------------------------------------------------------------
 */

/* The same user, or root: unix(7), SO_PEERCRED. */
static bool may_connect(struct control_conn *conn)
{
    uv_os_fd_t fd;
    struct ucred peer;
    socklen_t len = sizeof(peer);
    return uv_fileno((const uv_handle_t *)&conn->pipe, &fd) == 0 &&
           getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) == 0 &&
           (peer.uid == geteuid() || peer.uid == 0);
}

/* Taken and closed, so that the listener does not call again for it. */
static void refuse(struct control *control)
{
    uv_os_fd_t fd;
    if (uv_fileno((const uv_handle_t *)&control->listener, &fd) == 0) {
        int client = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
        if (client >= 0) {
            close(client);
        }
    }
}

void conn_accept(struct control *control)
{
    struct control_conn *conn = calloc(1, sizeof(*conn));
    if (!conn) {
        refuse(control);
        return;
    }
    conn->control = control;
    conn->handles = 2;
    control->refs++;
    conn->next = control->conns;
    conn->prev = &control->conns;
    if (conn->next) {
        conn->next->prev = &conn->next;
    }
    control->conns = conn;
    control->conn_count++;
    uv_pipe_init(control->loop, &conn->pipe, 1); /* with descriptors */
    uv_timer_init(control->loop, &conn->timer);
    conn->pipe.data = conn->timer.data = conn;
    if (uv_accept((uv_stream_t *)&control->listener, (uv_stream_t *)&conn->pipe) < 0) {
        conn_close(conn);
    } else if (!may_connect(conn)) {
        complain(conn, "not_allowed", "this socket is its owner's and root's");
        cut(conn);
    } else if (control->conn_count > CONTROL_CONNS_MAX) {
        complain(conn, "too_many_connections", "64 connections are open: close some");
        cut(conn);
    } else {
        pump(conn);
    }
}
