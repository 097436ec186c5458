/*
 * Streams with an instance on a web socket: attach, exec, logs, files as tar. One thread per stream opens it
 * and moves bytes (both may block); the main loop moves them on.
 *
 *     client: {"exec": {...}} (text, first)                   server: {"started": {"terminal": false}}
 *             bytes (binary): input                                   bytes: 1 (output) or 2 (errors), then
 * what it was
 *             {"eof": true}, {"signal": "TERM"},                      {"exit": 0} or {"error": {...}} (text,
 *             {"resize": {"rows": 24, "columns": 80}}                 last)
 *
 * The thread owns what was opened; everything else is under the lock. `users` counts thread and session; the
 * last one frees.
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>

#include "base/util.h"
#include "daemon/server.h"

#define IN_MAX    (64u * 1024)
#define TEXT_MAX  (64u * 1024) /* a message of the client's that is JSON */
#define CHUNK     (16u * 1024)
#define QUEUE_MAX 8

enum message_kind { MESSAGE_TEXT, MESSAGE_OUT, MESSAGE_ERR };

struct message {
    enum message_kind kind;
    size_t len;
    unsigned char bytes[LWS_PRE + 1 + CHUNK];
};

struct stream {
    pthread_mutex_t lock;
    unsigned users;
    struct server *server;
    struct driver_instance instance;
    const struct driver_ops *ops;
    int wake_fd;
    bool closed, ended;     /* by the client, by the thread */
    bool eof;               /* no more input */
    json_t *open;           /* what the client wants; the thread takes it */
    unsigned rows, columns; /* a new size; 0: none */
    char signal[16];
    size_t in_len, text_len;
    unsigned first, count; /* of the queue */
    unsigned char in[IN_MAX];
    char text[TEXT_MAX];
    struct message queue[QUEUE_MAX];
};

static void release(struct stream *s)
{
    pthread_mutex_lock(&s->lock);
    bool last = --s->users == 0;
    pthread_mutex_unlock(&s->lock);
    if (last) {
        close(s->wake_fd);
        json_decref(s->open);
        instance_driver_done(&s->instance);
        pthread_mutex_destroy(&s->lock);
        free(s);
    }
}

/* ---- the thread ---- */

static void wait_awake(struct stream *s)
{
    eventfd_t value;
    struct pollfd fd = {.fd = s->wake_fd, .events = POLLIN};
    if (poll(&fd, 1, 1000) > 0) {
        eventfd_read(s->wake_fd, &value);
    }
}

/* Waits for room. False: the client is gone. */
static bool push(struct stream *s, enum message_kind kind, const void *bytes, size_t len)
{
    for (;;) {
        pthread_mutex_lock(&s->lock);
        bool room = s->count < QUEUE_MAX, closed = s->closed;
        if (room && !closed) {
            struct message *m = &s->queue[(s->first + s->count++) % QUEUE_MAX];
            m->kind = kind;
            m->len = MIN(len, (size_t)CHUNK);
            memcpy(m->bytes + LWS_PRE + 1, bytes, m->len);
        }
        pthread_mutex_unlock(&s->lock);
        if (room || closed) {
            server_wake(s->server);
            return !closed;
        }
        wait_awake(s);
    }
}

static void push_json(struct stream *s, json_t *json)
{
    auto_free char *text = json ? json_dumps(json, JSON_COMPACT) : NULL;
    json_decref(json);
    if (text) {
        push(s, MESSAGE_TEXT, text, strlen(text));
    }
}

static void push_fault(struct stream *s, const struct fault *fault)
{
    push_json(s, json_pack("{s:{s:s, s:s, s:s}}", "error", "code", fault_word(fault->code), "detail",
                           fault->detail, "hint", fault->hint));
}

static int signal_of(const char *name)
{
    int number = atoi(name);
    name += strncmp(name, "SIG", 3) == 0 ? 3 : 0;
    for (int i = 1; number == 0 && i < 32; i++) {
        const char *abbreviation = sigabbrev_np(i);
        number = abbreviation && strcmp(abbreviation, name) == 0 ? i : 0;
    }
    return number > 0 && number < 65 ? number : 0;
}

/* What the client asked for besides bytes. */
static void serve_requests(struct stream *s, struct driver_stream *d)
{
    struct fault fault = {0};
    char signal[16];
    pthread_mutex_lock(&s->lock);
    unsigned rows = s->rows, columns = s->columns;
    bool eof = s->eof && s->in_len == 0;
    memcpy(signal, s->signal, sizeof(signal));
    s->rows = s->columns = 0;
    s->signal[0] = '\0';
    s->eof = s->eof && !eof;
    pthread_mutex_unlock(&s->lock);
    if (rows && columns && s->ops->resize) {
        s->ops->resize(&s->instance, d, rows, columns, &fault);
    }
    if (signal[0] && d->pid) {
        int number = signal_of(signal);
        if (number) {
            kill(d->pid, number);
        }
    } else if (signal[0] && s->ops->signal) {
        s->ops->signal(&s->instance, signal, &fault);
    }
    if (eof) {
        driver_stream_close_input(d);
    }
}

