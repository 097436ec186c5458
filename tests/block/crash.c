/*
 * Crash consistency of qcow2: runs random requests and snapshots over a disk in memory that logs all writes,
 * then cuts the power after each of them, and looks at what is left.
 *
 * After a cut, what was flushed is there; of later writes any subset, down to sectors, may be. Then the image
 * must open, have no corruption, and every sector must read as it did at the last flush that was
 * acknowledged, or as any later request made it. It must also go on working.
 *
 *   crash [RUNS]
 */
#include <errno.h>
#include <limits.h>
#include <string.h>

#include "tests/block/memdisk.h"
#include "tests/block/model.h"

#define OPS 40u

struct step {
    size_t log_start, log_end;
    bool is_flush;
    uint8_t *model; /* afterwards */
};

struct run {
    const struct model_config *config;
    uint64_t size, rng;
    struct memdisk disk, base;
    struct blk_loop *loop;
    uint8_t *model;
    struct step steps[OPS + 1];
    unsigned step_count;
    uint8_t *saved[4]; /* contents of snapshots "0" to "3"; NULL: there is none */
};

static void add_finding(void *arg, const char *text)
{
    unsigned *count = arg;
    if (strncmp(text, "corrupt", 7) == 0 && (*count)++ < 3) {
        printf("#   %s\n", text);
    }
}

static struct blk_node *open_image(struct run *run, struct memdisk *disk, struct err *err)
{
    struct blk_node *node = NULL;
    struct blk_open_options options = {.format = "qcow2", .flags = BLK_OPEN_RDWR};
    return blk_open_over(memdisk_node(run->loop, disk), &options, 0, &node, err) == 0 ? node : NULL;
}

static bool create(struct run *run, struct err *err)
{
    struct blk_node *file = memdisk_node(run->loop, &run->disk);
    int error = blk_qcow2_driver.create(file, "memdisk", &run->config->create, err);
    blk_close(file);
    struct blk_node *node = error ? NULL : open_image(run, &run->disk, err);
    if (!node) {
        return false;
    }
    error = blk_resize(node, run->size, false, err);
    return blk_close(node) == 0 && !error;
}

static int snapshot_step(struct run *run, struct blk_node *node)
{
    unsigned i = (unsigned)model_below(&run->rng, 4);
    char name[8];
    struct err err = {0};
    snprintf(name, sizeof(name), "s%u", i);
    if (!run->saved[i]) {
        int error = image_snapshot_create(node, name, &err);
        if (!error) {
            run->saved[i] = malloc(run->size);
            memcpy(run->saved[i], run->model, run->size);
        }
        return error == -ERANGE ? 0 : error;
    }
    if (model_below(&run->rng, 2)) {
        int error = image_snapshot_apply(node, name, &err);
        if (!error) {
            memcpy(run->model, run->saved[i], run->size);
        }
        return error == -ERANGE ? 0 : error; /* refcounts too narrow: nothing changed */
    }
    free(run->saved[i]);
    run->saved[i] = NULL;
    return image_snapshot_delete(node, name, &err);
}

static bool do_steps(struct run *run, struct blk_node *node)
{
    for (unsigned i = 0; i < OPS; i++) {
        struct step *step = &run->steps[run->step_count];
        *step = (struct step){.log_start = run->disk.log_count};
        uint64_t dice = model_below(&run->rng, 20);
        int error = 0;
        if (dice < 4) {
            step->is_flush = true;
            error = blk_flush(node);
        } else if (dice == 4) {
            error = snapshot_step(run, node);
        } else {
            struct model_op op;
            model_op_random(&run->rng, run->size, &op);
            error = model_op_run(node, &op);
            if (!error && !model_op_apply(node, &op, run->model)) {
                error = -EILSEQ;
            }
            model_op_done(&op);
        }
        if (error) {
            printf("#   step %u: %s\n", i, strerror(-error));
            return false;
        }
        step->log_end = run->disk.log_count;
        step->model = malloc(run->size);
        memcpy(step->model, run->model, run->size);
        run->step_count++;
    }
    return true;
}

/* The disk as it may be after a cut behind log entry `cut`. */
static void build(struct run *run, size_t cut, bool reorder, struct memdisk *disk)
{
    memdisk_copy(disk, &run->base);
    size_t flushed = 0;
    for (size_t i = 0; i < cut; i++) {
        flushed = run->disk.log[i].op == BLK_FLUSH ? i : flushed;
    }
    for (size_t i = 0; i < cut; i++) {
        uint64_t mask = UINT64_MAX;
        if (reorder && i > flushed) {
            uint64_t dice = model_below(&run->rng, 3);
            mask = dice == 0 ? 0 : dice == 1 ? UINT64_MAX : model_random(&run->rng);
            if (run->disk.log[i].op == BLK_DISCARD && !(mask & 1)) {
                continue;
            }
        }
        memdisk_replay(disk, &run->disk.log[i], mask);
    }
}

