/*
 * The store on one host: SQLite in WAL mode, every commit synced. Neighbours: migrate.c (tables), query.c
 * (lists and logs).
 *
 * Versions of all objects come from one counter, so that an object that is deleted and made again never has
 * a version that someone still remembers.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>

#include "base/util.h"
#include "core/store/sqlite_int.h"

static const char *const statements[STMT_COUNT] = {
    [STMT_GET] = "SELECT data, version, id FROM object WHERE kind = ?1 AND name = ?2",
    [STMT_INSERT] = "INSERT INTO object (kind, name, version, data) VALUES (?1, ?2, ?3, ?4)",
    [STMT_UPDATE] = "UPDATE object SET version = ?3, data = ?4 WHERE kind = ?1 AND name = ?2",
    [STMT_RENAME] = "UPDATE object SET name = ?4, version = ?3 WHERE kind = ?1 AND name = ?2",
    [STMT_DELETE] = "DELETE FROM object WHERE kind = ?1 AND name = ?2",
    [STMT_NEXT_VERSION] = "UPDATE counter SET value = value + 1 WHERE name = 'version' RETURNING value",
    [STMT_REFERRERS] = "SELECT f.kind, f.name FROM reference r JOIN object f ON f.id = r.from_id"
                       " JOIN object t ON t.id = r.to_id WHERE t.kind = ?1 AND t.name = ?2 LIMIT 1",
    [STMT_LINK] = "INSERT OR IGNORE INTO reference SELECT f.id, t.id FROM object f, object t"
                  " WHERE f.kind = ?1 AND f.name = ?2 AND t.kind = ?3 AND t.name = ?4 RETURNING 1",
    [STMT_UNLINK] = "DELETE FROM reference WHERE from_id ="
                    " (SELECT id FROM object WHERE kind = ?1 AND name = ?2)",
    [STMT_APPEND] = "INSERT INTO log (log, seq, data) VALUES (?1, ?2, ?3)",
    [STMT_LOG] = "SELECT seq, data FROM log WHERE log = ?1 AND seq > ?2 ORDER BY seq LIMIT ?3",
    [STMT_LOG_LAST] = "SELECT value FROM counter WHERE name = ?1",
    [STMT_LOG_TRIM] = "DELETE FROM log WHERE log = ?1 AND seq <= "
                      "(SELECT seq FROM log WHERE log = ?1 ORDER BY seq DESC LIMIT 1 OFFSET ?2)",
    [STMT_LEASE] = "INSERT INTO lease VALUES (?1, ?2, ?3) ON CONFLICT (name) DO UPDATE SET owner = ?2,"
                   " until_ms = ?3 WHERE owner = ?2 OR until_ms <= ?4 RETURNING 1",
    [STMT_LEASE_DROP] = "DELETE FROM lease WHERE name = ?1 AND owner = ?2",
};

int store_sql_err(struct store *store, struct err *err, const char *what)
{
    int code = sqlite3_extended_errcode(store->db);
    int rc = -EIO;
    switch (code & 0xff) {
    case SQLITE_FULL: rc = -ENOSPC; break;
    case SQLITE_NOMEM: rc = -ENOMEM; break;
    case SQLITE_CONSTRAINT: rc = -EBUSY; break;
    case SQLITE_TOOBIG: rc = -E2BIG; break;
    case SQLITE_READONLY:
    case SQLITE_PERM: rc = -EROFS; break;
    default: break;
    }
    if (rc == -ENOSPC) {
        return err_set(err, rc, "%s: the disk with the state is full", what);
    }
    return err_set(err, rc, "%s: %s", what, sqlite3_errmsg(store->db));
}

sqlite3_stmt *store_stmt(struct store *store, enum store_stmt which, struct err *err)
{
    if (!store->stmts[which] &&
        sqlite3_prepare_v3(store->db, statements[which], -1, SQLITE_PREPARE_PERSISTENT, &store->stmts[which],
                           NULL) != SQLITE_OK) {
        store_sql_err(store, err, "cannot use the state");
        return NULL;
    }
    sqlite3_reset(store->stmts[which]);
    sqlite3_clear_bindings(store->stmts[which]);
    return store->stmts[which];
}

static void bind_text(sqlite3_stmt *stmt, int at, const char *text)
{
    sqlite3_bind_text(stmt, at, text, -1, SQLITE_STATIC);
}

/* Runs a statement to its end. Returns 1 when it gave a row, 0 when not. */
static int step(struct store *store, sqlite3_stmt *stmt, struct err *err)
{
    int rc = sqlite3_step(stmt);
    if (rc != SQLITE_ROW && rc != SQLITE_DONE) {
        int code = store_sql_err(store, err, "cannot change the state");
        sqlite3_reset(stmt);
        return code;
    }
    if (rc == SQLITE_DONE) {
        sqlite3_reset(stmt);
    }
    return rc == SQLITE_ROW;
}

