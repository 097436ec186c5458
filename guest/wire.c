/* See wire.h. */
#include "guest/wire.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/util.h"

#define FINISH_MS 2000

void wire_init(struct wire *wire, int fd)
{
    *wire = (struct wire){.fd = fd};
    (void)fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
}

void wire_done(struct wire *wire)
{
    if (wire->fd >= 0) {
        close(wire->fd);
    }
    free(wire->out);
    wire->fd = -1;
    wire->out = NULL;
    wire->out_size = 0;
}

/* ---- sending ---- */

bool wire_room(const struct wire *wire)
{
    return wire->out_size + WIRE_HEAD + WIRE_DATA_MAX <= WIRE_OUT_MAX;
}

int wire_flush(struct wire *wire)
{
    size_t sent = 0;
    int rc = 0;
    while (sent < wire->out_size) {
        ssize_t n = send(wire->fd, wire->out + sent, wire->out_size - sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            rc = errno == EAGAIN ? 0 : -EPIPE;
            break;
        }
        sent += (size_t)n;
    }
    if (sent) {
        memmove(wire->out, wire->out + sent, wire->out_size - sent);
        wire->out_size -= sent;
    }
    return rc;
}

int wire_put(struct wire *wire, enum wire_kind kind, const void *data, size_t size)
{
    if (size > WIRE_DATA_MAX) {
        return -EMSGSIZE;
    }
    if (!wire->out && !(wire->out = malloc(WIRE_OUT_MAX))) {
        return -ENOBUFS;
    }
    if (wire->out_size + WIRE_HEAD + size > WIRE_OUT_MAX) {
        return -ENOBUFS;
    }
    uint8_t *head = wire->out + wire->out_size;
    memset(head, 0, WIRE_HEAD);
    head[0] = (uint8_t)kind;
    for (unsigned i = 0; i < 4; i++) {
        head[4 + i] = (uint8_t)(size >> (8 * i));
    }
    if (size) {
        memcpy(head + WIRE_HEAD, data, size);
    }
    wire->out_size += WIRE_HEAD + size;
    return wire_flush(wire);
}

static int wait_for(const struct wire *wire, short events, int timeout_ms)
{
    struct pollfd poll_fd = {.fd = wire->fd, .events = events};
    int rc;
    do {
        rc = poll(&poll_fd, 1, timeout_ms);
    } while (rc < 0 && errno == EINTR);
    return rc > 0 ? 0 : rc == 0 ? -ETIMEDOUT : -EPIPE;
}

int wire_drain(struct wire *wire)
{
    int rc = 0;
    while (rc == 0 && wire->out_size) {
        rc = wait_for(wire, POLLOUT, -1);
        rc = rc < 0 ? rc : wire_flush(wire);
    }
    return rc;
}

void wire_fail(struct wire *wire, int status, const char *text)
{
    char data[1024];
    data[0] = (char)status;
    int n = snprintf(data + 1, sizeof(data) - 1, "%s", text);
    (void)wire_put(wire, WIRE_FAILED, data, 1 + MIN((size_t)n, sizeof(data) - 2));
    (void)wire_drain(wire);
}

void wire_finish(struct wire *wire)
{
    uint8_t dropped[4096];
    (void)wire_drain(wire);
    (void)shutdown(wire->fd, SHUT_WR);
    while (wait_for(wire, POLLIN, FINISH_MS) == 0) {
        ssize_t n = recv(wire->fd, dropped, sizeof(dropped), 0);
        if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) {
            break;
        }
    }
    wire_done(wire);
}

/* ---- receiving ---- */

int wire_fill(struct wire *wire)
{
    if (wire->have == sizeof(wire->in)) {
        return 0;
    }
    ssize_t n = recv(wire->fd, wire->in + wire->have, sizeof(wire->in) - wire->have, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
        return 0;
    }
    if (n <= 0) {
        wire->ended = true;
        return -EPIPE;
    }
    wire->have += (size_t)n;
    return 0;
}

static bool known(unsigned kind, bool from_guest)
{
    return from_guest ? kind >= WIRE_READY && kind <= WIRE_FAILED : kind >= WIRE_REQUEST && kind <= WIRE_SIZE;
}