static void give_input(struct stream *s, struct driver_stream *d)
{
    pthread_mutex_lock(&s->lock);
    if (s->in_len) {
        /* Polled for room, so that at least something fits and this does not block; PIPE_BUF is 4,096. */
        ssize_t n =
            d->fds[0] < 0 ? (ssize_t)s->in_len : write(d->fds[0], s->in, MIN(s->in_len, (size_t)4096));
        if (n < 0 && errno != EAGAIN && errno != EINTR) {
            n = (ssize_t)s->in_len; /* nobody reads it any more */
        }
        if (n > 0) {
            memmove(s->in, s->in + n, s->in_len - (size_t)n);
            s->in_len -= (size_t)n;
        }
    }
    pthread_mutex_unlock(&s->lock);
    server_wake(s->server);
}

static void take_output(struct stream *s, struct driver_stream *d, int index)
{
    unsigned char buf[CHUNK];
    ssize_t n = read(d->fds[index], buf, sizeof(buf));
    if (n > 0) {
        push(s, index == 1 ? MESSAGE_OUT : MESSAGE_ERR, buf, (size_t)n);
    } else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
        close(d->fds[index]);
        d->fds[index] = -1;
    }
}

/* Until output and errors have ended, or the client is gone. */
static void pump(struct stream *s, struct driver_stream *d)
{
    while (d->fds[1] >= 0 || d->fds[2] >= 0) {
        serve_requests(s, d);
        pthread_mutex_lock(&s->lock);
        bool closed = s->closed;
        short in = s->in_len ? POLLOUT : 0;
        pthread_mutex_unlock(&s->lock);
        if (closed) {
            return;
        }
        if (in && d->fds[0] < 0) {
            give_input(s, d);
            in = 0;
        }
        struct pollfd fds[4] = {{.fd = s->wake_fd, .events = POLLIN},
                                {.fd = in ? d->fds[0] : -1, .events = in},
                                {.fd = d->fds[1], .events = POLLIN},
                                {.fd = d->fds[2], .events = POLLIN}};
        if (poll(fds, ARRAY_SIZE(fds), -1) < 0) {
            continue;
        }
        if (fds[0].revents) {
            eventfd_t value;
            eventfd_read(s->wake_fd, &value);
        }
        if (fds[1].revents) {
            give_input(s, d);
        }
        for (int i = 1; i < 3; i++) {
            if (d->fds[i] >= 0 && fds[i + 1].revents) {
                take_output(s, d, i);
            }
        }
    }
}

static void serve(struct stream *s, json_t *open)
{
    struct driver_stream *d = calloc(1, sizeof(*d));
    struct fault fault = {0};
    const char *verb = "";
    json_t *how = NULL, *value;
    const char *key;
    json_object_foreach(open, key, value)
    {
        verb = key;
        how = value;
    }
    int rc = !d ? fault_set(&fault, FAULT_INTERNAL, NULL, "no memory")
             : json_object_size(open) != 1 || !json_is_object(how)
                 ? fault_set(&fault, FAULT_INVALID, NULL, "one member says which stream: {\"attach\": {}}")
             : !s->ops->stream
                 ? fault_set(&fault, FAULT_UNSUPPORTED, "fonda console", "a machine has its console alone")
                 : s->ops->stream(&s->instance, verb, how, d, &fault);
    if (rc < 0) {
        push_fault(s, &fault);
        free(d);
        return;
    }
    push_json(s, json_pack("{s:{s:b}}", "started", "terminal", d->terminal));
    for (int i = 0; i < 2; i++) {
        if (d->first_len[i]) {
            push(s, i ? MESSAGE_ERR : MESSAGE_OUT, d->first[i], d->first_len[i]);
        }
    }
    pump(s, d);
    pthread_mutex_lock(&s->lock);
    bool closed = s->closed;
    pthread_mutex_unlock(&s->lock);
    if (!closed) {
        push_json(s, json_pack("{s:i}", "exit", driver_stream_end(d, &s->instance, s->ops)));
    }
    driver_stream_done(d);
    free(d);
}

static void *run(void *arg)
{
    struct stream *s = arg;
    json_t *open = NULL;
    bool closed = false;
    while (!open && !closed) {
        pthread_mutex_lock(&s->lock);
        open = s->open;
        s->open = NULL;
        closed = s->closed;
        pthread_mutex_unlock(&s->lock);
        if (!open && !closed) {
            wait_awake(s);
        }
    }
    if (open) {
        serve(s, open);
        json_decref(open);
    }
    pthread_mutex_lock(&s->lock);
    s->ended = true;
    pthread_mutex_unlock(&s->lock);
    server_wake(s->server);
    release(s);
    return NULL;
}

