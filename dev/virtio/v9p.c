/* See v9p.h. One queue: a chain holds a request, then room for the answer. */
#include "dev/virtio/v9p.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/state.h"

#include "dev/virtio/p9.h"

#define F_MOUNT_TAG  BIT64(0)
#define ROUND_CHAINS 16u

struct v9p_config {
    uint16_t tag_len;
    char tag[V9P_TAG_MAX];
};

struct v9p {
    struct vdev dev;
    struct v9p_config space;
    struct p9 *p9;
    struct vq_chain chain;
    uint8_t in[P9_MESSAGE_MAX], out[P9_MESSAGE_MAX];
};

static void v9p_kick(struct vdev *dev, unsigned queue)
{
    struct v9p *v9p = CONTAINER_OF(dev, struct v9p, dev);
    struct vq_chain *chain = &v9p->chain;
    for (unsigned n = 0; n < ROUND_CHAINS && vdev_pop(dev, queue, chain); n++) {
        uint64_t len = viov_read(chain->segs, chain->out_count, 0, v9p->in, sizeof(v9p->in));
        uint32_t room = (uint32_t)MIN(chain->in_bytes, sizeof(v9p->out));
        uint32_t answer = p9_handle(v9p->p9, v9p->in, (uint32_t)len, v9p->out, room);
        if (answer == 0) {
            vdev_fail(dev, "a message that is none, or has no room for its answer");
            return;
        }
        viov_write(vq_in(chain), chain->in_count, 0, v9p->out, answer);
        vq_push(&dev->queues[queue], chain, answer);
    }
    vdev_signal(dev, queue);
    if (vq_enable_notify(&dev->queues[queue])) {
        vdev_again(dev, queue);
    }
}

static void v9p_stop(struct vdev *dev)
{
    p9_reset(CONTAINER_OF(dev, struct v9p, dev)->p9);
}

static void v9p_free(struct vdev *dev)
{
    struct v9p *v9p = CONTAINER_OF(dev, struct v9p, dev);
    p9_free(v9p->p9);
    free(v9p);
}

/* Open files are the host's, and can't go along. */
static void v9p_state(struct vdev *dev, struct state *s)
{
    const struct v9p *v9p = CONTAINER_OF(dev, const struct v9p, dev);
    if (!state_loading(s) && p9_fids(v9p->p9) > 0) {
        state_fail(s, -EBUSY, "the guest has mounted the shared directory '%.*s': unmount it there first",
                   (int)v9p->space.tag_len, v9p->space.tag);
    }
}

static const struct vdev_ops v9p_ops = {
    .name = "virtio-9p",
    .id = VIRTIO_ID_9P,
    .class_code = 0x018000,
    .stop = v9p_stop,
    .kick = v9p_kick,
    .free = v9p_free,
    .state = v9p_state,
};

struct vdev *v9p_new(struct mem *mem, const char *dir, const char *tag, bool read_only, struct err *err)
{
    struct v9p *v9p = calloc(1, sizeof(*v9p));
    size_t len = strlen(tag);
    if (!v9p || len == 0 || len > V9P_TAG_MAX) {
        err_set(err, v9p ? -EINVAL : -ENOMEM, v9p ? "'%s' has to have 1 to 36 characters" : "out of memory",
                tag);
        free(v9p);
        return NULL;
    }
    v9p->p9 = p9_new(dir, read_only, err);
    if (!v9p->p9) {
        free(v9p);
        return NULL;
    }
    v9p->space.tag_len = (uint16_t)len;
    /* NOLINTNEXTLINE(bugprone-not-null-terminated-result): the field has a length of its own beside it */
    memcpy(v9p->space.tag, tag, len);
    vdev_init(&v9p->dev, &v9p_ops, mem, 1, F_MOUNT_TAG, &v9p->space, (unsigned)(2 + len));
    return &v9p->dev;
}
