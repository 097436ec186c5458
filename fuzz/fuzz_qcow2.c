/*
 * Opens the input as a qcow2 image, reads, maps, checks and writes it: hostile images end in errors, never in
 * a crash, a hang or unbounded memory.
 */
#include <stdlib.h>
#include <string.h>

#include "fuzz/fuzz.h"
#include "tests/block/memdisk.h"

#define READ_MAX (256 * KiB)

static void use(struct blk_node *node, bool writes)
{
    static uint8_t buf[READ_MAX];
    struct err err = {0};
    struct blk_map map;
    struct image_check check;
    struct image_snapshot *list = NULL;
    unsigned count = 0;
    uint64_t size = blk_size(node), n = MIN(size, READ_MAX);
    blk_pread(node, 0, buf, n);
    blk_pread(node, size - n, buf, n);
    if (size) {
        blk_map(node, 0, size, 0, &map);
    }
    image_check(node, IMAGE_REPAIR_NONE, NULL, NULL, &check, &err);
    if (image_snapshots(node, &list, &count, &err) == 0) {
        free(list);
    }
    if (!writes) {
        return;
    }
    memset(buf, 0x5a, sizeof(buf));
    blk_pwrite(node, 0, buf, MIN(n, (uint64_t)4096));
    blk_pwrite(node, size - MIN(n, (uint64_t)4096), buf, MIN(n, (uint64_t)4096));
    blk_write_zeroes(node, 0, n, BLK_REQ_UNMAP);
    blk_discard(node, size - n, n);
    blk_flush(node);
    image_snapshot_create(node, "fuzz", &err);
    blk_pwrite(node, 0, buf, n);
    image_snapshot_apply(node, "1", &err);
    image_snapshot_delete(node, "fuzz", &err);
    blk_resize(node, size + 65536, false, &err);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct blk_loop *loop;
    static const unsigned flags[] = {BLK_OPEN_CHECK, BLK_OPEN_RDWR, BLK_OPEN_RDWR | BLK_OPEN_CHECK};
    if (!loop && blk_loop_new(BLK_ENGINE_THREADS, &loop, NULL) < 0) {
        abort();
    }
    for (size_t i = 0; i < ARRAY_SIZE(flags); i++) {
        struct memdisk disk;
        struct err err = {0};
        struct image_check check;
        struct blk_node *node = NULL;
        struct blk_open_options options = {.format = "qcow2", .flags = flags[i] | BLK_OPEN_NO_BACKING};
        memdisk_init(&disk);
        disk.length_max = 4 * MiB;
        memdisk_write(&disk, 0, data, size);
        if (blk_open_over(memdisk_node(loop, &disk), &options, 0, &node, &err) == 0) {
            if (i < 2) {
                use(node, i == 1);
            } else {
                image_check(node, IMAGE_REPAIR_ALL, NULL, NULL, &check, &err);
            }
            blk_close(node);
        }
        memdisk_done(&disk);
    }
    return 0;
}