static bool contents_allowed(struct run *run, size_t cut, const uint8_t *now)
{
    unsigned first = 0; /* the last flush that was acknowledged */
    for (unsigned i = 0; i < run->step_count; i++) {
        if (run->steps[i].is_flush && run->steps[i].log_end <= cut) {
            first = i;
        }
    }
    for (uint64_t at = 0; at < run->size; at += BLK_SECTOR_SIZE) {
        bool good = false;
        for (unsigned i = first;
             !good && i < run->step_count && (i == first || run->steps[i].log_start < cut); i++) {
            good = memcmp(now + at, run->steps[i].model + at, BLK_SECTOR_SIZE) == 0;
        }
        if (!good) {
            printf("#   sector %llu is wrong\n", (unsigned long long)(at / BLK_SECTOR_SIZE));
            return false;
        }
    }
    return true;
}

static bool check_cut(struct run *run, size_t cut, bool reorder)
{
    struct memdisk disk;
    struct err err = {0};
    struct image_check check;
    /* Version 2 has no dirty bit to say that flags and refcounts were changing: only flags may disagree. */
    bool flags_may_disagree = run->config->create.version == 2;
    unsigned findings = flags_may_disagree ? UINT_MAX / 2 : 0; /* enough of them: none is shown */
    build(run, cut, reorder, &disk);
    struct blk_node *node = open_image(run, &disk, &err);
    if (!node) {
        printf("#   cut %zu: %s\n", cut, err.text);
        memdisk_done(&disk);
        return false;
    }
    uint8_t *now = malloc(run->size);
    bool good = image_check(node, IMAGE_REPAIR_NONE, add_finding, &findings, &check, &err) == 0;
    good = good && (check.corruptions == 0 || flags_may_disagree);
    good = good && blk_pread(node, 0, now, run->size) == 0 && contents_allowed(run, cut, now);
    if (good && cut % 7 == 0) { /* it goes on */
        for (unsigned i = 0; good && i < 5; i++) {
            struct model_op op;
            model_op_random(&run->rng, run->size, &op);
            good = model_op_run(node, &op) == 0 && model_op_apply(node, &op, now);
            model_op_done(&op);
        }
        uint8_t *again = malloc(run->size);
        good = good && blk_flush(node) == 0 && blk_pread(node, 0, again, run->size) == 0 &&
               memcmp(again, now, run->size) == 0;
        free(again);
    }
    good = blk_close(node) == 0 && good;
    if (!good) {
        printf("#   cut %zu of %zu, %s: %llu corruptions, %s\n", cut, run->disk.log_count,
               reorder ? "reordered" : "in order", (unsigned long long)check.corruptions, err.text);
    }
    free(now);
    memdisk_done(&disk);
    return good;
}

static bool one_run(struct blk_loop *loop, const struct model_config *config, uint64_t seed)
{
    struct run *run = calloc(1, sizeof(*run));
    struct err err = {0};
    run->config = config;
    run->loop = loop;
    run->rng = seed;
    run->size =
        config->create.cluster_bytes >= 65536 || !config->create.cluster_bytes ? 1024 * KiB : 128 * KiB;
    memdisk_init(&run->disk);
    run->model = calloc(1, run->size);
    run->steps[0] = (struct step){.is_flush = true, .model = calloc(1, run->size)};
    run->step_count = 1;
    bool good = create(run, &err);
    memdisk_copy(&run->base, &run->disk);
    run->disk.logging = true;
    struct blk_node *node = good ? open_image(run, &run->disk, &err) : NULL;
    good = node && do_steps(run, node);
    good = blk_close(node) == 0 && good;
    if (!good) {
        printf("#   %s\n", err.text);
    }
    size_t stride = MAX(run->disk.log_count / 120, (size_t)1);
    for (size_t cut = model_below(&run->rng, stride); good && cut <= run->disk.log_count; cut += stride) {
        good = check_cut(run, cut, false) && check_cut(run, cut, true) && check_cut(run, cut, true);
    }
    for (unsigned i = 0; i < run->step_count; i++) {
        free(run->steps[i].model);
    }
    for (unsigned i = 0; i < ARRAY_SIZE(run->saved); i++) {
        free(run->saved[i]);
    }
    free(run->model);
    memdisk_done(&run->disk);
    memdisk_done(&run->base);
    free(run);
    return good;
}

int main(int argc, char **argv)
{
    unsigned runs = argc > 1 ? (unsigned)atoi(argv[1]) : 2;
    uint64_t seed = model_seed();
    struct err err = {0};
    struct blk_loop *loop;
    if (blk_loop_new(BLK_ENGINE_THREADS, &loop, &err) < 0) {
        printf("Bail out! %s\n", err.text);
        return 1;
    }
    for (unsigned r = 0; r < runs; r++) {
        for (unsigned i = 0; i < model_config_count; i++) {
            if (model_configs[i].create.cluster_bytes > 65536) {
                continue; /* nothing new for much more time */
            }
            uint64_t s = seed + r * 1000 + i;
            tap(one_run(loop, &model_configs[i], s), "power cuts: %s, run %u", model_configs[i].name, r);
        }
    }
    blk_loop_free(loop);
    return tap_end();
}
