/*
 * Random writes, zeroes, discards, flushes, snapshots and reopenings on images in files, against an array in
 * memory; many requests at once, in every feature combination, with both engines and all cache modes, over
 * backing chains.
 *
 *   stress FOLDER [OPS]
 *
 * Leaves FOLDER/N.qcow2 and what it must read as in FOLDER/N.raw, for other programs to compare.
 */
#include <errno.h>
#include <string.h>

#include "base/util.h"
#include "tests/block/model.h"

#define BATCH 12u

static const char *folder;

struct rig {
    struct blk_loop *loop;
    struct blk_node *node;
    struct blk_open_options open;
    char path[512];
    uint8_t *model;
    uint64_t size, rng;
    uint8_t *saved[3];
    unsigned waiting;
    int error;
};

static void batch_done(struct blk_req *req, int error)
{
    struct rig *rig = req->opaque;
    rig->waiting--;
    rig->error = rig->error ? rig->error : error;
}

/* Writes, zeroes and flushes at once, on neighbouring ranges that share clusters but no bytes. */
static int batch(struct rig *rig)
{
    struct blk_req reqs[BATCH];
    struct iovec iovs[BATCH];
    uint64_t at = model_below(&rig->rng, rig->size / 2);
    rig->error = 0;
    blk_loop_plug(rig->loop);
    for (unsigned i = 0; i < BATCH; i++) {
        uint64_t bytes = 1 + model_below(&rig->rng, 1u << (4 + model_below(&rig->rng, 14)));
        bytes = MIN(bytes, rig->size - at);
        enum blk_op op = (const enum blk_op[]){BLK_WRITE,        BLK_WRITE, BLK_WRITE,
                                               BLK_WRITE_ZEROES, BLK_FLUSH, BLK_READ}[model_below(&rig->rng,
                                                                                                  6)];
        iovs[i] = (struct iovec){malloc(bytes + 8), bytes};
        reqs[i] = (struct blk_req){.op = op, .offset = at, .bytes = bytes, .done = batch_done, .opaque = rig};
        if (op == BLK_WRITE || op == BLK_READ) {
            reqs[i].iov = &iovs[i];
            reqs[i].iov_count = 1;
        }
        if (op == BLK_WRITE) {
            memset(iovs[i].iov_base, (int)(1 + model_below(&rig->rng, 255)), bytes);
            memcpy(rig->model + at, iovs[i].iov_base, bytes);
        } else if (op == BLK_WRITE_ZEROES) {
            reqs[i].flags = model_below(&rig->rng, 2) ? BLK_REQ_UNMAP : 0;
            memset(rig->model + at, 0, bytes);
        } else if (op == BLK_FLUSH) {
            reqs[i].offset = reqs[i].bytes = 0;
        }
        rig->waiting++;
        blk_submit(rig->node, &reqs[i]);
        at = MIN(at + bytes, rig->size);
    }
    blk_loop_unplug(rig->loop);
    while (rig->waiting) {
        blk_loop_poll(rig->loop, -1);
    }
    for (unsigned i = 0; i < BATCH; i++) {
        free(iovs[i].iov_base);
    }
    return rig->error;
}

static int snapshot(struct rig *rig, struct err *err)
{
    unsigned i = (unsigned)model_below(&rig->rng, ARRAY_SIZE(rig->saved));
    char name[8];
    snprintf(name, sizeof(name), "s%u", i);
    int error = 0;
    if (!rig->saved[i]) {
        error = image_snapshot_create(rig->node, name, err);
        if (!error) {
            rig->saved[i] = malloc(rig->size);
            memcpy(rig->saved[i], rig->model, rig->size);
        }
        return error == -ERANGE ? 0 : error;
    }
    if (model_below(&rig->rng, 2)) {
        error = image_snapshot_apply(rig->node, name, err);
        if (!error) {
            memcpy(rig->model, rig->saved[i], rig->size);
        }
        return error == -ERANGE ? 0 : error; /* refcounts too narrow: nothing changed */
    }
    free(rig->saved[i]);
    rig->saved[i] = NULL;
    return image_snapshot_delete(rig->node, name, err);
}

static int verify(struct rig *rig)
{
    uint8_t *now = malloc(rig->size);
    int error = blk_pread(rig->node, 0, now, rig->size);
    if (!error && memcmp(now, rig->model, rig->size) != 0) {
        uint64_t i = 0;
        while (now[i] == rig->model[i]) {
            i++;
        }
        printf("#   byte %llu differs\n", (unsigned long long)i);
        error = -EILSEQ;
    }
    free(now);
    return error;
}

