/*
 * Lists and logs of the SQLite store. A filter becomes a WHERE clause in which every path and value is a
 * bound parameter: no text of a caller's ever is part of the SQL.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/util.h"
#include "core/store/sqlite_int.h"

#define SQL_MAX 8192

struct sql {
    char text[SQL_MAX];
    size_t len;
    bool overflow;
    int params;
};

static void add(struct sql *sql, const char *text)
{
    size_t len = strlen(text);
    if (len >= sizeof(sql->text) - sql->len) {
        sql->overflow = true;
        return;
    }
    memcpy(sql->text + sql->len, text, len + 1);
    sql->len += len;
}

static const char *const comparisons[] = {
    [STORE_OP_EQ] = " IS ", [STORE_OP_NE] = " IS NOT ", [STORE_OP_LT] = " < ",
    [STORE_OP_LE] = " <= ", [STORE_OP_GT] = " > ",      [STORE_OP_GE] = " >= ",
};

/* The member, as SQL: parameters are numbered in the order in which bind_node() binds them. */
static void add_node(struct sql *sql, const struct store_node *nodes, unsigned at)
{
    const struct store_node *node = &nodes[at];
    switch (node->op) {
    case STORE_OP_AND:
    case STORE_OP_OR:
        add(sql, "(");
        add_node(sql, nodes, node->left);
        add(sql, node->op == STORE_OP_AND ? " AND " : " OR ");
        add_node(sql, nodes, node->right);
        add(sql, ")");
        return;
    case STORE_OP_NOT:
        add(sql, "(NOT ");
        add_node(sql, nodes, node->left);
        add(sql, ")");
        return;
    case STORE_OP_HAS: {
        char text[256];
        snprintf(text, sizeof(text),
                 "(CASE json_type(data, ?%d) WHEN 'array' THEN EXISTS (SELECT 1 FROM json_each(data, ?%d)"
                 " WHERE value = ?%d) WHEN 'text' THEN instr(json_extract(data, ?%d), ?%d) > 0 ELSE 0 END)",
                 sql->params + 1, sql->params + 1, sql->params + 2, sql->params + 1, sql->params + 2);
        add(sql, text);
        break;
    }
    default: {
        char text[96];
        snprintf(text, sizeof(text), "coalesce(json_extract(data, ?%d)%s?%d, 0)", sql->params + 1,
                 comparisons[node->op], sql->params + 2);
        add(sql, text);
        break;
    }
    }
    sql->params += 2;
}

/* "labels.team" as a JSON path of SQLite's: $."labels"."team". Names have no quotes (callers check). */
static void bind_path(sqlite3_stmt *stmt, int at, const char *path)
{
    char text[512] = "$";
    size_t len = 1;
    while (*path && len < sizeof(text) - 4) {
        size_t part = strcspn(path, ".");
        part = MIN(part, sizeof(text) - 4 - len);
        len += (size_t)snprintf(text + len, sizeof(text) - len, ".\"%.*s\"", (int)part, path);
        path += part;
        path += *path == '.';
    }
    sqlite3_bind_text(stmt, at, text, -1, SQLITE_TRANSIENT);
}

static void bind_node(sqlite3_stmt *stmt, const struct store_node *nodes, unsigned at, int *params)
{
    const struct store_node *node = &nodes[at];
    if (node->op == STORE_OP_AND || node->op == STORE_OP_OR || node->op == STORE_OP_NOT) {
        bind_node(stmt, nodes, node->left, params);
        if (node->op != STORE_OP_NOT) {
            bind_node(stmt, nodes, node->right, params);
        }
        return;
    }
    bind_path(stmt, ++*params, node->path);
    if (node->type == STORE_TEXT) {
        sqlite3_bind_text(stmt, ++*params, node->text, -1, SQLITE_STATIC);
    } else {
        sqlite3_bind_int64(stmt, ++*params, node->number);
    }
}

