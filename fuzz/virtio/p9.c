/* The shared directory; a scratch one, which is left behind in the end: see driver.h. */
#include <stdlib.h>

#include "dev/virtio/v9p.h"
#include "fuzz/virtio/driver.h"

struct vdev *fuzz_make_device(struct mem *mem)
{
    static char dir[] = "/tmp/fonda-fuzz-9p-XXXXXX";
    return mkdtemp(dir) ? v9p_new(mem, dir, "fuzz", false, NULL) : NULL;
}

void fuzz_host_step(struct vdev *dev, uint8_t choice)
{
}
