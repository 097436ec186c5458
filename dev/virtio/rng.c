/* See rng.h. */
#include "dev/virtio/rng.h"

#include <errno.h>
#include <sys/random.h>

#define ROUND_CHAINS  64u        /* then the main loop gets a turn */
#define REQUEST_BYTES (64 * KiB) /* answered at once; a driver may get less than it asked for */

struct vrng {
    struct vdev dev;
    struct vq_chain chain;
};

/* Returns the bytes filled. */
static uint32_t fill(const struct vq_chain *chain)
{
    uint64_t left = REQUEST_BYTES, done = 0;
    for (unsigned i = 0; i < chain->in_count && left; i++) {
        const struct iovec *seg = &chain->segs[chain->out_count + i];
        uint64_t bytes = MIN(seg->iov_len, left);
        for (uint64_t at = 0; at < bytes;) {
            ssize_t n = getrandom((uint8_t *)seg->iov_base + at, bytes - at, 0);
            if (n < 0 && errno != EINTR) {
                return (uint32_t)(done + at);
            }
            at += n > 0 ? (uint64_t)n : 0;
        }
        done += bytes;
        left -= bytes;
    }
    return (uint32_t)done;
}

static void rng_kick(struct vdev *dev, unsigned queue)
{
    struct vrng *rng = CONTAINER_OF(dev, struct vrng, dev);
    unsigned n = 0;
    while (n < ROUND_CHAINS && vdev_pop(dev, queue, &rng->chain)) {
        vq_push(&dev->queues[queue], &rng->chain, fill(&rng->chain));
        n++;
    }
    vdev_signal(dev, queue);
    if (vq_enable_notify(&dev->queues[queue])) {
        vdev_again(dev, queue);
    }
}

static void rng_free(struct vdev *dev)
{
    free(CONTAINER_OF(dev, struct vrng, dev));
}

static const struct vdev_ops rng_ops = {
    .name = "virtio-rng", .id = VIRTIO_ID_RNG, .class_code = 0xff0000, .kick = rng_kick, .free = rng_free};

struct vdev *vrng_new(struct mem *mem, struct err *err)
{
    struct vrng *rng = calloc(1, sizeof(*rng));
    if (!rng) {
        err_set(err, -ENOMEM, "out of memory");
        return NULL;
    }
    vdev_init(&rng->dev, &rng_ops, mem, 1, 0, NULL, 0);
    return &rng->dev;
}
