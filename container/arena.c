#include "container/arena.h"

#include "base/log.h"
#include "base/util.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define ARENA_BLOCK_BYTES (16 * KiB)

struct arena_block {
    struct arena_block *next;
    size_t used;
    size_t size;
    _Alignas(16) unsigned char data[];
};

static void *arena_die(void)
{
    log_error("out of memory");
    _exit(125);
}

void *arena_alloc(struct arena *arena, size_t size)
{
    size_t need;
    if (__builtin_add_overflow(size, 15, &need)) {
        return arena_die();
    }
    need &= ~(size_t)15;
    struct arena_block *block = arena->blocks;
    if (!block || block->size - block->used < need) {
        size_t bytes = MAX(need, ARENA_BLOCK_BYTES);
        block = calloc(1, sizeof(*block) + bytes);
        if (!block) {
            return arena_die();
        }
        block->size = bytes;
        block->next = arena->blocks;
        arena->blocks = block;
    }
    void *p = block->data + block->used;
    block->used += need;
    return p;
}

void *arena_array(struct arena *arena, size_t count, size_t size)
{
    size_t bytes;
    if (__builtin_mul_overflow(count, size, &bytes)) {
        return arena_die();
    }
    return arena_alloc(arena, bytes ? bytes : 1);
}

char *arena_strdup(struct arena *arena, const char *text)
{
    size_t n = strlen(text) + 1;
    return memcpy(arena_alloc(arena, n), text, n);
}

char *arena_printf(struct arena *arena, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    char *text = NULL;
    int n = vasprintf(&text, fmt, ap);
    va_end(ap);
    if (n < 0) {
        return arena_die();
    }
    char *copy = arena_strdup(arena, text);
    free(text);
    return copy;
}

void arena_free(struct arena *arena)
{
    while (arena->blocks) {
        struct arena_block *next = arena->blocks->next;
        free(arena->blocks);
        arena->blocks = next;
    }
}
