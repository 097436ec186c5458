/*
 * A cache of slices of metadata tables (L2 tables, refcount blocks), found by their offset in the file.
 * Written back by commit.c only; dirty slices are never evicted, and commits come early enough to bound them.
 */
#include <errno.h>
#include <string.h>

#include "block/qcow2/qcow2_int.h"

/* Slices that go to the file in one request when they are adjacent. */
#define WRITE_BATCH 64u

int q2_cache_init(struct q2_cache *cache, struct blk_node *file, uint32_t slice_bytes, uint32_t bytes)
{
    *cache = (struct q2_cache){.file = file, .slice_bytes = slice_bytes, .count_max = bytes / slice_bytes};
    unsigned buckets = 64;
    while (buckets < cache->count_max) {
        buckets *= 2;
    }
    co_queue_init(&cache->loaded);
    cache->bucket_mask = buckets - 1;
    cache->buckets = calloc(buckets, sizeof(struct q2_slice *));
    return cache->buckets ? 0 : -ENOMEM;
}

static struct q2_slice **bucket(struct q2_cache *cache, uint64_t offset)
{
    uint64_t h = offset / cache->slice_bytes * 0x9e3779b97f4a7c15ull;
    return &cache->buckets[(h >> 32) & cache->bucket_mask];
}

static void lru_remove(struct q2_cache *cache, struct q2_slice *slice)
{
    *(slice->newer ? &slice->newer->older : &cache->newest) = slice->older;
    *(slice->older ? &slice->older->newer : &cache->oldest) = slice->newer;
}

static void lru_add(struct q2_cache *cache, struct q2_slice *slice)
{
    slice->newer = NULL;
    slice->older = cache->newest;
    *(cache->newest ? &cache->newest->newer : &cache->oldest) = slice;
    cache->newest = slice;
}

static void slice_free(struct q2_cache *cache, struct q2_slice *slice)
{
    struct q2_slice **p = bucket(cache, slice->offset);
    while (*p != slice) {
        p = &(*p)->hash_next;
    }
    *p = slice->hash_next;
    lru_remove(cache, slice);
    cache->count--;
    cache->dirty_count -= slice->dirty;
    free(slice->data);
    free(slice);
}

void q2_cache_done(struct q2_cache *cache)
{
    while (cache->oldest) {
        slice_free(cache, cache->oldest);
    }
    free(cache->buckets);
    cache->buckets = NULL;
}

static struct q2_slice *find(struct q2_cache *cache, uint64_t offset)
{
    struct q2_slice *slice = *bucket(cache, offset);
    while (slice && slice->offset != offset) {
        slice = slice->hash_next;
    }
    return slice;
}

static struct q2_slice *slice_new(struct q2_cache *cache, uint64_t offset)
{
    if (cache->count >= cache->count_max) {
        struct q2_slice *victim = cache->oldest;
        while (victim && (victim->dirty || victim->loading)) {
            victim = victim->newer;
        }
        if (victim) {
            slice_free(cache, victim);
        }
    }
    struct q2_slice *slice = calloc(1, sizeof(*slice));
    if (!slice || posix_memalign((void **)&slice->data, Q2_SLICE_BYTES_MAX, cache->slice_bytes) != 0) {
        free(slice);
        return NULL;
    }
    slice->offset = offset;
    struct q2_slice **head = bucket(cache, offset);
    slice->hash_next = *head;
    *head = slice;
    lru_add(cache, slice);
    cache->count++;
    return slice;
}

int q2_cache_get(struct q2_cache *cache, uint64_t offset, struct q2_slice **ret_slice)
{
    struct q2_slice *slice;
    while ((slice = find(cache, offset)) && slice->loading) {
        co_queue_wait(&cache->loaded, cache->file->loop);
    }
    if (!slice) {
        slice = slice_new(cache, offset);
        if (!slice) {
            return -ENOMEM;
        }
        slice->loading = true;
        int error = blk_pread(cache->file, offset, slice->data, cache->slice_bytes);
        slice->loading = false;
        co_queue_wake_all(&cache->loaded, cache->file->loop);
        if (error) {
            slice_free(cache, slice);
            return error;
        }
    } else if (cache->newest != slice) {
        lru_remove(cache, slice);
        lru_add(cache, slice);
    }
    *ret_slice = slice;
    return 0;
}

void q2_cache_dirty(struct q2_cache *cache, struct q2_slice *slice)
{
    cache->dirty_count += !slice->dirty;
    slice->dirty = true;
}

int q2_cache_make(struct q2_cache *cache, uint64_t offset, uint64_t bytes)
{
    for (uint64_t at = 0; at < bytes; at += cache->slice_bytes) {
        struct q2_slice *slice = find(cache, offset + at);
        if (!slice && !(slice = slice_new(cache, offset + at))) {
            q2_cache_drop(cache, offset, at);
            return -ENOMEM;
        }
        memset(slice->data, 0, cache->slice_bytes);
        q2_cache_dirty(cache, slice);
        slice->fresh = true;
    }
    return 0;
}

void q2_cache_drop(struct q2_cache *cache, uint64_t offset, uint64_t bytes)
{
    for (uint64_t at = 0; at < bytes; at += cache->slice_bytes) {
        struct q2_slice *slice = find(cache, offset + at);
        if (slice && !slice->loading) {
            slice_free(cache, slice);
        }
    }
}

static int by_offset(const void *a, const void *b)
{
    const struct q2_slice *x = *(struct q2_slice *const *)a, *y = *(struct q2_slice *const *)b;
    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

static int write_run(struct q2_cache *cache, struct q2_slice **run, unsigned count)
{
    struct iovec iov[WRITE_BATCH];
    for (unsigned i = 0; i < count; i++) {
        iov[i] = (struct iovec){run[i]->data, cache->slice_bytes};
    }
    int error = blk_pwritev(cache->file, run[0]->offset, iov, count, 0);
    for (unsigned i = 0; !error && i < count; i++) {
        run[i]->dirty = run[i]->fresh = false;
        cache->dirty_count--;
    }
    return error;
}

int q2_cache_write(struct q2_cache *cache, bool only_fresh)
{
    if (!cache->dirty_count) {
        return 0;
    }
    auto_free struct q2_slice **list = calloc(cache->dirty_count, sizeof(struct q2_slice *));
    if (!list) {
        return -ENOMEM;
    }
    size_t count = 0;
    for (struct q2_slice *slice = cache->newest; slice; slice = slice->older) {
        if (slice->dirty && (slice->fresh || !only_fresh)) {
            list[count++] = slice;
        }
    }
    qsort(list, count, sizeof(struct q2_slice *), by_offset);
    int error = 0;
    for (size_t i = 0; !error && i < count;) {
        unsigned n = 1;
        while (i + n < count && n < WRITE_BATCH &&
               list[i + n]->offset == list[i]->offset + n * cache->slice_bytes) {
            n++;
        }
        error = write_run(cache, list + i, n);
        i += n;
    }
    return error;
}
