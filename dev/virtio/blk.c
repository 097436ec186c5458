/*
 * See blk.h. Section numbers are those of virtio 1.2.
 *
 * Invariants
 *  1. A request from its submission until its done keeps its chain; `inflight` counts them. A reset does not
 *     complete before it is zero, as the backend writes to guest memory until then.
 *  2. Requests of a driver that was reset meanwhile are not pushed: `epoch` tells them.
 */
#include "dev/virtio/blk.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/state.h"

#define SECTOR 512u
/* 5.2.3 */
#define F_SEG_MAX      BIT64(2)
#define F_RO           BIT64(5)
#define F_BLK_SIZE     BIT64(6)
#define F_FLUSH        BIT64(9)
#define F_MQ           BIT64(12)
#define F_DISCARD      BIT64(13)
#define F_WRITE_ZEROES BIT64(14)
/* 5.2.6 */
#define T_IN           0u
#define T_OUT          1u
#define T_FLUSH        4u
#define T_GET_ID       8u
#define T_DISCARD      11u
#define T_WRITE_ZEROES 13u
#define S_OK           0
#define S_IOERR        1
#define S_UNSUPP       2

#define REQUEST_BYTES_MAX  (256 * MiB)
#define ZEROES_SECTORS_MAX (4 * GiB / SECTOR - 1) /* of one discard or write zeroes segment */
#define RANGE_SEGMENTS_MAX 1u

struct blk_config { /* 5.2.4 */
    uint64_t capacity;
    uint32_t size_max, seg_max;
    uint16_t cylinders;
    uint8_t heads, sectors;
    uint32_t blk_size;
    uint8_t physical_block_exp, alignment_offset;
    uint16_t min_io_size;
    uint32_t opt_io_size;
    uint8_t writeback, unused0;
    uint16_t num_queues;
    uint32_t max_discard_sectors, max_discard_seg, discard_sector_alignment;
    uint32_t max_write_zeroes_sectors, max_write_zeroes_seg;
    uint8_t write_zeroes_may_unmap, unused1[3];
} __attribute__((packed));
_Static_assert(sizeof(struct blk_config) == 60, "5.2.4");

struct blk_header { /* 5.2.6 */
    uint32_t type, reserved;
    uint64_t sector;
};

struct blk_range { /* 5.2.6: discard and write zeroes */
    uint64_t sector;
    uint32_t sectors, flags;
};

struct vblk;

struct vblk_request {
    struct vblk_io io;
    struct vblk *blk;
    unsigned queue;
    uint64_t epoch;
    uint8_t *status; /* the chain's last byte */
    struct vblk_request *next_free;
    struct iovec data[VQ_SIZE_MAX];
    struct vq_chain chain;
};

struct vblk {
    struct vdev dev;
    struct vblk_config config;
    struct blk_config space;
    char serial[VBLK_SERIAL_MAX];
    struct vblk_request *free_requests;
    unsigned allocated, inflight;
    uint64_t epoch;
    uint64_t starved; /* queues that wait for a free request */
    uint64_t reads, writes, errors;
};

/* --- requests --- */

static struct vblk_request *take_request(struct vblk *blk)
{
    struct vblk_request *request = blk->free_requests;
    if (request) {
        blk->free_requests = request->next_free;
    } else if (blk->allocated < VBLK_INFLIGHT_MAX) {
        request = malloc(sizeof(*request));
        blk->allocated += request != NULL;
    }
    return request;
}

static void give_request(struct vblk *blk, struct vblk_request *request)
{
    request->next_free = blk->free_requests;
    blk->free_requests = request;
}

/* Answers; the request is free again. */
static void finish(struct vblk_request *request, uint8_t status, uint32_t written)
{
    struct vblk *blk = request->blk;
    if (request->epoch == blk->epoch) {
        *request->status = status;
        mem_ram_written(blk->dev.mem, (uint64_t)(request->status - mem_ram_base(blk->dev.mem)), 1);
        vq_push(&blk->dev.queues[request->queue], &request->chain, written + 1);
        blk->errors += status != S_OK ? 1 : 0;
    }
    give_request(blk, request);
}

static void blk_kick(struct vdev *dev, unsigned queue);

static void on_done(struct vblk_io *io)
{
    struct vblk_request *request = CONTAINER_OF(io, struct vblk_request, io);
    struct vblk *blk = request->blk;
    unsigned queue = request->queue;
    bool current = request->epoch == blk->epoch;
    blk->inflight--;
    finish(request, io->result == 0 ? S_OK : S_IOERR,
           io->op == VBLK_READ && io->result == 0 ? (uint32_t)io->bytes : 0);
    if (current) {
        vdev_signal(&blk->dev, queue);
    }
    uint64_t starved = blk->starved;
    blk->starved = 0;
    for (unsigned i = 0; starved; i++, starved >>= 1) {
        if (starved & 1) {
            vdev_again(&blk->dev, i);
        }
    }
    if (blk->inflight == 0) {
        vdev_idle(&blk->dev);
    }
}

