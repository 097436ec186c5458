/*
 * Faults below qcow2: every write, flush and discard fails once, with -EIO or -ENOSPC or after its first
 * half. The request that meets the fault is submitted again, as a device does after -ENOSPC: then everything
 * has to be there, and the image without corruption. Also: what a request that failed had acknowledged before
 * stays.
 */
#include <errno.h>
#include <string.h>

#include "tests/block/memdisk.h"
#include "tests/block/model.h"

#define OPS 24u

static struct blk_node *open_image(struct blk_loop *loop, struct memdisk *disk, struct err *err)
{
    struct blk_node *node = NULL;
    struct blk_open_options options = {.format = "qcow2", .flags = BLK_OPEN_RDWR};
    return blk_open_over(memdisk_node(loop, disk), &options, 0, &node, err) == 0 ? node : NULL;
}

static bool create(struct blk_loop *loop, struct memdisk *disk, const struct model_config *config,
                   uint64_t size)
{
    struct err err = {0};
    struct blk_node *file = memdisk_node(loop, disk);
    int error = blk_qcow2_driver.create(file, "memdisk", &config->create, &err);
    blk_close(file);
    struct blk_node *node = error ? NULL : open_image(loop, disk, &err);
    error = node ? blk_resize(node, size, false, &err) : -EIO;
    return blk_close(node) == 0 && !error;
}

static int do_op(struct blk_node *node, unsigned i, const struct model_op *op)
{
    struct err err = {0};
    if (i == OPS / 3) {
        return image_snapshot_create(node, "s", &err);
    }
    return i % 5 == 4 ? blk_flush(node) : model_op_run(node, op);
}

/* One pass with the fault at one place. *ret_reached: there was such a write. */
static bool pass(struct blk_loop *loop, const struct memdisk *base, uint64_t size, uint64_t seed, int64_t at,
                 int error, bool half, bool *ret_reached)
{
    struct memdisk disk;
    struct err err = {0};
    memdisk_copy(&disk, base);
    disk.fault_at = at;
    disk.fault_error = error;
    disk.fault_short = half;
    uint8_t *model = calloc(1, size), *now = malloc(size);
    struct blk_node *node = open_image(loop, &disk, &err);
    bool good = node != NULL;
    if (!node && disk.writes > at) { /* the fault was in opening */
        node = open_image(loop, &disk, &err);
        good = node != NULL;
    }
    for (unsigned i = 0; good && i < OPS; i++) {
        struct model_op op;
        model_op_random(&seed, size, &op);
        int result = do_op(node, i, &op);
        if (result) {
            good = disk.writes > at && result == error;
            struct image_snapshot *list = NULL;
            unsigned count = 0;
            if (i == OPS / 3 && image_snapshots(node, &list, &count, &err) == 0 && count) {
                result = 0; /* it was made before the fault hit the cleaning up */
            } else {
                result = do_op(node, i, &op);
            }
            free(list);
            if (result == -EUCLEAN) { /* it can't know what is on the disk: writes are refused until it is
                                         opened again */
                blk_close(node);
                node = open_image(loop, &disk, &err);
                model_op_done(&op);
                goto check;
            }
            good = good && result == 0;
        }
        if (i != OPS / 3 && i % 5 != 4) {
            good = good && model_op_apply(node, &op, model);
        }
        model_op_done(&op);
    }
    good = good && blk_pread(node, 0, now, size) == 0 && memcmp(now, model, size) == 0;
    if (good && blk_flush(node) != 0) {
        good = disk.writes > at && blk_flush(node) == 0;
    }
    int64_t before_close = disk.writes;
    if (blk_close(node) != 0) {
        good = good && before_close <= at;
    }
    node = good ? open_image(loop, &disk, &err) : NULL;
    good = node && blk_pread(node, 0, now, size) == 0 && memcmp(now, model, size) == 0;
check:;
    struct image_check check = {0};
    *ret_reached = disk.writes > at;
    disk.fault_at = -1;
    good = good && node && image_check(node, IMAGE_REPAIR_NONE, NULL, NULL, &check, &err) == 0 &&
           check.corruptions == 0;
    if (!good) {
        printf("#   fault %d%s at %lld: %llu corruptions, %s\n", error, half ? " half way" : "",
               (long long)at, (unsigned long long)check.corruptions, err.text);
    }
    blk_close(node);
    free(model);
    free(now);
    memdisk_done(&disk);
    return good;
}

static bool all_places(struct blk_loop *loop, const struct model_config *config, uint64_t seed, int error,
                       bool half)
{
    struct memdisk base;
    uint64_t size = 256 * KiB;
    memdisk_init(&base);
    bool good = create(loop, &base, config, size), reached = true;
    for (int64_t at = 0; good && reached; at++) {
        good = pass(loop, &base, size, seed, at, error, half, &reached);
    }
    memdisk_done(&base);
    return good;
}

int main(int argc, char **argv)
{
    uint64_t seed = model_seed();
    struct err err = {0};
    struct blk_loop *loop;
    if (blk_loop_new(BLK_ENGINE_THREADS, &loop, &err) < 0) {
        printf("Bail out! %s\n", err.text);
        return 1;
    }
    for (unsigned i = 0; i < model_config_count; i++) {
        const struct model_config *config = &model_configs[i];
        if (config->create.cluster_bytes > 65536 || config->create.refcount_bits == 1) {
            continue; /* slow; without snapshots */
        }
        tap(all_places(loop, config, seed + i, -ENOSPC, false), "every write without room once: %s",
            config->name);
        tap(all_places(loop, config, seed + i, -EIO, true), "every write fails half way once: %s",
            config->name);
    }
    blk_loop_free(loop);
    return tap_end();
}
