/*
 * Memory that lives as long as the object it was decoded for: one free for all of it.
 *
 * Out of memory ends the process with a message: callers run before anything outside of the process was made.
 */
#ifndef FONDA_CONTAINER_ARENA_H
#define FONDA_CONTAINER_ARENA_H

#include <stddef.h>

struct arena_block;

struct arena {
    struct arena_block *blocks;
};

void *arena_alloc(struct arena *arena, size_t size);               /* zeroed, aligned to 16 */
void *arena_array(struct arena *arena, size_t count, size_t size); /* zeroed; count may be 0 */
char *arena_strdup(struct arena *arena, const char *text);
char *arena_printf(struct arena *arena, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void arena_free(struct arena *arena); /* everything; the arena can be used again */

#endif
