/*
 * virtio-console with several ports: virtio 1.2 section 5.3. Port 0 is a console (hvc0), the others are named
 * channels (/dev/virtio-ports/NAME).
 */
#ifndef FONDA_DEV_VIRTIO_CONSOLE_H
#define FONDA_DEV_VIRTIO_CONSOLE_H

#include <stddef.h>

#include "dev/virtio/virtio.h"

#define VCON_PORTS_MAX 16u
#define VCON_NAME_MAX  64u

struct vcon_port {
    const char *name; /* NULL: a console; else up to VCON_NAME_MAX bytes, kept by reference */
    /* Main loop. Takes bytes from the guest; returns how many. After less than all, call vcon_room. */
    size_t (*sink)(void *opaque, const uint8_t *bytes, size_t len);
    void (*room)(void *opaque); /* the guest may take input again; may be NULL */
    void *opaque;
    bool closed; /* nobody on the host has it open yet: see vcon_set_open */
};

struct vdev *vcon_new(struct mem *mem, const struct vcon_port *ports, unsigned count, struct err *err);

/* Main loop. Bytes for the guest; returns how many it took. */
size_t vcon_input(struct vdev *dev, unsigned port, const uint8_t *bytes, size_t len);
/* The sink takes bytes again. */
void vcon_room(struct vdev *dev, unsigned port);
/* Main loop. Whether a program on the host has the port open. The guest is told (PORT_OPEN): Linux lets
 * nobody write to a named port that is closed, and reads end. A sink is called all the same. */
void vcon_set_open(struct vdev *dev, unsigned port, bool open);
/* The terminal's size changed. */
void vcon_resize(struct vdev *dev, uint16_t columns, uint16_t rows);

#endif
