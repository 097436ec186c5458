/*
 * See disk.h.
 *
 *     submit --> blk_submit --> on_done --+--> io->done; the last one lets the machine go on
 *                    ^                    |  no room on the host: the machine stands still
 *                    +-- every second --- held
 */
#include "vm/disk.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/log.h"
#include "base/util.h"
#include "block/block.h"
#include "block/image.h"
#include "vm/pause.h"

#define RETRY_MS 1000u
_Static_assert((int)VBLK_READ == BLK_READ && (int)VBLK_WRITE == BLK_WRITE && (int)VBLK_FLUSH == BLK_FLUSH &&
                   (int)VBLK_DISCARD == BLK_DISCARD && (int)VBLK_WRITE_ZEROES == BLK_WRITE_ZEROES,
               "the two contracts number their operations alike");

struct request {
    struct blk_req req;
    struct disk *disk;
    struct vblk_io *io;
    struct request *next; /* while it is held, or free */
};

struct disk {
    struct vblk_backend backend;
    struct blk_node *node;
    struct machine *machine;
    enum blk_error_policy on_error;
    uv_timer_t retry;
    struct request *spare, *held;
    unsigned under_way; /* submitted to the node and not done */
    unsigned dropped;   /* failed by a drain, while the machine stood still for them */
    bool paused, draining;
};

static void finish(struct request *request, int result)
{
    struct disk *disk = request->disk;
    struct vblk_io *io = request->io;
    request->next = disk->spare;
    disk->spare = request;
    io->result = result;
    io->done(io);
}

static void submit_held(struct disk *disk)
{
    struct request *request = disk->held;
    disk->held = NULL;
    while (request) {
        struct request *next = request->next;
        disk->under_way++;
        blk_submit(disk->node, &request->req);
        request = next;
    }
}

/* While the machine stands still no new requests come: everything has worked once none is held or under way.
 */
static void go_on(struct disk *disk)
{
    if (disk->paused && !disk->held && disk->under_way == 0) {
        disk->paused = false;
        uv_timer_stop(&disk->retry);
        if (!disk->draining) {
            log_warning("the disk works again; the machine goes on");
        }
        machine_unpause(disk->machine, PAUSE_DISK);
    }
}

static void on_retry(uv_timer_t *timer)
{
    submit_held(timer->data);
}

static void hold(struct request *request, int error)
{
    struct disk *disk = request->disk;
    char text[512];
    if (!disk->paused) {
        blk_error_text(disk->node, request->req.op, error, text, sizeof(text));
        log_warning("%s; the machine is paused and tries again every second", text);
        disk->paused = true;
        machine_pause(disk->machine, PAUSE_DISK);
    }
    request->next = disk->held;
    disk->held = request;
    uv_timer_start(&disk->retry, on_retry, RETRY_MS, 0);
}

static void on_done(struct blk_req *req, int error)
{
    struct request *request = CONTAINER_OF(req, struct request, req);
    struct disk *disk = request->disk;
    disk->under_way--;
    if (error < 0 && blk_error_action(disk->on_error, req->op, error) == BLK_ACTION_STOP) {
        if (!disk->draining) {
            hold(request, error);
            return;
        }
        disk->dropped++;
    }
    finish(request, error);
    go_on(disk);
}

static void disk_submit(struct vblk_backend *backend, struct vblk_io *io)
{
    struct disk *disk = CONTAINER_OF(backend, struct disk, backend);
    struct request *request = disk->spare;
    disk->spare = request->next; /* never empty: there are as many as the device has requests */
    request->io = io;
    request->req = (struct blk_req){
        .op = (enum blk_op)io->op,
        .flags = io->op == VBLK_WRITE_ZEROES && io->may_unmap ? BLK_REQ_UNMAP : 0,
        .offset = io->offset,
        .bytes = io->bytes,
        .iov = io->iov,
        .iov_count = io->iov_count,
        .done = on_done,
    };
    disk->under_way++;
    blk_submit(disk->node, &request->req);
}

void disk_retry(struct vblk_backend *backend)
{
    submit_held(CONTAINER_OF(backend, struct disk, backend));
}

/* The machine resets or ends: what still finds no room fails. */
static void disk_drain(struct vblk_backend *backend)
{
    struct disk *disk = CONTAINER_OF(backend, struct disk, backend);
    disk->draining = true;
    submit_held(disk);
    blk_drain(disk->node);
    if (disk->dropped) {
        log_warning("%u requests to a disk failed for good; the guest was never told that they were done",
                    disk->dropped);
        disk->dropped = 0;
    }
    disk->draining = false;
}

static void on_closed(uv_handle_t *handle)
{
    struct disk *disk = handle->data;
    while (disk->spare) {
        struct request *request = disk->spare;
        disk->spare = request->next;
        free(request);
    }
    free(disk);
}