static int prepare(struct store *store, const char *kind, const struct store_query *query, bool counting,
                   sqlite3_stmt **ret_stmt, struct err *err)
{
    struct sql sql = {.params = 1};
    add(&sql, counting ? "SELECT count(*) FROM object WHERE kind = ?1"
                       : "SELECT name, version, data FROM object WHERE kind = ?1");
    if (query->count) {
        add(&sql, " AND ");
        add_node(&sql, query->nodes, query->count - 1);
    }
    int sort_at = sql.params;
    if (!counting) {
        add(&sql, " ORDER BY ");
        for (unsigned i = 0; i < query->sort_count; i++) {
            char text[64];
            snprintf(text, sizeof(text), "json_extract(data, ?%d)%s, ", ++sql.params,
                     query->sort[i].descending ? " DESC" : "");
            add(&sql, text);
        }
        char text[64];
        snprintf(text, sizeof(text), "name LIMIT ?%d OFFSET ?%d", sql.params + 1, sql.params + 2);
        add(&sql, text);
    }
    if (sql.overflow) {
        return err_set(err, -E2BIG, "the filter is too long");
    }
    sqlite3_stmt *stmt = NULL;
    if (sqlite3_prepare_v2(store->db, sql.text, -1, &stmt, NULL) != SQLITE_OK) {
        return store_sql_err(store, err, "cannot list");
    }
    sqlite3_bind_text(stmt, 1, kind, -1, SQLITE_STATIC);
    int params = 1;
    if (query->count) {
        bind_node(stmt, query->nodes, query->count - 1, &params);
    }
    if (!counting) {
        for (unsigned i = 0; i < query->sort_count; i++) {
            bind_path(stmt, ++sort_at, query->sort[i].path);
        }
        sqlite3_bind_int64(stmt, sql.params + 1, (int64_t)MIN(query->limit, INT64_MAX));
        sqlite3_bind_int64(stmt, sql.params + 2, (int64_t)MIN(query->offset, INT64_MAX));
    }
    *ret_stmt = stmt;
    return 0;
}

static int count_rows(struct store *store, const char *kind, const struct store_query *query,
                      uint64_t *ret_total, struct err *err)
{
    sqlite3_stmt *stmt = NULL;
    int rc = prepare(store, kind, query, true, &stmt, err);
    if (rc < 0) {
        return rc;
    }
    if (sqlite3_step(stmt) == SQLITE_ROW) {
        *ret_total = (uint64_t)sqlite3_column_int64(stmt, 0);
    } else {
        rc = store_sql_err(store, err, "cannot count");
    }
    sqlite3_finalize(stmt);
    return rc;
}

int store_list(struct store *store, const char *kind, const struct store_query *query, store_row_fn *row_fn,
               void *arg, uint64_t *ret_total, struct err *err)
{
    sqlite3_stmt *stmt = NULL;
    int rc = 0;
    uint64_t rows = 0;
    if (query->limit) {
        rc = prepare(store, kind, query, false, &stmt, err);
        if (rc < 0) {
            return rc;
        }
        int got;
        while ((got = sqlite3_step(stmt)) == SQLITE_ROW) {
            struct store_row row = {(const char *)sqlite3_column_text(stmt, 0),
                                    (const char *)sqlite3_column_text(stmt, 2),
                                    (uint64_t)sqlite3_column_int64(stmt, 1)};
            rows++;
            if (!row_fn(arg, &row)) {
                got = SQLITE_DONE;
                break;
            }
        }
        if (got != SQLITE_DONE) {
            rc = store_sql_err(store, err, "cannot list");
        }
        sqlite3_finalize(stmt);
    }
    if (rc == 0 && ret_total) {
        if (query->limit && rows < query->limit && (rows || !query->offset)) {
            *ret_total = query->offset + rows; /* the last page: nothing to count */
        } else {
            rc = count_rows(store, kind, query, ret_total, err);
        }
    }
    return rc;
}

/* ---- logs ---- */