/* ---- open, close ---- */

/* The lock file holds the pid of who has it, for the message. */
static int take_lock(struct store *store, const char *dir, struct err *err)
{
    auto_free char *path = NULL;
    if (asprintf(&path, "%s/lock", dir) < 0) {
        path = NULL;
        return err_set(err, -ENOMEM, "no memory");
    }
    store->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (store->lock_fd < 0) {
        return err_sys(err, -errno, "cannot open '%s'", path);
    }
    if (flock(store->lock_fd, LOCK_EX | LOCK_NB) < 0) {
        char pid[32] = "";
        ssize_t n = pread(store->lock_fd, pid, sizeof(pid) - 1, 0);
        pid[n > 0 ? n : 0] = '\0';
        pid[strcspn(pid, "\n")] = '\0';
        return err_set(err, -EBUSY,
                       "'%s' is in use by another fondad (process %s): stop that one, or use another "
                       "--state directory",
                       dir, pid[0] ? pid : "unknown");
    }
    char text[32];
    int len = snprintf(text, sizeof(text), "%d\n", (int)getpid());
    if (ftruncate(store->lock_fd, 0) < 0 || pwrite(store->lock_fd, text, (size_t)len, 0) != len) {
        return err_sys(err, -errno, "cannot write '%s'", path);
    }
    return 0;
}

static int open_db(struct store *store, const char *dir, struct err *err)
{
    auto_free char *path = NULL;
    if (asprintf(&path, "%s/state.db", dir) < 0) {
        path = NULL;
        return err_set(err, -ENOMEM, "no memory");
    }
    if (sqlite3_open_v2(path, &store->db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX,
                        NULL) != SQLITE_OK ||
        /* EXTRA, and first: the journal of the change to WAL goes with its directory synced. One that came
         * back with the power would take back all that was written since. */
        sqlite3_exec(store->db,
                     "PRAGMA synchronous = EXTRA; PRAGMA journal_mode = WAL; PRAGMA foreign_keys = ON;"
                     "PRAGMA cache_size = -1024; PRAGMA trusted_schema = OFF;",
                     NULL, NULL, NULL) != SQLITE_OK) {
        int rc = store->db ? store_sql_err(store, err, "cannot open the state")
                           : err_set(err, -ENOMEM, "no memory");
        return err_prefix(err, "'%s'", path), rc;
    }
    chmod(path, 0600);
    return store_migrate(store, err);
}

int store_open(const char *dir, struct store **ret_store, struct err *err)
{
    struct store *store = calloc(1, sizeof(*store));
    if (!store) {
        return err_set(err, -ENOMEM, "no memory");
    }
    store->lock_fd = -1;
    int rc = take_lock(store, dir, err);
    if (rc == 0) {
        rc = open_db(store, dir, err);
    }
    if (rc < 0) {
        store_close(store);
        return rc;
    }
    *ret_store = store;
    return 0;
}

static void pending_clear(struct store *store)
{
    for (unsigned i = 0; i < store->pending_count; i++) {
        free(store->pending[i].kind);
        free(store->pending[i].name);
    }
    store->pending_count = 0;
}

void store_close(struct store *store)
{
    if (!store) {
        return;
    }
    for (unsigned i = 0; i < STMT_COUNT; i++) {
        sqlite3_finalize(store->stmts[i]);
    }
    sqlite3_close(store->db);
    if (store->lock_fd >= 0) {
        close(store->lock_fd);
    }
    pending_clear(store);
    free(store->pending);
    free(store);
}