int wire_next(const struct wire *wire, bool from_guest, struct wire_frame *ret_frame)
{
    if (wire->have < WIRE_HEAD) {
        return 0;
    }
    uint32_t size = 0;
    for (unsigned i = 0; i < 4; i++) {
        size |= (uint32_t)wire->in[4 + i] << (8 * i);
    }
    if (!known(wire->in[0], from_guest) || wire->in[1] || wire->in[2] || wire->in[3] ||
        size > WIRE_DATA_MAX) {
        return -EPROTO;
    }
    if (wire->have < WIRE_HEAD + size) {
        return 0;
    }
    *ret_frame = (struct wire_frame){(enum wire_kind)wire->in[0], size, wire->in + WIRE_HEAD};
    return 1;
}

void wire_take(struct wire *wire, const struct wire_frame *frame)
{
    size_t used = WIRE_HEAD + frame->size;
    memmove(wire->in, wire->in + used, wire->have - used);
    wire->have -= used;
}

int wire_wait(struct wire *wire, bool from_guest, int timeout_ms, struct wire_frame *ret_frame)
{
    for (;;) {
        int rc = wire_next(wire, from_guest, ret_frame);
        if (rc != 0) {
            return rc;
        }
        rc = wait_for(wire, POLLIN, timeout_ms);
        rc = rc < 0 ? rc : wire_fill(wire);
        if (rc < 0) {
            return rc;
        }
    }
}

/* ---- requests ---- */

void wire_add(struct wire_texts *texts, const char *name, const char *value)
{
    size_t name_size = strlen(name), value_size = strlen(value), size = name_size + value_size + 2;
    if (texts->failed || texts->size + size > WIRE_REQUEST_MAX) {
        texts->failed = true;
        return;
    }
    if (texts->size + size > texts->room) {
        size_t room = MAX(2 * texts->room, texts->size + size + 1024);
        char *more = realloc(texts->bytes, room);
        if (!more) {
            texts->failed = true;
            return;
        }
        texts->bytes = more;
        texts->room = room;
    }
    char *at = texts->bytes + texts->size;
    memcpy(at, name, name_size);
    at[name_size] = '=';
    memcpy(at + name_size + 1, value, value_size + 1);
    texts->size += size;
}

void wire_add_number(struct wire_texts *texts, const char *name, uint64_t value)
{
    char text[24];
    snprintf(text, sizeof(text), "%llu", (unsigned long long)value);
    wire_add(texts, name, text);
}

void wire_texts_done(struct wire_texts *texts)
{
    free(texts->bytes);
    *texts = (struct wire_texts){0};
}

int wire_send_request(struct wire *wire, const struct wire_texts *texts)
{
    int rc = texts->failed ? -E2BIG : 0;
    for (size_t at = 0; rc == 0 && at < texts->size;) {
        size_t n = MIN(texts->size - at, (size_t)WIRE_DATA_MAX);
        rc = wire_put(wire, WIRE_REQUEST, texts->bytes + at, n);
        rc = rc < 0 ? rc : wire_drain(wire);
        at += n;
    }
    rc = rc < 0 ? rc : wire_put(wire, WIRE_GO, NULL, 0);
    return rc < 0 ? rc : wire_drain(wire);
}

const char *wire_get(const struct wire_texts *texts, const char *name, size_t *at)
{
    size_t len = strlen(name);
    while (*at < texts->size) {
        const char *text = texts->bytes + *at;
        *at += strlen(text) + 1;
        if (strncmp(text, name, len) == 0 && text[len] == '=') {
            return text + len + 1;
        }
    }
    return NULL;
}

const char *wire_one(const struct wire_texts *texts, const char *name)
{
    size_t at = 0;
    return wire_get(texts, name, &at);
}

uint64_t wire_number(const struct wire_texts *texts, const char *name)
{
    const char *text = wire_one(texts, name);
    return text ? strtoull(text, NULL, 10) : 0;
}

bool wire_texts_good(const struct wire_texts *texts)
{
    unsigned count = 0;
    for (size_t i = 0; i < texts->size; i++) {
        count += texts->bytes[i] == '\0';
    }
    return count <= WIRE_TEXTS_MAX && (texts->size == 0 || texts->bytes[texts->size - 1] == '\0');
}
