#include "tests/block/model.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/util.h"

#define CONFIG(label, ...) {.create = {.format = "qcow2", __VA_ARGS__}, .name = label}

const struct model_config model_configs[] = {
    CONFIG("default", .version = 3),
    CONFIG("512-byte clusters", .cluster_bytes = 512),
    CONFIG("4K clusters, 64-bit refcounts", .cluster_bytes = 4096, .refcount_bits = 64),
    CONFIG("1K clusters, 1-bit refcounts", .cluster_bytes = 1024, .refcount_bits = 1),
    CONFIG("512-byte clusters, 2-bit refcounts", .cluster_bytes = 512, .refcount_bits = 2),
    CONFIG("8K clusters, 8-bit refcounts", .cluster_bytes = 8192, .refcount_bits = 8),
    CONFIG("2K clusters, 4-bit refcounts", .cluster_bytes = 2048, .refcount_bits = 4),
    CONFIG("4K clusters, 32-bit refcounts", .cluster_bytes = 4096, .refcount_bits = 32),
    CONFIG("version 2", .version = 2, .cluster_bytes = 4096),
    CONFIG("extended L2, 16K clusters", .cluster_bytes = 16384, .extended_l2 = true),
    CONFIG("extended L2, 64K clusters", .extended_l2 = true),
    CONFIG("lazy refcounts", .cluster_bytes = 4096, .lazy_refcounts = true),
    CONFIG("lazy refcounts, extended L2", .cluster_bytes = 16384, .lazy_refcounts = true, .extended_l2 = true),
    CONFIG("zstd, 2M clusters", .cluster_bytes = 2 * 1024 * 1024, .compression = IMAGE_ZSTD),
};
const unsigned model_config_count = ARRAY_SIZE(model_configs);

uint64_t model_random(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15ull); /* splitmix64 */
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

uint64_t model_below(uint64_t *state, uint64_t n)
{
    return model_random(state) % n;
}

uint64_t model_seed(void)
{
    const char *text = getenv("FONDA_TEST_SEED");
    struct timespec ts;
    clock_gettime(CLOCK_REALTIME, &ts);
    uint64_t seed = text ? strtoull(text, NULL, 0) : (uint64_t)ts.tv_sec * 1000003u + (uint64_t)ts.tv_nsec;
    printf("# seed %llu\n", (unsigned long long)seed);
    return seed;
}

static unsigned tap_count, tap_failed;

void tap(bool ok, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    printf("%sok %u - ", ok ? "" : "not ", ++tap_count);
    vprintf(fmt, args);
    printf("\n");
    va_end(args);
    fflush(stdout);
    tap_failed += !ok;
}

int tap_end(void)
{
    printf("1..%u\n", tap_count);
    return tap_failed ? 1 : 0;
}

void model_op_random(uint64_t *state, uint64_t size, struct model_op *op)
{
    *op = (struct model_op){.op = BLK_WRITE};
    uint64_t dice = model_below(state, 10);
    if (dice >= 8) {
        op->op = BLK_WRITE_ZEROES;
        op->flags = model_below(state, 2) ? BLK_REQ_UNMAP : 0;
    } else if (dice == 7) {
        op->op = BLK_DISCARD;
    }
    /* Mostly small, now and then large; mostly whole sectors or more, now and then odd bytes. */
    uint64_t scale = size >> (2 + model_below(state, 12));
    uint64_t align = (const uint64_t[]){512, 4096, 65536, 1}[model_below(state, 4)];
    align = align > size / 4 ? 512 : align;
    op->bytes = MIN(align_up(1 + model_below(state, MAX(scale, 1u)), align), size);
    op->offset = align_down(model_below(state, size - op->bytes + 1), align);
    if (op->op == BLK_WRITE) {
        op->data = malloc(op->bytes + 8);
        for (uint64_t i = 0; op->data && i < op->bytes; i += 8) {
            uint64_t v = model_random(state);
            memcpy(op->data + i, &v, 8);
        }
    }
}

void model_op_done(struct model_op *op)
{
    free(op->data);
}

int model_op_run(struct blk_node *node, const struct model_op *op)
{
    switch (op->op) {
    case BLK_WRITE: {
        /* In two elements, so that vectors are cut. */
        uint64_t half = op->bytes / 3;
        struct iovec iov[] = {{op->data, half}, {op->data + half, op->bytes - half}};
        return blk_pwritev(node, op->offset, iov, 2, 0);
    }
    case BLK_WRITE_ZEROES: return blk_write_zeroes(node, op->offset, op->bytes, op->flags);
    default: return blk_discard(node, op->offset, op->bytes);
    }
}

bool model_op_apply(struct blk_node *node, const struct model_op *op, uint8_t *model)
{
    static const uint8_t zeroes[BLK_SECTOR_SIZE];
    uint8_t *at = model + op->offset;
    if (op->op == BLK_WRITE) {
        memcpy(at, op->data, op->bytes);
        return true;
    }
    if (op->op == BLK_WRITE_ZEROES) {
        memset(at, 0, op->bytes);
        return true;
    }
    uint8_t *now = malloc(op->bytes + 1);
    bool good = now && blk_pread(node, op->offset, now, op->bytes) == 0;
    for (uint64_t i = 0; good && i < op->bytes;) {
        uint64_t n = MIN(BLK_SECTOR_SIZE - (op->offset + i) % BLK_SECTOR_SIZE, op->bytes - i);
        good = memcmp(now + i, at + i, n) == 0 || memcmp(now + i, zeroes, n) == 0;
        i += n;
    }
    if (good) {
        memcpy(at, now, op->bytes);
    }
    free(now);
    return good;
}
