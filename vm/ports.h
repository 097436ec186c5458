/*
 * The virtio console of a machine: which port goes where on the host (--console, --port).
 *
 * A port's other end is the terminal (host.c has it), a file, or a unix socket that serves one program at a
 * time; with a control socket, its clients can attach to each port too. The guest sees a port of a socket
 * open exactly while a program is connected, or a client attached; not both at a time.
 *
 * Threads: main loop, but for what terminal->sink says.
 */
#ifndef FONDA_VM_PORTS_H
#define FONDA_VM_PORTS_H

#include <uv.h>

#include "base/err.h"
#include "vm/config.h"

struct channel;
struct mem;
struct ports;
struct vdev;

/* The terminal, as a console's port sees it. */
struct ports_terminal {
    size_t (*sink)(void *opaque, const uint8_t *bytes,
                   size_t len); /* takes some; the rest after ports_terminal_room */
    void (*room)(void *opaque); /* the guest takes input again */
    void *opaque;
};

/* Makes the device, which belongs to the caller, and the ports' other ends, which outlive it. terminal is
 * copied. Without
 * --console and --port *ret_ports is NULL. Errors: -EINVAL, -ENOMEM and those of files and sockets. */
int ports_new(const struct vm_config *config, uv_loop_t *loop, struct mem *mem,
              const struct ports_terminal *terminal, struct ports **ret_ports, struct vdev **ret_dev,
              struct err *err);

/* Starts what writes to files: before the guest runs. NULL is accepted. Errors: those of output_start. */
int ports_start(struct ports *ports, struct err *err);

/* What was typed, for the console on the terminal; returns how many bytes it took. */
size_t ports_terminal_input(struct ports *ports, const uint8_t *bytes, size_t len);
void ports_terminal_room(struct ports *ports);
void ports_terminal_resize(struct ports *ports, uint16_t columns, uint16_t rows);

/* The port that clients of the control socket know by that name ("console" is the console's), as a channel.
 * NULL: there is none. Errors (-EBUSY): a program has its socket. */
struct channel *ports_channel(struct ports *ports, const char *name, struct err *err);
/* The names, one after another: index counts up to NULL. NULL ports are accepted. */
const char *ports_name(const struct ports *ports, unsigned index);
/* Ends what is attached: before the control socket goes. NULL is accepted. */
void ports_close_channels(struct ports *ports);

/* When the device is gone. NULL is accepted. The loop then has to run until it has no handles. */
void ports_free(struct ports *ports);

#endif