/* ---- transactions and watches ---- */

int store_begin(struct store *store, struct err *err)
{
    if (store->in_txn) {
        return err_set(err, -EALREADY, "a transaction runs already");
    }
    if (sqlite3_exec(store->db, "BEGIN IMMEDIATE", NULL, NULL, NULL) != SQLITE_OK) {
        return store_sql_err(store, err, "cannot change the state");
    }
    store->in_txn = true;
    return 0;
}

int store_commit(struct store *store, struct err *err)
{
    if (sqlite3_exec(store->db, "COMMIT", NULL, NULL, NULL) != SQLITE_OK) {
        int rc = store_sql_err(store, err, "cannot save the change");
        store_rollback(store);
        return rc;
    }
    store->in_txn = false;
    for (unsigned i = 0; i < store->pending_count; i++) {
        struct store_change change = {store->pending[i].kind, store->pending[i].name,
                                      store->pending[i].version};
        for (unsigned w = 0; w < store->watch_count; w++) {
            store->watches[w].fn(store->watches[w].arg, &change);
        }
    }
    pending_clear(store);
    return 0;
}

void store_rollback(struct store *store)
{
    if (store->in_txn) {
        sqlite3_exec(store->db, "ROLLBACK", NULL, NULL, NULL);
        store->in_txn = false;
        pending_clear(store);
    }
}

int store_watch(struct store *store, store_watch_fn *fn, void *arg)
{
    if (store->watch_count == STORE_WATCHES_MAX) {
        return -ENOSPC;
    }
    store->watches[store->watch_count].fn = fn;
    store->watches[store->watch_count++].arg = arg;
    return 0;
}

void store_unwatch(struct store *store, store_watch_fn *fn, void *arg)
{
    for (unsigned i = 0; i < store->watch_count; i++) {
        if (store->watches[i].fn == fn && store->watches[i].arg == arg) {
            store->watches[i] = store->watches[--store->watch_count];
            return;
        }
    }
}

/* A change needs a transaction; one that the caller did not begin ends with the change itself. */
static int change_begin(struct store *store, bool *ret_own, struct err *err)
{
    *ret_own = !store->in_txn;
    return store->in_txn ? 0 : store_begin(store, err);
}

static int change_end(struct store *store, bool own, int rc, struct err *err)
{
    if (own && rc < 0) {
        store_rollback(store);
    } else if (own) {
        rc = store_commit(store, err);
    }
    return rc;
}

static int remember(struct store *store, const char *kind, const char *name, uint64_t version,
                    struct err *err)
{
    if (!store->watch_count) {
        return 0;
    }
    if (store->pending_count == store->pending_room) {
        unsigned room = store->pending_room ? 2 * store->pending_room : 16;
        struct store_pending *more = realloc(store->pending, room * sizeof(*more));
        if (!more) {
            return err_set(err, -ENOMEM, "no memory");
        }
        store->pending = more;
        store->pending_room = room;
    }
    struct store_pending *p = &store->pending[store->pending_count];
    p->kind = strdup(kind);
    p->name = strdup(name);
    p->version = version;
    store->pending_count++;
    return p->kind && p->name ? 0 : err_set(err, -ENOMEM, "no memory");
}

/* ---- objects ---- */

int store_get(struct store *store, const char *kind, const char *name, char **ret_json, uint64_t *ret_version,
              struct err *err)
{
    sqlite3_stmt *stmt = store_stmt(store, STMT_GET, err);
    if (!stmt) {
        return -EIO;
    }
    bind_text(stmt, 1, kind);
    bind_text(stmt, 2, name);
    int rc = step(store, stmt, err);
    if (rc <= 0) {
        return rc < 0 ? rc : err_set(err, -ENOENT, "there is no %s '%s'", kind, name);
    }
    char *json = ret_json ? strdup((const char *)sqlite3_column_text(stmt, 0)) : NULL;
    uint64_t version = (uint64_t)sqlite3_column_int64(stmt, 1);
    sqlite3_reset(stmt);
    if (ret_json && !json) {
        return err_set(err, -ENOMEM, "no memory");
    }
    if (ret_json) {
        *ret_json = json;
    }
    if (ret_version) {
        *ret_version = version;
    }
    return 0;
}

