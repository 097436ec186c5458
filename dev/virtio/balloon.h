/*
 * virtio-balloon, the memory balloon: virtio 1.2 section 5.5. Pages that the guest gives up, and free pages
 * that it reports, go back to the host at once.
 *
 * Threads: main loop.
 */
#ifndef FONDA_DEV_VIRTIO_BALLOON_H
#define FONDA_DEV_VIRTIO_BALLOON_H

#include "dev/virtio/virtio.h"

#define VBAL_STATS     10u /* tags of 5.5.6.4 */
#define VBAL_STAT_FREE 4u  /* bytes that nothing uses */

struct vbal_info {
    uint64_t target_pages, actual_pages; /* of 4 KiB: wanted of and given up by the guest */
    uint64_t given_bytes;                /* counter: what the balloon gave to the host */
    uint64_t reported_bytes;             /* the same by free page reporting */
    uint64_t hinted_bytes;               /* the same by free page hinting */
    uint64_t stats[VBAL_STATS];          /* by tag, UINT64_MAX: not told */
};

struct vdev *vbal_new(struct mem *mem, struct err *err); /* NULL: see err */

/* How many bytes the guest is to give up. */
void vbal_set_target(struct vdev *dev, uint64_t bytes);
/* Asks for new statistics; they come later. */
void vbal_ask_stats(struct vdev *dev);
/* Asks for all free pages once, for guests that don't report them by themselves. Returns false when this
 * guest knows no hinting, or a round is under way. */
bool vbal_trim(struct vdev *dev);
/* Whether the guest reports free pages by itself. */
bool vbal_reports(const struct vdev *dev);
void vbal_get_info(const struct vdev *dev, struct vbal_info *ret);

#endif
