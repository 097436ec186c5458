/*
 * The tables of the SQLite store, as numbered steps: a store of any older version runs the steps that it has
 * not seen, each in its own transaction. Steps never change once released; new ones are added at the end.
 */
#include <errno.h>
#include <stdio.h>

#include "base/util.h"
#include "core/store/sqlite_int.h"

static const char *const steps[] = {
    /* 1: objects, references between them, logs, leases */
    "CREATE TABLE object (id INTEGER PRIMARY KEY, kind TEXT NOT NULL, name TEXT NOT NULL,"
    "  version INTEGER NOT NULL, data TEXT NOT NULL, UNIQUE (kind, name));"
    "CREATE TABLE reference (from_id INTEGER NOT NULL REFERENCES object (id) ON DELETE CASCADE,"
    "  to_id INTEGER NOT NULL REFERENCES object (id) ON DELETE RESTRICT, PRIMARY KEY (from_id, to_id))"
    "  WITHOUT ROWID;"
    "CREATE INDEX reference_to ON reference (to_id);"
    "CREATE TABLE log (log TEXT NOT NULL, seq INTEGER NOT NULL, data TEXT NOT NULL, PRIMARY KEY (log, seq))"
    "  WITHOUT ROWID;"
    "CREATE TABLE counter (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;"
    "CREATE TABLE lease (name TEXT PRIMARY KEY, owner TEXT NOT NULL, until_ms INTEGER NOT NULL) WITHOUT "
    "ROWID;"
    "INSERT INTO counter VALUES ('version', 0);",
};

/* "fond", so that `file` and we know our own. */
#define APPLICATION_ID 0x666f6e64

static int pragma_int(struct store *store, const char *sql)
{
    sqlite3_stmt *stmt = NULL;
    int value = -1;
    if (sqlite3_prepare_v2(store->db, sql, -1, &stmt, NULL) == SQLITE_OK &&
        sqlite3_step(stmt) == SQLITE_ROW) {
        value = sqlite3_column_int(stmt, 0);
    }
    sqlite3_finalize(stmt);
    return value;
}

int store_migrate(struct store *store, struct err *err)
{
    int version = pragma_int(store, "PRAGMA user_version");
    if (version < 0) {
        return store_sql_err(store, err, "cannot read the state");
    }
    if ((unsigned)version > ARRAY_SIZE(steps)) {
        return err_set(
            err, -EPROTO,
            "the state was written by a newer Fonda (version %d of its tables; this one knows %zu): "
            "use that one, or another state directory",
            version, ARRAY_SIZE(steps));
    }
    for (unsigned i = (unsigned)version; i < ARRAY_SIZE(steps); i++) {
        char tail[128];
        snprintf(tail, sizeof(tail), "PRAGMA user_version = %u; PRAGMA application_id = %d; COMMIT;", i + 1,
                 APPLICATION_ID);
        if (sqlite3_exec(store->db, "BEGIN IMMEDIATE", NULL, NULL, NULL) != SQLITE_OK ||
            sqlite3_exec(store->db, steps[i], NULL, NULL, NULL) != SQLITE_OK ||
            sqlite3_exec(store->db, tail, NULL, NULL, NULL) != SQLITE_OK) {
            int rc = store_sql_err(store, err, "cannot prepare the state");
            sqlite3_exec(store->db, "ROLLBACK", NULL, NULL, NULL);
            return rc;
        }
    }
    return 0;
}