/* Whether (kind, name) is there in the version that is expected. */
static int check_version(struct store *store, const char *kind, const char *name, uint64_t expected,
                         struct err *err)
{
    uint64_t version = 0;
    int rc = store_get(store, kind, name, NULL, &version, err);
    if (expected == STORE_VERSION_NEW) {
        if (rc == -ENOENT && err) {
            err->code = 0;
        }
        return rc == -ENOENT ? 0
               : rc < 0      ? rc
                             : err_set(err, -EEXIST, "there is a %s '%s' already", kind, name);
    }
    if (rc == 0 && expected != STORE_VERSION_ANY && expected != version) {
        rc = err_set(err, -ESTALE, "%s '%s' was changed by somebody else meanwhile", kind, name);
    }
    return rc;
}

static int next_version(struct store *store, uint64_t *ret_version, struct err *err)
{
    sqlite3_stmt *stmt = store_stmt(store, STMT_NEXT_VERSION, err);
    int rc = stmt ? step(store, stmt, err) : -EIO;
    if (rc == 1) {
        *ret_version = (uint64_t)sqlite3_column_int64(stmt, 0);
        sqlite3_reset(stmt);
        return 0;
    }
    return rc < 0 ? rc : err_set(err, -EIO, "the state is damaged: its version counter is missing");
}

/* Runs INSERT, UPDATE or RENAME with a new version, and tells the watches. */
static int write_object(struct store *store, enum store_stmt which, const char *kind, const char *name,
                        const char *value, const char *seen_as, uint64_t *ret_version, struct err *err)
{
    uint64_t version = 0;
    int rc = next_version(store, &version, err);
    sqlite3_stmt *stmt = rc == 0 ? store_stmt(store, which, err) : NULL;
    if (!stmt) {
        return rc < 0 ? rc : -EIO;
    }
    bind_text(stmt, 1, kind);
    bind_text(stmt, 2, name);
    sqlite3_bind_int64(stmt, 3, (int64_t)version);
    bind_text(stmt, 4, value);
    rc = step(store, stmt, err);
    if (rc >= 0) {
        rc = remember(store, kind, seen_as, version, err);
    }
    if (rc == 0 && ret_version) {
        *ret_version = version;
    }
    return rc;
}

int store_put(struct store *store, const char *kind, const char *name, const char *json, uint64_t expected,
              uint64_t *ret_version, struct err *err)
{
    if (strlen(json) > STORE_DATA_MAX) {
        return err_set(err, -E2BIG, "%s '%s' would be larger than 1 MiB", kind, name);
    }
    bool own;
    int rc = change_begin(store, &own, err);
    if (rc < 0) {
        return rc;
    }
    rc = check_version(store, kind, name, expected, err);
    if (rc == 0) {
        enum store_stmt which = expected == STORE_VERSION_NEW ? STMT_INSERT : STMT_UPDATE;
        rc = write_object(store, which, kind, name, json, name, ret_version, err);
    }
    return change_end(store, own, rc, err);
}

int store_rename(struct store *store, const char *kind, const char *name, const char *new_name,
                 uint64_t expected, struct err *err)
{
    bool own;
    int rc = change_begin(store, &own, err);
    if (rc < 0) {
        return rc;
    }
    rc = check_version(store, kind, name, expected, err);
    if (rc == 0) {
        rc = check_version(store, kind, new_name, STORE_VERSION_NEW, err);
    }
    if (rc == 0) {
        rc = write_object(store, STMT_RENAME, kind, name, new_name, new_name, NULL, err);
    }
    if (rc == 0) {
        rc = remember(store, kind, name, 0, err);
    }
    return change_end(store, own, rc, err);
}