static void submit(struct vblk_request *request, enum vblk_op op, uint64_t offset, uint64_t bytes)
{
    struct vblk *blk = request->blk;
    request->io.op = op;
    request->io.offset = offset;
    request->io.bytes = bytes;
    request->io.iov = request->data;
    request->io.done = on_done;
    request->io.result = 0;
    blk->inflight++;
    blk->config.backend->ops->submit(blk->config.backend, &request->io);
}

static bool in_range(const struct vblk *blk, uint64_t sector, uint64_t bytes)
{
    uint64_t size = blk->config.backend->size_bytes, offset;
    return bytes % SECTOR == 0 && !__builtin_mul_overflow(sector, (uint64_t)SECTOR, &offset) &&
           offset <= size && bytes <= size - offset;
}

static void transfer(struct vblk_request *request, const struct blk_header *header, bool write)
{
    struct vblk *blk = request->blk;
    struct vq_chain *chain = &request->chain;
    uint64_t bytes = write ? chain->out_bytes - sizeof(*header) : chain->in_bytes - 1;
    if (write && blk->config.backend->read_only) {
        finish(request, S_IOERR, 0);
        return;
    }
    if (bytes == 0 || bytes > REQUEST_BYTES_MAX || !in_range(blk, header->sector, bytes)) {
        finish(request, S_IOERR, 0);
        return;
    }
    request->io.iov_count =
        write ? viov_slice(chain->segs, chain->out_count, sizeof(*header), bytes, request->data)
              : viov_slice(vq_in(chain), chain->in_count, 0, bytes, request->data);
    blk->writes += write ? 1 : 0;
    blk->reads += write ? 0 : 1;
    submit(request, write ? VBLK_WRITE : VBLK_READ, header->sector * SECTOR, bytes);
}

static void change_range(struct vblk_request *request, bool zeroes)
{
    struct vblk *blk = request->blk;
    struct blk_range range;
    uint64_t bytes = request->chain.out_bytes - sizeof(struct blk_header);
    uint64_t feature = zeroes ? F_WRITE_ZEROES : F_DISCARD;
    if (!vdev_has(&blk->dev, feature) || bytes != sizeof(range)) {
        finish(request, S_UNSUPP, 0);
        return;
    }
    viov_read(request->chain.segs, request->chain.out_count, sizeof(struct blk_header), &range,
              sizeof(range));
    if (range.flags & (zeroes ? ~1u : ~0u)) { /* 5.2.6.2: unknown flags, and unmap in a discard */
        finish(request, S_UNSUPP, 0);
        return;
    }
    if (blk->config.backend->read_only || range.sectors > ZEROES_SECTORS_MAX ||
        !in_range(blk, range.sector, (uint64_t)range.sectors * SECTOR)) {
        finish(request, S_IOERR, 0);
        return;
    }
    request->io.iov_count = 0;
    request->io.may_unmap = range.flags & 1;
    submit(request, zeroes ? VBLK_WRITE_ZEROES : VBLK_DISCARD, range.sector * SECTOR,
           (uint64_t)range.sectors * SECTOR);
}

static void get_id(struct vblk_request *request)
{
    struct vq_chain *chain = &request->chain;
    uint64_t room = chain->in_bytes - 1;
    uint64_t n =
        viov_write(vq_in(chain), chain->in_count, 0, request->blk->serial, MIN(room, VBLK_SERIAL_MAX));
    finish(request, S_OK, (uint32_t)n);
}

/* Returns false when the driver broke the format. */
static bool start_request(struct vblk_request *request)
{
    struct vblk *blk = request->blk;
    struct vq_chain *chain = &request->chain;
    struct blk_header header;
    if (chain->in_count == 0 || chain->out_bytes < sizeof(header)) {
        give_request(blk, request);
        vdev_fail(&blk->dev, "a request without a header or a status byte");
        return false;
    }
    const struct iovec *last = &chain->segs[chain->out_count + chain->in_count - 1u];
    request->status = (uint8_t *)last->iov_base + last->iov_len - 1;
    viov_read(chain->segs, chain->out_count, 0, &header, sizeof(header));
    request->io.may_unmap = false;
    switch (header.type) {
    case T_IN: transfer(request, &header, false); break;
    case T_OUT: transfer(request, &header, true); break;
    case T_FLUSH:
        request->io.iov_count = 0;
        submit(request, VBLK_FLUSH, 0, 0);
        break;
    case T_GET_ID: get_id(request); break;
    case T_DISCARD: change_range(request, false); break;
    case T_WRITE_ZEROES: change_range(request, true); break;
    default: finish(request, S_UNSUPP, 0); break;
    }
    return true;
}

/* --- the device --- */

static void blk_kick(struct vdev *dev, unsigned queue)
{
    struct vblk *blk = CONTAINER_OF(dev, struct vblk, dev);
    unsigned n = 0;
    vq_disable_notify(&dev->queues[queue]);
    do {
        for (;; n++) {
            struct vblk_request *request = n < VQ_SIZE_MAX ? take_request(blk) : NULL;
            if (!request) {
                blk->starved |= BIT64(queue);
                break;
            }
            request->blk = blk;
            request->queue = queue;
            request->epoch = blk->epoch;
            if (!vdev_pop(dev, queue, &request->chain)) {
                give_request(blk, request);
                break;
            }
            if (!start_request(request)) {
                return;
            }
        }
        if (blk->starved & BIT64(queue)) {
            if (blk->inflight == 0) { /* nothing that would come back to it */
                blk->starved = 0;
                vdev_again(dev, queue);
            }
            break;
        }
    } while (vq_enable_notify(&dev->queues[queue]));
    vdev_signal(dev, queue); /* for what was answered at once */
}

