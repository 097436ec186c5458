/*
 * CPU rows about memory: dependent loads over growing footprints, copies, string scanning.
 */
#include "bench.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

struct node {
    struct node *next;
    char pad[56];
};

/*
 * One cycle through all n nodes (n a power of two), in an order no prefetcher guesses: a linear congruential
 * sequence of full period (Hull and Dobell 1962: increment odd, multiplier 1 mod 4).
 */
static struct node *make_cycle(size_t bytes)
{
    size_t n = bytes / sizeof(struct node), mask = n - 1;
    struct node *nodes = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (nodes == MAP_FAILED) {
        bench_fail("memory");
    }
    /* 4 KiB pages in every column: whether huge pages are to be had depends on the machine's history. */
    madvise(nodes, bytes, MADV_NOHUGEPAGE);
    for (size_t i = 0; i < n; i++) {
        nodes[i].next = &nodes[(i * 2862933555777941757ULL + 3037000493ULL) & mask];
    }
    return nodes;
}

static uint64_t chase(size_t bytes, uint64_t steps)
{
    struct node *nodes = make_cycle(bytes), *p = nodes;
    size_t n = bytes / sizeof(struct node);
    steps = bench_scaled(steps);
    bench_start();
    for (uint64_t i = 0; i < steps; i++) {
        p = p->next;
    }
    bench_stop();
    /* Full period: going on to a multiple of n comes back to the start. Checked where that is cheap. */
    if (n <= 1 << 14) {
        struct node *q = p;
        for (uint64_t i = steps % n; i % n; i++) {
            q = q->next;
        }
        if (q != nodes) {
            bench_fail("cycle broken");
        }
    }
    uint64_t index = (uint64_t)(p - nodes);
    munmap(nodes, bytes);
    return index;
}

static uint64_t run_chase_l1(void)
{
    return chase(16 << 10, 100000007);
}

static uint64_t run_chase_l2(void)
{
    return chase(512 << 10, 30000000);
}

static uint64_t run_chase_16m(void)
{
    return chase(16 << 20, 1500007);
}

static uint64_t run_chase_256m(void)
{
    return chase(256 << 20, 1000007);
}

/* Through a volatile pointer, so that the compiler neither inlines nor drops the call. */
static void *(*volatile copy_fn)(void *, const void *, size_t) = memcpy;

static uint64_t run_memcpy_small(void)
{
    static char src[8192], dst[8192];
    static struct {
        uint16_t from, to, size;
    } plan[1024];
    uint64_t rng = 21, rounds = bench_scaled(30000);
    for (size_t i = 0; i < sizeof(src); i++) {
        src[i] = (char)bench_random(&rng);
    }
    for (size_t i = 0; i < 1024; i++) {
        plan[i].from = bench_random(&rng) >> 52;
        plan[i].to = bench_random(&rng) >> 52;
        plan[i].size = bench_random(&rng) >> 57;
    }
    bench_start();
    for (uint64_t r = 0; r < rounds; r++) {
        for (size_t i = 0; i < 1024; i++) {
            copy_fn(dst + plan[i].to, src + plan[i].from, plan[i].size);
        }
    }
    bench_stop();
    return bench_hash(dst, sizeof(dst));
}

static uint64_t run_memcpy_large(void)
{
    size_t size = 4 << 20;
    char *a = malloc(size + 64), *b = malloc(size + 64);
    uint64_t rng = 22, rounds = bench_scaled(250);
    if (!a || !b) {
        bench_fail("memory");
    }
    for (size_t i = 0; i < size; i++) {
        a[i] = (char)bench_random(&rng);
    }
    memset(b, 0, size);
    bench_start();
    for (uint64_t r = 0; r < rounds; r++) {
        copy_fn(b + (r & 15), a, size);
        copy_fn(a, b + (r & 15), size);
    }
    bench_stop();
    return bench_hash(a, size);
}

static void rep_movsb(void *dst, const void *src, size_t size)
{
    __asm__ volatile("rep movsb" : "+D"(dst), "+S"(src), "+c"(size) : : "memory");
}

static uint64_t run_rep_movsb(void)
{
    static char src[65536], dst[65536 + 4096];
    uint64_t rng = 23, rounds = bench_scaled(3000);
    for (size_t i = 0; i < sizeof(src); i++) {
        src[i] = (char)bench_random(&rng);
    }
    memset(dst, 0, sizeof(dst));
    bench_start();
    for (uint64_t r = 0; r < rounds; r++) {
        rep_movsb(dst + (r & 63) * 61, src, sizeof(src));
    }
    bench_stop();
    size_t last = ((rounds - 1) & 63) * 61;
    if (memcmp(dst + last, src, sizeof(src)) != 0) {
        bench_fail("copy differs");
    }
    return bench_hash(dst + last, sizeof(src));
}

static size_t __attribute__((noinline, optimize("no-tree-loop-distribute-patterns")))
own_strlen(const char *s)
{
    const char *p = s;
    while (*p) {
        p++;
    }
    return (size_t)(p - s);
}

static const char *__attribute__((noinline)) own_strchr(const char *s, char c)
{
    for (; *s != c; s++) {
        if (!*s) {
            return NULL;
        }
    }
    return s;
}

/* The loops and what they scan are the same in both rows; only who scans differs. */
static uint64_t scan(size_t (*length)(const char *), const char *(*find)(const char *, char), uint64_t rounds)
{
    static char text[65536 + 1];
    bench_text(text, sizeof(text) - 1);
    uint64_t sum = 0;
    bench_start();
    for (uint64_t r = 0; r < rounds; r++) {
        sum += length(text + (r & 63));
        for (const char *p = text; (p = find(p, '\n')); p++) {
            sum += (uint64_t)(p - text);
        }
    }
    bench_stop();
    return sum;
}

static size_t libc_length(const char *s)
{
    return strlen(s);
}

static const char *libc_find(const char *s, char c)
{
    return strchr(s, c);
}

static uint64_t run_scan(void)
{
    return scan(own_strlen, own_strchr, bench_scaled(5000));
}

static uint64_t run_scan_libc(void)
{
    return scan(libc_length, libc_find, bench_scaled(20000));
}

const struct bench_row bench_memory_rows[] = {
    {"chase-l1", BENCH_CPU, run_chase_l1, NULL, "dependent loads over 16 KiB"},
    {"chase-l2", BENCH_CPU, run_chase_l2, NULL, "dependent loads over 512 KiB"},
    {"chase-16m", BENCH_CPU, run_chase_16m, NULL, "dependent random loads over 16 MiB, 4 KiB pages"},
    {"chase-256m", BENCH_CPU, run_chase_256m, NULL, "dependent random loads over 256 MiB, 4 KiB pages"},
    {"memcpy-small", BENCH_CPU, run_memcpy_small, NULL, "libc memcpy of 0 to 127 bytes"},
    {"memcpy-large", BENCH_CPU, run_memcpy_large, NULL, "libc memcpy of 4 MiB"},
    {"rep-movsb", BENCH_CPU, run_rep_movsb, NULL, "rep movsb of 64 KiB"},
    {"scan", BENCH_CPU, run_scan, NULL, "strlen and strchr as byte loops"},
    {"scan-libc", BENCH_CPU, run_scan_libc, NULL, "strlen and strchr of libc"},
    {NULL, BENCH_CPU, NULL, NULL, NULL},
};
