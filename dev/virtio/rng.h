/*
 * virtio-rng, the entropy device: virtio 1.2 section 5.4. The host's getrandom(2) is the source.
 */
#ifndef FONDA_DEV_VIRTIO_RNG_H
#define FONDA_DEV_VIRTIO_RNG_H

#include "dev/virtio/virtio.h"

struct vdev *vrng_new(struct mem *mem, struct err *err); /* NULL: see err */

#endif
