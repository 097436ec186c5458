/*
 * Filters and sort orders of lists, as texts:
 *
 *     state=running and (memory>=1G or labels.team=web) and not name~test
 *
 * Comparisons: = != < <= > >= and ~ (a text contains, a list has). Values are words, or "in quotes". Members
 * are those of the object's table; labels.NAME reaches into maps.
 */
#ifndef FONDA_CORE_FILTER_H
#define FONDA_CORE_FILTER_H

#include "core/field.h"
#include "core/store/store.h"

#define FILTER_TEXT_MAX  2048
#define FILTER_DEPTH_MAX 16

struct filter {
    struct store_node nodes[STORE_NODES_MAX];
    unsigned count;
    char text[2 * FILTER_TEXT_MAX]; /* paths and values of the nodes */
    size_t used;
};

/* Reads text into filter; "" is a filter that lets everything pass. */
int filter_parse(const struct object_type *type, const char *text, struct filter *ret_filter,
                 struct fault *fault);
/* Also requires `path` to be one of texts[0..count): for callers who may see only some objects. */
int filter_restrict(struct filter *filter, const char *path, const char *const *texts, unsigned count,
                    struct fault *fault);
/* "-memory,name" into query->sort; the names point into the table. */
int filter_sort(const struct object_type *type, const char *text, struct store_query *query,
                struct fault *fault);

#endif