static int step(struct rig *rig, struct err *err)
{
    uint64_t dice = model_below(&rig->rng, 24);
    if (dice < 6) {
        return batch(rig);
    }
    if (dice == 6) {
        return blk_flush(rig->node);
    }
    if (dice == 7) {
        return snapshot(rig, err);
    }
    if (dice == 8) {
        int error = blk_close(rig->node);
        rig->node = NULL;
        error = error ? error : blk_open(rig->loop, rig->path, &rig->open, &rig->node, err);
        return error ? error : verify(rig);
    }
    struct model_op op;
    model_op_random(&rig->rng, rig->size, &op);
    int error = model_op_run(rig->node, &op);
    if (!error && !model_op_apply(rig->node, &op, rig->model)) {
        error = -EILSEQ;
    }
    model_op_done(&op);
    return error;
}

/* A base image with some contents, smaller than what will lie over it, for N.qcow2 to have below it. */
static int make_base(struct rig *rig, unsigned n, const char *format, char *name, size_t name_size,
                     struct err *err)
{
    char path[512];
    struct image_create_options create = {.format = format,
                                          .size_bytes = align_down(rig->size * 3 / 4, BLK_SECTOR_SIZE)};
    struct blk_open_options options = {.format = format, .flags = BLK_OPEN_RDWR};
    struct blk_node *node;
    snprintf(name, name_size, "%u-base.%s", n, format);
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    int error = image_create(rig->loop, path, &create, err);
    error = error ? error : blk_open(rig->loop, path, &options, &node, err);
    for (unsigned i = 0; !error && i < 6; i++) {
        struct model_op op;
        model_op_random(&rig->rng, create.size_bytes, &op);
        error = model_op_run(node, &op);
        model_op_apply(node, &op, rig->model);
        model_op_done(&op);
    }
    return error ? error : blk_close(node);
}

static int save_model(struct rig *rig, unsigned n)
{
    char path[512];
    snprintf(path, sizeof(path), "%s/%u.raw", folder, n);
    FILE *f = fopen(path, "wb");
    bool good = f && fwrite(rig->model, 1, rig->size, f) == rig->size;
    return f && fclose(f) == 0 && good ? 0 : -EIO;
}

static int run(struct rig *rig, const struct model_config *config, unsigned n, unsigned ops, struct err *err)
{
    char base[64];
    struct image_create_options create = config->create;
    create.size_bytes = rig->size;
    int error = 0;
    if (n % 3) {
        error = make_base(rig, n, n % 3 == 1 ? "raw" : "qcow2", base, sizeof(base), err);
        create.backing = base;
        create.backing_format = n % 3 == 1 ? "raw" : "qcow2";
    }
    snprintf(rig->path, sizeof(rig->path), "%s/%u.qcow2", folder, n);
    error = error ? error : image_create(rig->loop, rig->path, &create, err);
    error = error ? error : blk_open(rig->loop, rig->path, &rig->open, &rig->node, err);
    for (unsigned i = 0; !error && i < ops; i++) {
        error = step(rig, err);
    }
    error = error ? error : verify(rig);
    int close_error = blk_close(rig->node);
    error = error ? error : close_error;
    return error ? error : save_model(rig, n);
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        fprintf(stderr, "usage: stress FOLDER [OPS]\n");
        return 2;
    }
    folder = argv[1];
    unsigned ops = argc > 2 ? (unsigned)atoi(argv[2]) : 150;
    uint64_t seed = model_seed();
    for (unsigned n = 0; n < 2 * model_config_count; n++) {
        const struct model_config *config = &model_configs[n % model_config_count];
        struct err err = {0};
        enum blk_cache cache = (enum blk_cache)((n + n / model_config_count) % 4);
        struct rig rig = {.rng = seed + n,
                          .open = {.format = "qcow2", .flags = BLK_OPEN_RDWR, .cache = cache}};
        uint32_t cluster = config->create.cluster_bytes ? config->create.cluster_bytes : 65536;
        rig.size = cluster < 4096 ? 512 * KiB + 512 : MAX(2 * MiB, 4ull * cluster) + 1536;
        rig.model = calloc(1, rig.size);
        int error = blk_loop_new(n % 2 ? BLK_ENGINE_THREADS : BLK_ENGINE_AUTO, &rig.loop, &err);
        error = error ? error : run(&rig, config, n, ops, &err);
        if (error) {
            printf("#   %s: %s\n", strerror(-error), err.text);
        }
        tap(error == 0, "random requests: %s, %s, cache mode %d, image %u", config->name,
            rig.loop ? blk_loop_engine_name(rig.loop) : "", cache, n);
        blk_loop_free(rig.loop);
        free(rig.model);
        for (unsigned i = 0; i < ARRAY_SIZE(rig.saved); i++) {
            free(rig.saved[i]);
        }
    }
    return tap_end();
}
