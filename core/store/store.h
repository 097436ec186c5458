/*
 * What fondad remembers, behind a small contract: objects with versions, append-only logs, watches and
 * leases. sqlite.c keeps it in one directory of one host; a clustered store implements the same functions.
 *
 * An object is a JSON text under (kind, name). Its version counts its changes and never goes back, not even
 * when the object is deleted and made again. References between objects are kept by the store: what is
 * referred to can't be deleted.
 *
 * Invariants
 *   1. One process at a time has a store directory open (a lock file says who).
 *   2. When a function that changes something returns 0 outside a transaction, the change survives a power
 * cut; inside one, when store_commit() returns 0.
 *   3. Watches are told of committed changes only, in the order of the commits.
 *
 * Threads: the caller serializes all calls on one store.
 */
#ifndef FONDA_CORE_STORE_STORE_H
#define FONDA_CORE_STORE_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct store;

#define STORE_DATA_MAX    (1024u * 1024) /* bytes of one object's JSON */
#define STORE_VERSION_ANY UINT64_MAX     /* whatever is there */
#define STORE_VERSION_NEW 0              /* nothing may be there */

/* Opens (and makes, or brings up to date) the store in dir. Errors: -EBUSY (another process has it, named in
 * the text), -EPROTO (made by a newer Fonda), -EIO (damaged), those of files. */
int store_open(const char *dir, struct store **ret_store, struct err *err);
void store_close(struct store *store);

/* Changes between begin and commit are made all or not at all. No nesting. */
int store_begin(struct store *store, struct err *err);
int store_commit(struct store *store, struct err *err);
void store_rollback(struct store *store); /* does nothing outside a transaction */

/* free() the text. Errors: -ENOENT. ret_version may be NULL. */
int store_get(struct store *store, const char *kind, const char *name, char **ret_json, uint64_t *ret_version,
              struct err *err);

/* Errors: -EEXIST (STORE_VERSION_NEW and it is there), -ENOENT, -ESTALE (its version is another), -E2BIG,
 * -ENOSPC, -EIO. ret_version may be NULL. */
int store_put(struct store *store, const char *kind, const char *name, const char *json, uint64_t expected,
              uint64_t *ret_version, struct err *err);
/* The object keeps its references. Errors: as store_put; -EEXIST: the new name is taken. */
int store_rename(struct store *store, const char *kind, const char *name, const char *new_name,
                 uint64_t expected, struct err *err);
/* Errors: -ENOENT, -ESTALE, -EBUSY (referred to; the text says by what). */
int store_delete(struct store *store, const char *kind, const char *name, uint64_t expected, struct err *err);

/* From now on (kind, name) refers to (to_kind, to_name), until it is deleted or unlinked. Errors: -ENOENT. */
int store_link(struct store *store, const char *kind, const char *name, const char *to_kind,
               const char *to_name, struct err *err);
/* Drops all references from (kind, name). */
int store_unlink_all(struct store *store, const char *kind, const char *name, struct err *err);

/* ---- lists ---- */

enum store_op {
    STORE_OP_AND, /* left, right: indexes of nodes */
    STORE_OP_OR,
    STORE_OP_NOT, /* left */
    STORE_OP_EQ,  /* path, value */
    STORE_OP_NE,
    STORE_OP_LT,
    STORE_OP_LE,
    STORE_OP_GT,
    STORE_OP_GE,
    STORE_OP_HAS, /* text contains value, or a list has an item that is value */
};

enum store_value { STORE_TEXT, STORE_NUMBER, STORE_BOOL };

struct store_node {
    enum store_op op;
    unsigned left, right;
    const char *path; /* "state", "labels.team": members of the object */
    enum store_value type;
    const char *text;
    int64_t number; /* also of booleans */
};

#define STORE_NODES_MAX 64
#define STORE_SORT_MAX  4

struct store_query {
    const struct store_node *nodes; /* nodes[count - 1] is the root; a node's children come before it */
    unsigned count;                 /* 0: everything */
    struct {
        const char *path;
        bool descending;
    } sort[STORE_SORT_MAX]; /* before the name, which always decides last */
    unsigned sort_count;
    uint64_t offset, limit; /* limit 0: only count */
};

struct store_row {
    const char *name, *json; /* until the callback returns */
    uint64_t version;
};
typedef bool store_row_fn(void *arg, const struct store_row *row); /* false ends the list */

/* ret_total (may be NULL): how many match, whatever offset and limit. */
int store_list(struct store *store, const char *kind, const struct store_query *query, store_row_fn *row,
               void *arg, uint64_t *ret_total, struct err *err);

/* ---- logs: numbered records, kept in order ---- */

int store_append(struct store *store, const char *log, const char *json, uint64_t *ret_seq, struct err *err);
/* Records behind number `after`, oldest first. Each row's version is its number; its name is the log's. */
int store_log(struct store *store, const char *log, uint64_t after, unsigned limit, store_row_fn *row,
              void *arg, struct err *err);
/* The newest number of the log, 0: none ever. */
uint64_t store_log_last(struct store *store, const char *log);
/* Forgets all but the newest `keep`. */
int store_log_trim(struct store *store, const char *log, uint64_t keep, struct err *err);

/* ---- watches and leases ---- */

struct store_change {
    const char *kind, *name;
    uint64_t version; /* 0: deleted */
};
typedef void store_watch_fn(void *arg, const struct store_change *change);
#define STORE_WATCHES_MAX 8
/* fn is called behind each commit; it may not call the store. Errors: -ENOSPC. */
int store_watch(struct store *store, store_watch_fn *fn, void *arg);
void store_unwatch(struct store *store, store_watch_fn *fn, void *arg);

/* Takes or renews `name` for `owner` until now + ttl. Errors: -EBUSY: another owner has it. */
int store_lease(struct store *store, const char *name, const char *owner, uint64_t ttl_ms, struct err *err);
int store_lease_drop(struct store *store, const char *name, const char *owner, struct err *err);

#endif
