/*
 * Inside core/store: what the SQLite store's files share.
 */
#ifndef FONDA_CORE_STORE_SQLITE_INT_H
#define FONDA_CORE_STORE_SQLITE_INT_H

#include <sqlite3.h>

#include "core/store/store.h"

enum store_stmt {
    STMT_GET,
    STMT_INSERT,
    STMT_UPDATE,
    STMT_RENAME,
    STMT_DELETE,
    STMT_NEXT_VERSION,
    STMT_REFERRERS,
    STMT_LINK,
    STMT_UNLINK,
    STMT_APPEND,
    STMT_LOG,
    STMT_LOG_LAST,
    STMT_LOG_TRIM,
    STMT_LEASE,
    STMT_LEASE_DROP,
    STMT_COUNT,
};

struct store_pending {
    char *kind, *name;
    uint64_t version;
};

struct store {
    sqlite3 *db;
    int lock_fd;
    bool in_txn;
    sqlite3_stmt *stmts[STMT_COUNT];
    struct {
        store_watch_fn *fn;
        void *arg;
    } watches[STORE_WATCHES_MAX];
    unsigned watch_count;
    struct store_pending *pending; /* changes of the running transaction, for the watches */
    unsigned pending_count, pending_room;
};

/* SQLite's last error as an errno, with its words. */
int store_sql_err(struct store *store, struct err *err, const char *what);
/* A statement of the table, reset and without values; NULL: err is set. */
sqlite3_stmt *store_stmt(struct store *store, enum store_stmt which, struct err *err);
/* Creates tables, or changes those of older versions. Errors: -EPROTO: they are of a newer one. */
int store_migrate(struct store *store, struct err *err);

#endif