static void blk_stop(struct vdev *dev)
{
    struct vblk *blk = CONTAINER_OF(dev, struct vblk, dev);
    blk->epoch++;
    blk->starved = 0;
}

static bool blk_busy(const struct vdev *dev)
{
    return CONTAINER_OF(dev, const struct vblk, dev)->inflight != 0;
}

static void blk_drain(struct vdev *dev)
{
    struct vblk *blk = CONTAINER_OF(dev, struct vblk, dev);
    blk->config.backend->ops->drain(blk->config.backend);
}

static void blk_free(struct vdev *dev)
{
    struct vblk *blk = CONTAINER_OF(dev, struct vblk, dev);
    while (blk->free_requests) {
        struct vblk_request *request = blk->free_requests;
        blk->free_requests = request->next_free;
        free(request);
    }
    blk->config.backend->ops->free(blk->config.backend);
    free(blk);
}

static unsigned blk_describe(const struct vdev *dev, char *buf, unsigned size)
{
    const struct vblk *blk = CONTAINER_OF(dev, const struct vblk, dev);
    int n = snprintf(buf, size, "  reads=%llu writes=%llu errors=%llu inflight=%u\n",
                     (unsigned long long)blk->reads, (unsigned long long)blk->writes,
                     (unsigned long long)blk->errors, blk->inflight);
    return (unsigned)MAX(n, 0);
}

/* Nothing is in flight; the backend's data are the owner's affair, but they have to be the same disk. */
static void blk_state(struct vdev *dev, struct state *s)
{
    struct vblk *blk = CONTAINER_OF(dev, struct vblk, dev);
    const struct vblk_backend *backend = blk->config.backend;
    if (blk->inflight && !state_loading(s)) {
        state_fail(s, -EBUSY, "a disk's requests wait for the host");
    }
    state_require(s, blk->space.capacity == backend->size_bytes / SECTOR, "config (the disk's size)");
    state_require(s, blk->space.blk_size == backend->block_bytes, "config (the block size)");
    state_require(s, blk->space.num_queues == dev->queue_count, "config (the number of queues)");
}

static const struct vdev_ops blk_ops = {
    .name = "virtio-blk",
    .id = VIRTIO_ID_BLOCK,
    .class_code = 0x018000,
    .stop = blk_stop,
    .busy = blk_busy,
    .drain = blk_drain,
    .kick = blk_kick,
    .free = blk_free,
    .describe = blk_describe,
    .state = blk_state,
};

void vblk_resized(struct vdev *dev)
{
    struct vblk *blk = CONTAINER_OF(dev, struct vblk, dev);
    mem_lock(dev->mem);
    blk->space.capacity = blk->config.backend->size_bytes / SECTOR;
    mem_unlock(dev->mem);
    vdev_config_changed(dev);
}

struct vdev *vblk_new(const struct vblk_config *config, struct err *err)
{
    struct vblk *blk = calloc(1, sizeof(*blk));
    if (!blk || config->queues == 0 || config->queues > VBLK_QUEUES_MAX) {
        err_set(err, blk ? -EINVAL : -ENOMEM, blk ? "a disk has 1 to 16 queues" : "out of memory");
        config->backend->ops->free(config->backend);
        free(blk);
        return NULL;
    }
    const struct vblk_backend *backend = config->backend;
    blk->config = *config;
    if (config->serial) {
        memcpy(blk->serial, config->serial, MIN(strlen(config->serial), VBLK_SERIAL_MAX));
    }
    blk->space = (struct blk_config){
        .capacity = backend->size_bytes / SECTOR,
        .seg_max = VQ_SIZE_MAX - 2, /* beside the header and the status */
        .blk_size = backend->block_bytes,
        .num_queues = (uint16_t)config->queues,
        .max_discard_sectors = ZEROES_SECTORS_MAX,
        .max_discard_seg = RANGE_SEGMENTS_MAX,
        .discard_sector_alignment = backend->block_bytes / SECTOR,
        .max_write_zeroes_sectors = ZEROES_SECTORS_MAX,
        .max_write_zeroes_seg = RANGE_SEGMENTS_MAX,
        .write_zeroes_may_unmap = backend->can_discard,
    };
    uint64_t features = F_SEG_MAX | F_BLK_SIZE | F_FLUSH | F_MQ;
    if (backend->read_only) {
        features |= F_RO;
    } else {
        features |= F_WRITE_ZEROES | (backend->can_discard ? F_DISCARD : 0);
    }
    vdev_init(&blk->dev, &blk_ops, config->mem, config->queues, features, &blk->space, sizeof(blk->space));
    return &blk->dev;
}