static void disk_free(struct vblk_backend *backend)
{
    struct disk *disk = CONTAINER_OF(backend, struct disk, backend);
    if (disk->node) {
        disk_drain(backend);
        int rc = blk_close(disk->node);
        if (rc < 0) {
            log_error("a disk image could not be written back: error %d", -rc);
        }
    }
    uv_timer_stop(&disk->retry);
    uv_close((uv_handle_t *)&disk->retry, on_closed);
}

static const struct vblk_backend_ops disk_ops = {disk_submit, disk_drain, disk_free};

static int add_spares(struct disk *disk)
{
    for (unsigned i = 0; i < VBLK_INFLIGHT_MAX; i++) {
        struct request *request = calloc(1, sizeof(*request));
        if (!request) {
            return -ENOMEM;
        }
        request->disk = disk;
        request->next = disk->spare;
        disk->spare = request;
    }
    return 0;
}

/* An overlay without a name takes what the guest writes; the image itself is only read. */
static int open_ephemeral(struct blk_loop *blk_loop, const struct disk_options *options,
                          struct blk_node **ret_node, struct err *err)
{
    const char *folder = getenv("TMPDIR");
    char overlay[BLK_PATH_MAX];
    auto_free char *base = realpath(options->path, NULL);
    if (!base) {
        return err_sys(err, -errno, "cannot open image '%s'", options->path);
    }
    struct blk_node *probe;
    struct blk_info info;
    const struct blk_open_options look = {.format = options->format[0] ? options->format : NULL};
    int rc = blk_open(blk_loop, base, &look, &probe, err);
    if (rc < 0) {
        return rc;
    }
    blk_get_info(probe, &info);
    const struct image_create_options create = {
        .format = "qcow2", .backing = base, .backing_format = info.format, .overwrite = true};
    const struct blk_open_options open = {
        .format = "qcow2", .flags = BLK_OPEN_RDWR, .cache = BLK_CACHE_UNSAFE};
    snprintf(overlay, sizeof(overlay), "%s/fonda-ephemeral-XXXXXX", folder && *folder ? folder : "/var/tmp");
    int fd = mkstemp(overlay);
    rc = fd < 0
             ? err_sys(err, -errno, "--ephemeral: cannot make a file in '%s'", folder ? folder : "/var/tmp")
             : 0;
    rc = rc ? rc : image_create(blk_loop, overlay, &create, err);
    rc = rc ? rc : blk_open(blk_loop, overlay, &open, ret_node, err);
    if (fd >= 0) {
        unlink(overlay);
        close(fd);
    }
    blk_close(probe);
    return rc;
}

struct vblk_backend *disk_open(uv_loop_t *loop, struct blk_loop *blk_loop, struct machine *machine,
                               const struct disk_options *options, struct err *err)
{
    const struct blk_open_options open = {
        .format = options->format[0] ? options->format : NULL,
        .flags = options->read_only ? 0 : BLK_OPEN_RDWR,
        .cache = options->cache,
        .throttle = options->throttle,
        .files = options->files,
        .file_count = options->file_count,
    };
    struct disk *disk = calloc(1, sizeof(*disk));
    if (!disk) {
        err_set(err, -ENOMEM, "out of memory");
        return NULL;
    }
    uv_timer_init(loop, &disk->retry);
    disk->retry.data = disk;
    disk->backend.ops = &disk_ops;
    disk->machine = machine;
    disk->on_error = options->on_error;
    if (add_spares(disk) < 0) {
        err_set(err, -ENOMEM, "out of memory");
    } else if ((options->ephemeral ? open_ephemeral(blk_loop, options, &disk->node, err)
                                   : blk_open(blk_loop, options->path, &open, &disk->node, err)) == 0) {
        struct blk_info info;
        blk_get_info(disk->node, &info);
        disk->backend.size_bytes = align_down(info.size_bytes, BLK_SECTOR_SIZE);
        disk->backend.block_bytes = BLK_SECTOR_SIZE;
        disk->backend.read_only = options->read_only;
        disk->backend.can_discard = !options->read_only;
        if (disk->backend.size_bytes) {
            return &disk->backend;
        }
        err_set(err, -EINVAL, "disk '%s' is smaller than one sector", options->path);
    }
    disk_free(&disk->backend);
    return NULL;
}

int disk_set_limits(struct vblk_backend *backend, const struct blk_throttle_limits *limits)
{
    struct disk *disk = CONTAINER_OF(backend, struct disk, backend);
    return blk_add_throttle(&disk->node, limits);
}

struct blk_node *disk_node(struct vblk_backend *backend)
{
    return CONTAINER_OF(backend, struct disk, backend)->node;
}
