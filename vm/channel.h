/*
 * The serial port, or a port of the virtio console, as clients of the control socket see it: what the guest
 * writes goes to every attached stream, what they send goes to the guest. A new one first gets the last
 * CHANNEL_BYTES of output.
 *
 * Threads: channel_feed from any; the rest on the main loop.
 */
#ifndef FONDA_VM_CHANNEL_H
#define FONDA_VM_CHANNEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <uv.h>

#include "control/control.h"

#define CHANNEL_BYTES   65536u
#define CHANNEL_STREAMS 8u

struct channel;

struct channel_config {
    uv_loop_t *loop;
    const char *name; /* as clients have it; kept by reference */
    /* Takes bytes for the guest and returns how many it took; channel_room tells that it takes more. */
    size_t (*input)(void *opaque, const uint8_t *bytes, size_t len);
    /* The first client came, or the last one went. May be NULL. */
    void (*attended)(void *opaque, bool attended);
    void *opaque;
};

/* NULL: no memory. */
struct channel *channel_new(const struct channel_config *config);
/* Streams are closed; frees itself once the loop has run. NULL is accepted. */
void channel_free(struct channel *channel);
void channel_feed(struct channel *channel, const uint8_t *bytes, size_t len);
void channel_room(struct channel *channel);
/* Answers the call. */
void channel_attach(struct channel *channel, struct control_call *call);
bool channel_attended(const struct channel *channel);

#endif
