/*
 * Typed access to members of JSON objects, over jansson.
 *
 * Every getter leaves *ret untouched and returns 0 when the member is absent or null, and -EINVAL with a text
 * that names the member ("linux.resources.pids.limit must be an integer") when it has another type. `where`
 * is the path of the object, "" at the top. Strings are borrowed from the tree.
 *
 * Integers: jansson holds 64 signed bits, while OCI uses all 64 unsigned ones (RLIM_INFINITY, seccomp
 * arguments). json_parse() therefore folds integers from 2^63 to 2^64 - 1 into the negative number with the
 * same bits, which json_u64() folds back.
 */
#ifndef FONDA_CONTAINER_JSON_H
#define FONDA_CONTAINER_JSON_H

#include "base/err.h"
#include "container/arena.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#define JSON_TEXT_MAX (16u << 20) /* bytes of a config.json or state file */

json_t *json_parse(const char *text, size_t size, const char *name, struct err *err); /* NULL: err says why */

/* Reads path below dirfd as a whole, NUL-terminated, of at most JSON_TEXT_MAX bytes. The caller frees
 * *ret_text. */
int file_read_all(int dirfd, const char *path, char **ret_text, size_t *ret_size, struct err *err);

int json_str(json_t *object, const char *where, const char *key, const char **ret, struct err *err);
int json_flag(json_t *object, const char *where, const char *key, bool *ret, struct err *err);
int json_i64(json_t *object, const char *where, const char *key, int64_t *ret, struct err *err);
int json_u64(json_t *object, const char *where, const char *key, uint64_t *ret, struct err *err);
int json_u32(json_t *object, const char *where, const char *key, uint32_t *ret,
             struct err *err); /* range checked */
int json_obj(json_t *object, const char *where, const char *key, json_t **ret, struct err *err);
int json_arr(json_t *object, const char *where, const char *key, json_t **ret, struct err *err);

/* An array of strings, NULL-terminated, in the arena; *ret_count may be NULL. */
int json_strv(json_t *object, const char *where, const char *key, struct arena *arena, const char ***ret,
              size_t *ret_count, struct err *err);

#endif
