/*
 * The virtio console of a machine: which port goes where on the host (--console, --port).
 *
 * A port's other end is the terminal (host.c has it), a file, or a unix socket that serves one program at a
 * time. The guest sees a port of a socket open exactly while a program is connected.
 *
 * Threads: main loop, but for what terminal->sink says.
 */
#ifndef FONDA_VM_PORTS_H
#define FONDA_VM_PORTS_H

#include <uv.h>

#include "base/err.h"
#include "vm/config.h"

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

/* When the device is gone. NULL is accepted. The loop then has to run until it has no handles. */
void ports_free(struct ports *ports);

#endif
