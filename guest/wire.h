/*
 * What the host and the init inside a machine say to each other over vsock: frames of a kind, a length and
 * bytes. One connection is one request: a program, a copy, numbers.
 *
 *     host                                   guest
 *     REQUEST... GO              ------->
 *                                <-------    READY (the first program alone: it is there, and waits for
 * "start")
 *                                <-------    STARTED, or FAILED text
 *     INPUT... INPUT(empty), SIZE ------>
 *                                <-------    OUTPUT..., ERRORS...
 *                                <-------    EXIT status, or FAILED text
 *
 * A request is a list of texts "name=value", each with a NUL behind it.
 *
 * Invariants
 *  1. The guest is hostile: the host takes every byte of it through wire_next(), which bounds the length of a
 *     frame, and knows the kinds that a guest may send.
 *  2. Nobody waits while writing: what can't be sent yet stays in `out`, and nobody adds to it beyond
 *     WIRE_OUT_MAX (wire_room).
 *
 * Neighbours: init/ (the guest's end), host/ (the other).
 */
#ifndef FONDA_GUEST_WIRE_H
#define FONDA_GUEST_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define WIRE_DATA_MAX    (32u << 10) /* bytes in one frame */
#define WIRE_HEAD        8u
#define WIRE_OUT_MAX     (256u << 10)
#define WIRE_REQUEST_MAX (2u << 20) /* bytes of a whole request */
#define WIRE_TEXTS_MAX   4096u      /* texts of a request */

#define WIRE_GUEST_PORT 1024u /* where the init listens */
#define WIRE_HOST_PORT  1u    /* where the host waits for its first word */

enum wire_kind {
    WIRE_REQUEST = 1,
    WIRE_GO,
    WIRE_INPUT,
    WIRE_SIZE, /* rows and columns, 16 bits each, little endian */
    WIRE_READY = 16,
    WIRE_STARTED,
    WIRE_OUTPUT,
    WIRE_ERRORS,
    WIRE_EXIT,   /* one byte: as a shell has it */
    WIRE_FAILED, /* one byte as in WIRE_EXIT, then a text */
};

struct wire {
    int fd; /* does not block; -1: gone */
    bool ended;
    uint8_t in[WIRE_HEAD + WIRE_DATA_MAX];
    size_t have;
    uint8_t *out;
    size_t out_size;
};

struct wire_frame {
    enum wire_kind kind;
    uint32_t size;
    const uint8_t *data; /* in the wire's buffer, until wire_take() */
};

/* fd is taken over, and made not to block. */
void wire_init(struct wire *wire, int fd);
void wire_done(struct wire *wire);
/* The same behind the last word: waits a moment until the other end has taken it and closed. Closing at once,
 * with bytes of the other end unread, would be a reset, which overtakes what was sent. */
void wire_finish(struct wire *wire);

/* Whether a frame of the largest size may be added. */
bool wire_room(const struct wire *wire);
/* Adds a frame and sends what can be sent. Errors: -EPIPE (the other end is gone), -ENOBUFS, -EMSGSIZE. */
int wire_put(struct wire *wire, enum wire_kind kind, const void *data, size_t size);
/* Sends what waits; call it when the descriptor is ready for writing. */
int wire_flush(struct wire *wire);
/* Waits until all is sent. */
int wire_drain(struct wire *wire);

/* WIRE_FAILED, and waits until it is sent. */
void wire_fail(struct wire *wire, int status, const char *text);

/* Reads what is there. 0, or -EPIPE at the end; `ended` is set. */
int wire_fill(struct wire *wire);
/* Looks at the next frame: 1 there is one, 0 more bytes are needed, -EPROTO it is none that this end may get.
 */
int wire_next(const struct wire *wire, bool from_guest, struct wire_frame *ret_frame);
/* Drops the frame that wire_next showed. */
void wire_take(struct wire *wire, const struct wire_frame *frame);
/* Blocks until there is a frame, at most timeout_ms (-1: for ever). 1, or -EPROTO, -EPIPE, -ETIMEDOUT. */
int wire_wait(struct wire *wire, bool from_guest, int timeout_ms, struct wire_frame *ret_frame);

/* ---- requests ---- */

struct wire_texts {
    char *bytes;
    size_t size, room;
    bool failed; /* no memory, or it got too large */
};
void wire_add(struct wire_texts *texts, const char *name, const char *value);
void wire_add_number(struct wire_texts *texts, const char *name, uint64_t value);
void wire_texts_done(struct wire_texts *texts);
/* Sends all of it, and GO; waits for room. */
int wire_send_request(struct wire *wire, const struct wire_texts *texts);
/* The value of the next text called name behind *at (0: from the start); NULL: none. */
const char *wire_get(const struct wire_texts *texts, const char *name, size_t *at);
const char *wire_one(const struct wire_texts *texts, const char *name); /* the first, or NULL */
uint64_t wire_number(const struct wire_texts *texts, const char *name); /* 0: none */
/* Whether every text ends inside of the bytes. For what the guest sends as OUTPUT of "stats" and "top". */
bool wire_texts_good(const struct wire_texts *texts);

#endif
