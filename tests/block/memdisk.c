#include "tests/block/memdisk.h"

#include <errno.h>
#include <string.h>

void memdisk_init(struct memdisk *disk)
{
    *disk = (struct memdisk){.length_max = 64 * MiB, .fault_at = -1};
}

void memdisk_done(struct memdisk *disk)
{
    for (size_t i = 0; i < disk->log_count; i++) {
        free(disk->log[i].data);
    }
    free(disk->log);
    free(disk->data);
    memdisk_init(disk);
}

static void grow(struct memdisk *disk, uint64_t length)
{
    if (length > disk->room) {
        uint64_t room = MAX(length, 2 * disk->room);
        uint8_t *data = realloc(disk->data, room);
        if (!data) {
            abort();
        }
        memset(data + disk->room, 0, room - disk->room);
        disk->data = data;
        disk->room = room;
    }
    disk->length = MAX(disk->length, length);
}

void memdisk_write(struct memdisk *disk, uint64_t offset, const void *data, uint64_t bytes)
{
    grow(disk, offset + bytes);
    memcpy(disk->data + offset, data, bytes);
}

static void discard(struct memdisk *disk, uint64_t offset, uint64_t bytes)
{
    if (offset < disk->length) {
        memset(disk->data + offset, 0, MIN(bytes, disk->length - offset));
    }
}

void memdisk_copy(struct memdisk *dst, const struct memdisk *src)
{
    memdisk_init(dst);
    if (src->length) {
        memdisk_write(dst, 0, src->data, src->length);
    }
}

void memdisk_replay(struct memdisk *disk, const struct memdisk_entry *entry, uint64_t sector_mask)
{
    if (entry->op == BLK_DISCARD) {
        discard(disk, entry->offset, entry->bytes);
    }
    if (entry->op != BLK_WRITE) {
        return;
    }
    for (uint64_t at = 0, i = 0; at < entry->bytes; i++) {
        uint64_t n = MIN(BLK_SECTOR_SIZE - (entry->offset + at) % BLK_SECTOR_SIZE, entry->bytes - at);
        if (sector_mask & BIT64(i % 64)) {
            memdisk_write(disk, entry->offset + at, entry->data + at, n);
        }
        at += n;
    }
}

static void add_log(struct memdisk *disk, enum blk_op op, uint64_t offset, const uint8_t *data, uint64_t bytes)
{
    if (!disk->logging) {
        return;
    }
    if (disk->log_count == disk->log_room) {
        disk->log_room = MAX(2 * disk->log_room, (size_t)256);
        disk->log = realloc(disk->log, disk->log_room * sizeof(*disk->log));
        if (!disk->log) {
            abort();
        }
    }
    struct memdisk_entry *entry = &disk->log[disk->log_count++];
    *entry = (struct memdisk_entry){.op = op, .offset = offset, .bytes = bytes};
    if (data) {
        entry->data = malloc(bytes + 1);
        if (!entry->data) {
            abort();
        }
        memcpy(entry->data, data, bytes);
    }
}

static int do_write(struct memdisk *disk, uint64_t offset, const uint8_t *data, uint64_t bytes)
{
    int error = 0;
    if (disk->writes++ == disk->fault_at) {
        error = disk->fault_error;
        bytes = disk->fault_short ? bytes / 2 : 0;
    }
    if (bytes) {
        memdisk_write(disk, offset, data, bytes);
        add_log(disk, BLK_WRITE, offset, data, bytes);
    }
    return error;
}

static void pause_once(struct blk_loop *loop)
{
    blk_loop_wake(loop, co_self());
    co_suspend();
}

static int perform(struct memdisk *disk, struct blk_req *req)
{
    uint64_t there = req->offset < disk->length ? MIN(req->bytes, disk->length - req->offset) : 0;
    if (req->op != BLK_FLUSH && req->op != BLK_READ && req->op != BLK_MAP &&
        req->offset + req->bytes > disk->length_max) {
        return req->op == BLK_DISCARD ? 0 : -EFBIG;
    }
    switch (req->op) {
    case BLK_READ:
        iov_from_buf(req->iov, req->iov_count, 0, disk->data + (there ? req->offset : 0), there);
        iov_zero(req->iov, req->iov_count, there, req->bytes - there);
        return 0;
    case BLK_WRITE:
    case BLK_WRITE_ZEROES: {
        uint8_t *data = calloc(1, req->bytes + 1);
        if (!data) {
            abort();
        }
        if (req->op == BLK_WRITE) {
            iov_to_buf(req->iov, req->iov_count, 0, data, req->bytes);
        }
        int error = do_write(disk, req->offset, data, req->bytes);
        free(data);
        return error;
    }
    case BLK_DISCARD:
        if (disk->writes++ == disk->fault_at) {
            return disk->fault_error;
        }
        discard(disk, req->offset, req->bytes);
        add_log(disk, BLK_DISCARD, req->offset, NULL, req->bytes);
        return 0;
    case BLK_FLUSH:
        if (disk->writes++ == disk->fault_at) {
            return disk->fault_error;
        }
        add_log(disk, BLK_FLUSH, 0, NULL, 0);
        return 0;
    default: req->map = (struct blk_map){.bytes = req->bytes, .flags = BLK_MAP_DATA | BLK_MAP_ALLOCATED}; return 0;
    }
}

static int memdisk_co_io(struct blk_node *node, struct blk_req *req)
{
    struct memdisk *disk = *(struct memdisk **)node->state;
    pause_once(node->loop);
    int error = perform(disk, req);
    pause_once(node->loop);
    return error;
}

static int memdisk_resize(struct blk_node *node, uint64_t size_bytes, bool shrink, struct err *err)
{
    grow(*(struct memdisk **)node->state, size_bytes);
    return 0;
}

static void memdisk_info(struct blk_node *node, struct blk_info *info)
{
    info->host_length = (*(struct memdisk **)node->state)->length;
    info->align = 1;
}

static const struct blk_driver memdisk_driver = {
    .name = "memdisk",
    .state_size = sizeof(struct memdisk *),
    .co_io = memdisk_co_io,
    .resize = memdisk_resize,
    .info = memdisk_info,
};

struct blk_node *memdisk_node(struct blk_loop *loop, struct memdisk *disk)
{
    struct blk_node *node = blk_node_new(loop, &memdisk_driver, "memdisk");
    if (!node) {
        abort();
    }
    *(struct memdisk **)node->state = disk;
    node->flags = BLK_OPEN_RDWR | BLK_OPEN_NO_LOCK;
    node->growable = true;
    node->size_bytes = disk->length;
    return node;
}
