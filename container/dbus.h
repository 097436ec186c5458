/*
 * As much of D-Bus as asking systemd for a scope takes (D-Bus specification 0.42): one connection, calls that
 * wait for their reply, one kind of signal. Written out rather than linked, as the libraries don't go into a
 * static program of this size.
 *
 * Limits: messages of DBUS_MESSAGE_MAX bytes, DBUS_WAIT_MS for an answer.
 */
#ifndef FONDA_CONTAINER_DBUS_H
#define FONDA_CONTAINER_DBUS_H

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define DBUS_MESSAGE_MAX 65536u
#define DBUS_WAIT_MS     10000

/* A message's body being written, or read. Values are aligned as the specification says, from the body's
 * start. */
struct dbus_body {
    uint8_t bytes[DBUS_MESSAGE_MAX];
    size_t size;
    size_t at;   /* for reading */
    bool failed; /* too long, or read beyond the end */
};

void dbus_put_u32(struct dbus_body *b, uint32_t v);
void dbus_put_u64(struct dbus_body *b, uint64_t v);
void dbus_put_string(struct dbus_body *b, const char *text); /* also object paths */
void dbus_put_signature(struct dbus_body *b, const char *text);
size_t dbus_put_array(struct dbus_body *b, size_t alignment); /* begins one; takes what the end takes */
void dbus_end_array(struct dbus_body *b, size_t begin, size_t alignment);
void dbus_put_struct(struct dbus_body *b); /* alignment of a struct */
uint32_t dbus_get_u32(struct dbus_body *b);
const char *dbus_get_string(struct dbus_body *b); /* "" when there is none */

struct dbus {
    int fd;
    uint32_t serial;
    bool peer;           /* systemd itself is at the other end, no bus in between */
    struct dbus_body in; /* body of the message that came last */
};

/* To the service manager of the machine, or of the user. -ENOENT: there is none. */
int dbus_open(struct dbus *bus, bool of_user, struct err *err);
void dbus_close(struct dbus *bus);

/* Calls a method of org.freedesktop.systemd1.Manager; the reply's body is bus->in. */
int dbus_call_manager(struct dbus *bus, const char *member, const char *signature,
                      const struct dbus_body *body, struct err *err);
int dbus_subscribe(struct dbus *bus, struct err *err); /* to the manager's signals */
/* Waits for a signal of that name; its body is bus->in. */
int dbus_wait_signal(struct dbus *bus, const char *member, struct err *err);

#endif
