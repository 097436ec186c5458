/* The queue itself, by the simplest device there is: see driver.h. */
#include "dev/virtio/rng.h"
#include "fuzz/virtio/driver.h"

struct vdev *fuzz_make_device(struct mem *mem)
{
    return vrng_new(mem, NULL);
}

void fuzz_host_step(struct vdev *dev, uint8_t choice)
{
}