/* Numbers of a log go on behind what was trimmed: its counter is a row of its own. */
static int next_seq(struct store *store, const char *log, uint64_t *ret_seq, struct err *err)
{
    static const char text[] =
        "INSERT INTO counter VALUES (?1, 1) ON CONFLICT (name) DO UPDATE SET value = value + 1"
        " RETURNING value";
    sqlite3_stmt *stmt = NULL;
    if (sqlite3_prepare_v2(store->db, text, -1, &stmt, NULL) != SQLITE_OK) {
        return store_sql_err(store, err, "cannot write a log");
    }
    sqlite3_bind_text(stmt, 1, log, -1, SQLITE_STATIC);
    int rc = 0;
    if (sqlite3_step(stmt) == SQLITE_ROW) {
        *ret_seq = (uint64_t)sqlite3_column_int64(stmt, 0);
    } else {
        rc = store_sql_err(store, err, "cannot write a log");
    }
    sqlite3_finalize(stmt);
    return rc;
}

int store_append(struct store *store, const char *log, const char *json, uint64_t *ret_seq, struct err *err)
{
    bool own = !store->in_txn;
    int rc = own ? store_begin(store, err) : 0;
    uint64_t seq = 0;
    if (rc == 0) {
        rc = next_seq(store, log, &seq, err);
        sqlite3_stmt *stmt = rc == 0 ? store_stmt(store, STMT_APPEND, err) : NULL;
        if (stmt) {
            sqlite3_bind_text(stmt, 1, log, -1, SQLITE_STATIC);
            sqlite3_bind_int64(stmt, 2, (int64_t)seq);
            sqlite3_bind_text(stmt, 3, json, -1, SQLITE_STATIC);
            rc = sqlite3_step(stmt) == SQLITE_DONE ? 0 : store_sql_err(store, err, "cannot write a log");
            sqlite3_reset(stmt);
        } else if (rc == 0) {
            rc = -EIO;
        }
        if (own && rc == 0) {
            rc = store_commit(store, err);
        } else if (own) {
            store_rollback(store);
        }
    }
    if (rc == 0 && ret_seq) {
        *ret_seq = seq;
    }
    return rc;
}

int store_log(struct store *store, const char *log, uint64_t after, unsigned limit, store_row_fn *row_fn,
              void *arg, struct err *err)
{
    sqlite3_stmt *stmt = store_stmt(store, STMT_LOG, err);
    if (!stmt) {
        return -EIO;
    }
    sqlite3_bind_text(stmt, 1, log, -1, SQLITE_STATIC);
    sqlite3_bind_int64(stmt, 2, (int64_t)MIN(after, INT64_MAX));
    sqlite3_bind_int(stmt, 3, (int)MIN(limit, 1000000u));
    int got;
    while ((got = sqlite3_step(stmt)) == SQLITE_ROW) {
        struct store_row row = {log, (const char *)sqlite3_column_text(stmt, 1),
                                (uint64_t)sqlite3_column_int64(stmt, 0)};
        if (!row_fn(arg, &row)) {
            got = SQLITE_DONE;
            break;
        }
    }
    int rc = got == SQLITE_DONE ? 0 : store_sql_err(store, err, "cannot read a log");
    sqlite3_reset(stmt);
    return rc;
}

uint64_t store_log_last(struct store *store, const char *log)
{
    sqlite3_stmt *stmt = store_stmt(store, STMT_LOG_LAST, NULL);
    uint64_t last = 0;
    if (stmt) {
        sqlite3_bind_text(stmt, 1, log, -1, SQLITE_STATIC);
        if (sqlite3_step(stmt) == SQLITE_ROW) {
            last = (uint64_t)sqlite3_column_int64(stmt, 0);
        }
        sqlite3_reset(stmt);
    }
    return last;
}

int store_log_trim(struct store *store, const char *log, uint64_t keep, struct err *err)
{
    sqlite3_stmt *stmt = store_stmt(store, STMT_LOG_TRIM, err);
    if (!stmt) {
        return -EIO;
    }
    sqlite3_bind_text(stmt, 1, log, -1, SQLITE_STATIC);
    sqlite3_bind_int64(stmt, 2, (int64_t)MIN(keep, INT64_MAX));
    int rc = sqlite3_step(stmt) == SQLITE_DONE ? 0 : store_sql_err(store, err, "cannot trim a log");
    sqlite3_reset(stmt);
    return rc;
}
