/*
 * Fuzzes one virtio device: the input is what a driver does, well-formed or not (driver.c). Each target makes
 * its device here.
 */
#ifndef FONDA_FUZZ_VIRTIO_DRIVER_H
#define FONDA_FUZZ_VIRTIO_DRIVER_H

#include "dev/virtio/virtio.h"

struct vdev *fuzz_make_device(struct mem *mem);
/* What the host's side does between two steps of the driver: completes requests, sends something. */
void fuzz_host_step(struct vdev *dev, uint8_t choice);

#endif
