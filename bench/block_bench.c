/*
 * Throughput of the block layer in one process: COUNT requests of SIZE bytes, DEPTH at a time, STEP bytes
 * apart, around the disk again and again (as `qemu-img bench` does it). Prints requests a second.
 *
 *   block-bench FILE FORMAT read|write|write-flush COUNT DEPTH SIZE STEP CACHE(0-3)
 */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/util.h"
#include "block/block.h"

#define DEPTH_MAX 256u

struct bench {
    struct blk_node *node;
    enum blk_op op;
    uint64_t left, next, step, size;
    unsigned under_way;
    int error;
    struct blk_req reqs[DEPTH_MAX];
    struct iovec iovs[DEPTH_MAX];
};

static void submit(struct bench *bench, struct blk_req *req)
{
    if (!bench->left || bench->error) {
        return;
    }
    bench->left--;
    if (bench->next + bench->size > blk_size(bench->node)) {
        bench->next = bench->next % bench->step + bench->size;
        if (bench->next >= bench->step) {
            bench->next = 0;
        }
    }
    req->offset = bench->next;
    bench->next += bench->step;
    bench->under_way++;
    blk_submit(bench->node, req);
}

static void done(struct blk_req *req, int error)
{
    struct bench *bench = req->opaque;
    bench->under_way--;
    bench->error = bench->error ? bench->error : error;
    submit(bench, req);
}

int main(int argc, char **argv)
{
    if (argc != 9) {
        fprintf(stderr,
                "usage: block-bench FILE FORMAT read|write|write-flush COUNT DEPTH SIZE STEP CACHE\n");
        return 2;
    }
    static struct bench bench;
    struct err err = {0};
    struct blk_loop *loop;
    bool write = strncmp(argv[3], "write", 5) == 0;
    unsigned depth = MIN((unsigned)atoi(argv[5]), DEPTH_MAX);
    uint64_t count = strtoull(argv[4], NULL, 10);
    struct blk_open_options options = {
        .format = argv[2], .flags = write ? BLK_OPEN_RDWR : 0, .cache = (enum blk_cache)atoi(argv[8])};
    bench.op = write ? BLK_WRITE : BLK_READ;
    bench.left = count;
    bench.size = strtoull(argv[6], NULL, 10);
    bench.step = MAX(strtoull(argv[7], NULL, 10), bench.size);
    if (blk_loop_new(BLK_ENGINE_AUTO, &loop, &err) < 0 ||
        blk_open(loop, argv[1], &options, &bench.node, &err) < 0) {
        fprintf(stderr, "block-bench: %s\n", err.text);
        return 1;
    }
    struct timespec start, end;
    for (unsigned i = 0; i < depth; i++) {
        void *buf = NULL;
        if (posix_memalign(&buf, 4096, bench.size) != 0) {
            return 1;
        }
        memset(buf, 0x55, bench.size);
        bench.iovs[i] = (struct iovec){buf, bench.size};
        bench.reqs[i] = (struct blk_req){.op = bench.op,
                                         .bytes = bench.size,
                                         .iov = &bench.iovs[i],
                                         .iov_count = 1,
                                         .done = done,
                                         .opaque = &bench};
    }
    clock_gettime(CLOCK_MONOTONIC, &start);
    blk_loop_plug(loop);
    for (unsigned i = 0; i < depth; i++) {
        submit(&bench, &bench.reqs[i]);
    }
    blk_loop_unplug(loop);
    while (bench.under_way) {
        blk_loop_poll(loop, -1);
    }
    if (!bench.error && strcmp(argv[3], "write-flush") == 0) {
        bench.error = blk_flush(bench.node);
    }
    clock_gettime(CLOCK_MONOTONIC, &end);
    double seconds = (double)(end.tv_sec - start.tv_sec) + (double)(end.tv_nsec - start.tv_nsec) / 1e9;
    blk_close(bench.node);
    blk_loop_free(loop);
    if (bench.error) {
        fprintf(stderr, "block-bench: %s\n", strerror(-bench.error));
        return 1;
    }
    printf("%.0f\n", (double)count / seconds);
    return 0;
}