/* ---- the main loop ---- */

int stream_open(struct session *session, const char *instance)
{
    struct stream *s = calloc(1, sizeof(*s));
    struct fault fault = {0};
    struct core *core = server_core(session->server);
    if (!s) {
        return -1;
    }
    core_lock(core);
    int rc = instance_driver(core, instance, &s->instance, &s->ops, &fault);
    core_unlock(core);
    s->wake_fd = rc < 0 ? -1 : eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (s->wake_fd < 0) {
        lws_close_reason(session->wsi, LWS_CLOSE_STATUS_POLICY_VIOLATION, (unsigned char *)fault.detail,
                         MIN(strlen(fault.detail), (size_t)120));
        instance_driver_done(&s->instance);
        free(s);
        return -1;
    }
    pthread_mutex_init(&s->lock, NULL);
    s->server = session->server;
    s->users = 2;
    session->stream = s;
    pthread_t thread;
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, 512 * KiB);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    rc = pthread_create(&thread, &attr, run, s);
    pthread_attr_destroy(&attr);
    if (rc != 0) {
        s->users = 1;
        session->stream = NULL;
        release(s);
        return -1;
    }
    return 0;
}

bool stream_pending(struct session *session)
{
    struct stream *s = session->stream;
    pthread_mutex_lock(&s->lock);
    bool pending = s->count || s->ended;
    pthread_mutex_unlock(&s->lock);
    return pending;
}

int stream_writable(struct session *session)
{
    struct stream *s = session->stream;
    int rc = 0;
    pthread_mutex_lock(&s->lock);
    if (s->count) {
        struct message *m = &s->queue[s->first];
        bool text = m->kind == MESSAGE_TEXT;
        m->bytes[LWS_PRE] = (unsigned char)m->kind;
        unsigned char *from = m->bytes + LWS_PRE + (text ? 1 : 0);
        size_t len = m->len + (text ? 0 : 1);
        rc = lws_write(session->wsi, from, len, text ? LWS_WRITE_TEXT : LWS_WRITE_BINARY) < (int)len ? -1 : 0;
        s->first = (s->first + 1) % QUEUE_MAX;
        s->count--;
    } else if (s->ended) {
        lws_close_reason(session->wsi, LWS_CLOSE_STATUS_NORMAL, NULL, 0);
        rc = -1;
    }
    bool more = s->count || s->ended;
    pthread_mutex_unlock(&s->lock);
    eventfd_write(s->wake_fd, 1);
    if (rc == 0 && more) {
        lws_callback_on_writable(session->wsi);
    }
    return rc;
}

/* A whole text message. Locked. */
static void take_text(struct stream *s, bool *opened)
{
    json_t *json = json_loadb(s->text, s->text_len, 0, NULL);
    s->text_len = 0;
    if (!*opened) {
        s->open = json ? json : json_object();
        *opened = true;
        return;
    }
    const json_t *size = json_object_get(json, "resize");
    if (size) {
        s->rows = (unsigned)MIN(MAX(obj_int(size, "rows"), (int64_t)0), (int64_t)65535);
        s->columns = (unsigned)MIN(MAX(obj_int(size, "columns"), (int64_t)0), (int64_t)65535);
    }
    snprintf(s->signal, sizeof(s->signal), "%s", obj_text(json, "signal"));
    s->eof |= obj_bool(json, "eof");
    json_decref(json);
}

bool stream_input(struct session *session, const void *bytes, size_t len)
{
    struct stream *s = session->stream;
    bool text = !lws_frame_is_binary(session->wsi);
    pthread_mutex_lock(&s->lock);
    if (text) {
        size_t n = MIN(len, TEXT_MAX - s->text_len);
        memcpy(s->text + s->text_len, bytes, n);
        s->text_len += n;
        if (lws_is_final_fragment(session->wsi)) {
            take_text(s, &session->opened);
        }
    } else {
        size_t n = MIN(len, IN_MAX - s->in_len);
        memcpy(s->in + s->in_len, bytes, n);
        s->in_len += n;
    }
    bool room = IN_MAX - s->in_len >= IN_MAX / 2;
    pthread_mutex_unlock(&s->lock);
    eventfd_write(s->wake_fd, 1);
    return room;
}

bool stream_wants_input(struct session *session)
{
    struct stream *s = session->stream;
    pthread_mutex_lock(&s->lock);
    bool room = IN_MAX - s->in_len >= IN_MAX / 2;
    pthread_mutex_unlock(&s->lock);
    return room;
}

void stream_close(struct session *session)
{
    struct stream *s = session->stream;
    session->stream = NULL;
    pthread_mutex_lock(&s->lock);
    s->closed = true;
    pthread_mutex_unlock(&s->lock);
    eventfd_write(s->wake_fd, 1);
    release(s);
}