/* What keeps (kind, name) from being deleted, for people. */
static int refuse_referred(struct store *store, const char *kind, const char *name, struct err *err)
{
    sqlite3_stmt *stmt = store_stmt(store, STMT_REFERRERS, err);
    if (!stmt) {
        return -EIO;
    }
    bind_text(stmt, 1, kind);
    bind_text(stmt, 2, name);
    int rc = step(store, stmt, err);
    if (rc == 1) {
        rc = err_set(err, -EBUSY, "%s '%s' is used by %s '%s'", kind, name, sqlite3_column_text(stmt, 0),
                     sqlite3_column_text(stmt, 1));
        sqlite3_reset(stmt);
    }
    return rc;
}

int store_delete(struct store *store, const char *kind, const char *name, uint64_t expected, struct err *err)
{
    bool own;
    int rc = change_begin(store, &own, err);
    if (rc < 0) {
        return rc;
    }
    rc = check_version(store, kind, name, expected, err);
    if (rc == 0) {
        rc = refuse_referred(store, kind, name, err);
    }
    sqlite3_stmt *stmt = rc == 0 ? store_stmt(store, STMT_DELETE, err) : NULL;
    if (rc == 0 && !stmt) {
        rc = -EIO;
    }
    if (rc == 0) {
        bind_text(stmt, 1, kind);
        bind_text(stmt, 2, name);
        rc = step(store, stmt, err);
    }
    if (rc >= 0) {
        rc = remember(store, kind, name, 0, err);
    }
    return change_end(store, own, rc, err);
}

int store_link(struct store *store, const char *kind, const char *name, const char *to_kind,
               const char *to_name, struct err *err)
{
    bool own;
    int rc = change_begin(store, &own, err);
    if (rc < 0) {
        return rc;
    }
    rc = check_version(store, to_kind, to_name, STORE_VERSION_ANY, err);
    sqlite3_stmt *stmt = rc == 0 ? store_stmt(store, STMT_LINK, err) : NULL;
    if (rc == 0 && !stmt) {
        rc = -EIO;
    }
    if (rc == 0) {
        bind_text(stmt, 1, kind);
        bind_text(stmt, 2, name);
        bind_text(stmt, 3, to_kind);
        bind_text(stmt, 4, to_name);
        rc = step(store, stmt, err);
        sqlite3_reset(stmt);
        rc = MIN(rc, 0);
    }
    return change_end(store, own, rc, err);
}

int store_unlink_all(struct store *store, const char *kind, const char *name, struct err *err)
{
    bool own;
    int rc = change_begin(store, &own, err);
    if (rc < 0) {
        return rc;
    }
    sqlite3_stmt *stmt = store_stmt(store, STMT_UNLINK, err);
    rc = -EIO;
    if (stmt) {
        bind_text(stmt, 1, kind);
        bind_text(stmt, 2, name);
        rc = step(store, stmt, err);
    }
    return change_end(store, own, rc, err);
}

/* ---- leases ---- */

static int64_t now_ms(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_REALTIME, &ts);
    return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

int store_lease(struct store *store, const char *name, const char *owner, uint64_t ttl_ms, struct err *err)
{
    bool own;
    int rc = change_begin(store, &own, err);
    if (rc < 0) {
        return rc;
    }
    sqlite3_stmt *stmt = store_stmt(store, STMT_LEASE, err);
    rc = -EIO;
    if (stmt) {
        int64_t now = now_ms();
        bind_text(stmt, 1, name);
        bind_text(stmt, 2, owner);
        sqlite3_bind_int64(stmt, 3, now + (int64_t)MIN(ttl_ms, INT64_MAX / 2));
        sqlite3_bind_int64(stmt, 4, now);
        rc = step(store, stmt, err);
        sqlite3_reset(stmt);
        if (rc >= 0) {
            rc = rc == 1 ? 0 : err_set(err, -EBUSY, "'%s' is held by another node", name);
        }
    }
    return change_end(store, own, rc, err);
}

int store_lease_drop(struct store *store, const char *name, const char *owner, struct err *err)
{
    bool own;
    int rc = change_begin(store, &own, err);
    if (rc < 0) {
        return rc;
    }
    sqlite3_stmt *stmt = store_stmt(store, STMT_LEASE_DROP, err);
    rc = -EIO;
    if (stmt) {
        bind_text(stmt, 1, name);
        bind_text(stmt, 2, owner);
        rc = step(store, stmt, err);
    }
    return change_end(store, own, rc, err);
}
