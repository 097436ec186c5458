#include "control/client.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>

#include "base/util.h"

#define EVENTS_KEPT 1024u

struct control_client {
    int fd;
    json_int_t serial;
    char code[64];
    json_t *events; /* an array, the oldest first */
    char *in;
    size_t in_used, in_size;
};

int control_connect(const char *path, struct control_client **ret_client, struct err *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t len = strlen(path);
    if (len == 0 || len >= sizeof(address.sun_path)) {
        return err_set(err, -ENAMETOOLONG, "'%s' is no path for a socket: 1 to 107 bytes", path);
    }
    memcpy(address.sun_path, path, len);
    struct control_client *client = calloc(1, sizeof(*client));
    if (!client) {
        return err_sys(err, -ENOMEM, "cannot connect");
    }
    client->events = json_array();
    client->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (client->fd < 0 || connect(client->fd, (const struct sockaddr *)&address, sizeof(address)) < 0) {
        int rc = -errno;
        control_client_free(client);
        return err_sys(err, rc, "cannot connect to '%s'", path);
    }
    *ret_client = client;
    return 0;
}

void control_client_free(struct control_client *client)
{
    if (client) {
        if (client->fd >= 0) {
            close(client->fd);
        }
        json_decref(client->events);
        free(client->in);
        free(client);
    }
}

int control_client_fd(const struct control_client *client)
{
    return client->fd;
}

const char *control_client_code(const struct control_client *client)
{
    return client->code;
}

