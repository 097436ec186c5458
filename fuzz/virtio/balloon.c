/* The balloon: see driver.h. */
#include "dev/virtio/balloon.h"
#include "fuzz/virtio/driver.h"

struct vdev *fuzz_make_device(struct mem *mem)
{
    return vbal_new(mem, NULL);
}

void fuzz_host_step(struct vdev *dev, uint8_t choice)
{
    vbal_ask_stats(dev);
    if (choice & 1) {
        (void)vbal_trim(dev);
    } else {
        vbal_set_target(dev, (uint64_t)choice << 12);
    }
}