static int64_t now_ms(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/* deadline_ms: of CLOCK_MONOTONIC; negative: none. */
static int wait_for(const struct control_client *client, short events, int64_t deadline_ms, struct err *err)
{
    for (;;) {
        struct pollfd poll_fd = {client->fd, events, 0};
        int64_t left = deadline_ms < 0 ? -1 : MAX(deadline_ms - now_ms(), 0);
        int n = poll(&poll_fd, 1, (int)left);
        if (n > 0) {
            return 0;
        }
        if (n == 0) {
            return err_set(err, -ETIMEDOUT, "no answer in time");
        }
        if (errno != EINTR) {
            return err_sys(err, -errno, "cannot wait for an answer");
        }
    }
}

/* The descriptors go with the first bytes (unix(7), SCM_RIGHTS). */
static ssize_t send_some(const struct control_client *client, const char *bytes, size_t len, const int *fds,
                         unsigned count)
{
    union {
        struct cmsghdr head;
        char bytes[CMSG_SPACE(sizeof(int) * CONTROL_CLIENT_FDS_MAX)];
    } ancillary = {0};
    struct iovec iov = {(char *)(uintptr_t)bytes, len};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};
    if (count > 0) {
        ancillary.head.cmsg_level = SOL_SOCKET;
        ancillary.head.cmsg_type = SCM_RIGHTS;
        ancillary.head.cmsg_len = CMSG_LEN(sizeof(int) * count);
        memcpy(CMSG_DATA(&ancillary.head), fds, sizeof(int) * count);
        message.msg_control = &ancillary;
        message.msg_controllen = CMSG_SPACE(sizeof(int) * count);
    }
    return sendmsg(client->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static int send_all(const struct control_client *client, const char *bytes, size_t len, const int *fds,
                    unsigned count, int64_t deadline_ms, struct err *err)
{
    while (len > 0) {
        ssize_t n = send_some(client, bytes, len, fds, count);
        if (n > 0) {
            count = 0;
            bytes += n;
            len -= (size_t)n;
        } else if (errno == EAGAIN) {
            int rc = wait_for(client, POLLOUT, deadline_ms, err);
            if (rc < 0) {
                return rc;
            }
        } else if (errno != EINTR) {
            return err_set(err, -ECONNRESET, "the other side has closed the connection");
        }
    }
    return 0;
}

static int read_more(struct control_client *client, int64_t deadline_ms, struct err *err)
{
    int rc = wait_for(client, POLLIN, deadline_ms, err);
    if (rc < 0) {
        return rc;
    }
    if (client->in_used == client->in_size) {
        size_t size = MAX(2 * client->in_size, 65536u);
        char *in = size <= CONTROL_REPLY_MAX ? realloc(client->in, size) : NULL;
        if (!in) {
            return err_set(err, -EPROTO, "the answer is longer than %u bytes", CONTROL_REPLY_MAX / 2);
        }
        client->in = in;
        client->in_size = size;
    }
    ssize_t n = recv(client->fd, client->in + client->in_used, client->in_size - client->in_used, 0);
    if (n <= 0) {
        return n < 0 && errno == EINTR
                   ? 0
                   : err_set(err, -ECONNRESET, "the other side has closed the connection");
    }
    client->in_used += (size_t)n;
    return 0;
}

static int read_message(struct control_client *client, int64_t deadline_ms, json_t **ret, struct err *err)
{
    char *end;
    while (!(end = client->in_used ? memchr(client->in, '\n', client->in_used) : NULL)) {
        int rc = read_more(client, deadline_ms, err);
        if (rc < 0) {
            return rc;
        }
    }
    size_t len = (size_t)(end - client->in) + 1;
    json_error_t error;
    json_t *message = json_loadb(client->in, len, 0, &error);
    client->in_used -= len;
    memmove(client->in, client->in + len, client->in_used);
    if (!message) {
        return err_set(err, -EPROTO, "the answer is no JSON: %s", error.text);
    }
    *ret = message;
    return 0;
}

/* What the server says is wrong, as one sentence. */
static int remote_error(struct control_client *client, const json_t *error, struct err *err)
{
    const char *code = json_string_value(json_object_get(error, "code"));
    const char *text = json_string_value(json_object_get(error, "message"));
    const char *hint = json_string_value(json_object_get(error, "hint"));
    snprintf(client->code, sizeof(client->code), "%s", code ? code : "failed");
    return err_set(err, -EREMOTEIO, "%s%s%s", text ? text : "failed without a message", hint ? ": " : "",
                   hint ? hint : "");
}

static void keep_event(struct control_client *client, json_t *event)
{
    if (json_array_size(client->events) >= EVENTS_KEPT) {
        json_array_remove(client->events, 0);
    }
    json_array_append_new(client->events, event);
}

static int wait_reply(struct control_client *client, json_int_t id, int64_t deadline_ms, json_t **ret_result,
                      struct err *err)
{
    for (;;) {
        json_t *message;
        int rc = read_message(client, deadline_ms, &message, err);
        if (rc < 0) {
            return rc;
        }
        if (json_object_get(message, "event")) {
            keep_event(client, message);
            continue;
        }
        const json_t *error = json_object_get(message, "error");
        const json_t *got = json_object_get(message, "id");
        bool ours = json_integer_value(got) == id || (error && json_is_null(got));
        if (ours && error) {
            rc = remote_error(client, error, err);
        } else if (ours && ret_result) {
            *ret_result = json_incref(json_object_get(message, "result"));
        }
        json_decref(message);
        if (ours) {
            return rc;
        }
    }
}

int control_client_call(struct control_client *client, const char *method, json_t *params, int timeout_ms,
                        json_t **ret_result, struct err *err)
{
    return control_client_call_fds(client, method, params, NULL, 0, timeout_ms, ret_result, err);
}

int control_client_call_fds(struct control_client *client, const char *method, json_t *params, const int *fds,
                            unsigned count, int timeout_ms, json_t **ret_result, struct err *err)
{
    int64_t deadline_ms = timeout_ms < 0 ? -1 : now_ms() + timeout_ms;
    json_t *request =
        json_pack("{s:I, s:s, s:o*}", "id", ++client->serial, "method", method, "params", params);
    auto_free char *text = request ? json_dumps(request, JSON_COMPACT) : NULL;
    json_decref(request);
    client->code[0] = '\0';
    if (!text) {
        return err_set(err, -EINVAL, "the request is no JSON: is some text no UTF-8?");
    }
    size_t len = strlen(text);
    text[len] = '\n'; /* in the terminator's place: sent by length */
    if (count > CONTROL_CLIENT_FDS_MAX) {
        return err_set(err, -E2BIG, "more than %u open files can't be sent", CONTROL_CLIENT_FDS_MAX);
    }
    int rc = send_all(client, text, len + 1, fds, count, deadline_ms, err);
    return rc < 0 ? rc : wait_reply(client, client->serial, deadline_ms, ret_result, err);
}

int control_client_job(struct control_client *client, json_t *reply, int timeout_ms, json_t **ret_result,
                       struct err *err)
{
    const char *name = json_string_value(json_object_get(reply, "job"));
    json_t *status = NULL;
    if (!name) {
        return err_set(err, -EPROTO, "the answer names no job");
    }
    int rc =
        control_client_call(client, "job_wait", json_pack("{s:s}", "job", name), timeout_ms, &status, err);
    if (rc < 0) {
        return rc;
    }
    const json_t *error = json_object_get(status, "error");
    if (error) {
        rc = remote_error(client, error, err);
    } else if (ret_result) {
        *ret_result = json_incref(json_object_get(status, "result"));
    }
    json_decref(status);
    return rc;
}

int control_client_event(struct control_client *client, int timeout_ms, json_t **ret_event, struct err *err)
{
    int64_t deadline_ms = timeout_ms < 0 ? -1 : now_ms() + timeout_ms;
    while (json_array_size(client->events) == 0) {
        json_t *message;
        int rc = read_message(client, deadline_ms, &message, err);
        if (rc < 0) {
            return rc;
        }
        if (json_object_get(message, "event")) {
            keep_event(client, message);
        } else {
            json_decref(message);
        }
    }
    *ret_event = json_incref(json_array_get(client->events, 0));
    json_array_remove(client->events, 0);
    return 0;
}

size_t control_client_take(struct control_client *client, void *buf, size_t size)
{
    size_t len = MIN(size, client->in_used);
    if (len > 0) {
        memcpy(buf, client->in, len);
        client->in_used -= len;
        memmove(client->in, client->in + len, client->in_used);
    }
    return len;
}
