/*
 * core/store when the power fails. A VFS under SQLite (a shim over its own) writes down each write,
 * truncation, sync and removal of the database, its WAL and its journals, while a workload runs that notes
 * which of its changes were acknowledged when. Then the power is cut behind every single one of these steps:
 *
 *     kept      all that was written is on the disk
 *     dropped   nothing is that was not synced
 *     mixed     each unsynced write is there, or is not, or is torn at a sector (by a seed)
 *
 * After each cut the store has to open, be sound, have its foreign keys, and hold exactly what it held after
 * the last acknowledged change, or after the one that was under way: never half of one, and never less.
 *
 * The last test takes the syncs away: the replay has to find what is lost then.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/util.h"
#include "core/store/sqlite_int.h"

#define FILES_MAX   3 /* database, WAL, journal */
#define STEPS_MAX   64
#define MIXES       2   /* seeds of each cut */
#define SECTOR      512 /* what a disk writes whole */
#define CHECKPOINTS 12  /* pages of WAL that bring one about */

/* ---- what was done to the files ---- */

enum op_type { OP_WRITE, OP_TRUNCATE, OP_SYNC, OP_DELETE };

struct op {
    enum op_type type;
    unsigned file;
    int64_t at;
    size_t len;
    uint8_t *data;
    bool durable; /* OP_DELETE: with its directory */
};

static struct {
    struct op *ops;
    size_t count, room;
    bool recording;
    char names[FILES_MAX][24]; /* as beginning at the last '/' */
    unsigned files;
} tape;

static unsigned file_of(const char *path)
{
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    for (unsigned i = 0; i < tape.files; i++) {
        if (strcmp(tape.names[i], name) == 0) {
            return i;
        }
    }
    assert_true(tape.files < FILES_MAX && strlen(name) < sizeof(tape.names[0]));
    strcpy(tape.names[tape.files], name);
    return tape.files++;
}

static void record(struct op op, const void *data)
{
    if (!tape.recording) {
        return;
    }
    if (tape.count == tape.room) {
        tape.room = tape.room ? 2 * tape.room : 1024;
        tape.ops = realloc(tape.ops, tape.room * sizeof(*tape.ops));
        assert_non_null(tape.ops);
    }
    if (data) {
        op.data = malloc(op.len);
        assert_non_null(op.data);
        memcpy(op.data, data, op.len);
    }
    tape.ops[tape.count++] = op;
}

static void forget_tape(void)
{
    for (size_t i = 0; i < tape.count; i++) {
        free(tape.ops[i].data);
    }
    free(tape.ops);
    memset(&tape, 0, sizeof(tape));
}

/* ---- the VFS: sqlite.org/c3ref/io_methods.html ---- */

struct shim {
    sqlite3_file base;
    unsigned file;
    sqlite3_file *real; /* behind this */
};

static sqlite3_vfs vfs, *real_vfs;
static sqlite3_io_methods methods;

#define REAL(f) (((struct shim *)(f))->real)

static int shim_close(sqlite3_file *f)
{
    return REAL(f)->pMethods->xClose(REAL(f));
}

static int shim_read(sqlite3_file *f, void *buf, int n, sqlite3_int64 at)
{
    return REAL(f)->pMethods->xRead(REAL(f), buf, n, at);
}

static int shim_write(sqlite3_file *f, const void *buf, int n, sqlite3_int64 at)
{
    record((struct op){OP_WRITE, ((struct shim *)f)->file, at, (size_t)n, NULL, false}, buf);
    return REAL(f)->pMethods->xWrite(REAL(f), buf, n, at);
}

static int shim_truncate(sqlite3_file *f, sqlite3_int64 size)
{
    record((struct op){OP_TRUNCATE, ((struct shim *)f)->file, size, 0, NULL, false}, NULL);
    return REAL(f)->pMethods->xTruncate(REAL(f), size);
}

static int shim_sync(sqlite3_file *f, int flags)
{
    record((struct op){OP_SYNC, ((struct shim *)f)->file, 0, 0, NULL, false}, NULL);
    return SQLITE_OK; /* the tape says what it means; the real disk need not be waited for */
}

static int shim_size(sqlite3_file *f, sqlite3_int64 *size)
{
    return REAL(f)->pMethods->xFileSize(REAL(f), size);
}

static int shim_lock(sqlite3_file *f, int lock)
{
    return REAL(f)->pMethods->xLock(REAL(f), lock);
}

static int shim_unlock(sqlite3_file *f, int lock)
{
    return REAL(f)->pMethods->xUnlock(REAL(f), lock);
}

static int shim_check(sqlite3_file *f, int *held)
{
    return REAL(f)->pMethods->xCheckReservedLock(REAL(f), held);
}

static int shim_control(sqlite3_file *f, int op, void *arg)
{
    return REAL(f)->pMethods->xFileControl(REAL(f), op, arg);
}

static int shim_sector(sqlite3_file *f)
{
    return REAL(f)->pMethods->xSectorSize(REAL(f));
}

static int shim_traits(sqlite3_file *f)
{
    return REAL(f)->pMethods->xDeviceCharacteristics(REAL(f));
}

static int shim_shm_map(sqlite3_file *f, int page, int size, int extend, void volatile **p)
{
    return REAL(f)->pMethods->xShmMap(REAL(f), page, size, extend, p);
}

static int shim_shm_lock(sqlite3_file *f, int at, int n, int flags)
{
    return REAL(f)->pMethods->xShmLock(REAL(f), at, n, flags);
}

static void shim_shm_barrier(sqlite3_file *f)
{
    REAL(f)->pMethods->xShmBarrier(REAL(f));
}

static int shim_shm_unmap(sqlite3_file *f, int del)
{
    return REAL(f)->pMethods->xShmUnmap(REAL(f), del);
}

static int shim_open(sqlite3_vfs *v, const char *name, sqlite3_file *f, int flags, int *ret_flags)
{
    struct shim *shim = (struct shim *)f;
    shim->real = (sqlite3_file *)(shim + 1);
    int files = SQLITE_OPEN_MAIN_DB | SQLITE_OPEN_MAIN_JOURNAL | SQLITE_OPEN_WAL;
    shim->file = tape.recording && name && (flags & files) ? file_of(name) : 0;
    int rc = real_vfs->xOpen(real_vfs, name, shim->real, flags, ret_flags);
    f->pMethods = shim->real->pMethods ? &methods : NULL;
    assert_true((flags & files) || !tape.recording); /* everything that is written is on the tape */
    return rc;
}

static int shim_delete(sqlite3_vfs *v, const char *name, int sync_dir)
{
    if (tape.recording) {
        record((struct op){OP_DELETE, file_of(name), 0, 0, NULL, sync_dir != 0}, NULL);
    }
    return real_vfs->xDelete(real_vfs, name, 0);
}

static int install(void **state)
{
    real_vfs = sqlite3_vfs_find(NULL);
    vfs = *real_vfs;
    vfs.zName = "power";
    vfs.szOsFile = (int)sizeof(struct shim) + real_vfs->szOsFile;
    vfs.xOpen = shim_open;
    vfs.xDelete = shim_delete;
    methods = (sqlite3_io_methods){
        2,           shim_close,   shim_read,     shim_write,       shim_truncate,  shim_sync,
        shim_size,   shim_lock,    shim_unlock,   shim_check,       shim_control,   shim_sector,
        shim_traits, shim_shm_map, shim_shm_lock, shim_shm_barrier, shim_shm_unmap, NULL,
        NULL};
    return sqlite3_vfs_register(&vfs, 1) == SQLITE_OK ? 0 : -1;
}

/* ---- the workload ---- */

static struct {
    char *held[STEPS_MAX + 1]; /* after so many changes; [0]: a new store */
    size_t acked[STEPS_MAX + 1];
    unsigned count;
} history;

static bool failed_sql; /* of the last dump */

static int add_row(void *arg, int columns, char **values, char **names)
{
    FILE *out = arg;
    for (int i = 0; i < columns; i++) {
        fprintf(out, "%s|", values[i] ? values[i] : "NULL");
    }
    fputc('\n', out);
    return 0;
}

/* All that is in it, as a text; free() it. */
static char *dump(struct store *store)
{
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    failed_sql =
        sqlite3_exec(store->db,
                     "SELECT kind, name, version, data FROM object ORDER BY kind, name;"
                     "SELECT f.name, t.name FROM reference JOIN object f ON f.id = from_id "
                     "JOIN object t ON t.id = to_id ORDER BY 1, 2;"
                     "SELECT log, seq, data FROM log ORDER BY log, seq; SELECT * FROM counter ORDER BY name;"
                     "SELECT name, owner FROM lease ORDER BY name;",
                     add_row, out, NULL) != SQLITE_OK;
    fclose(out);
    return text;
}

static void acknowledged(struct store *store)
{
    assert_true(history.count < STEPS_MAX);
    history.acked[history.count] = tape.count;
    history.held[history.count++] = dump(store);
}

static void done(struct store *store, int rc)
{
    assert_int_equal(rc, 0);
    acknowledged(store);
}

/* What a daemon does with it: objects of some size, references, transactions, logs, leases. */
static void work(struct store *s)
{
    char json[3000], name[16];
    for (unsigned i = 0; i < 6; i++) {
        snprintf(name, sizeof(name), "v%u", i);
        memset(json, 'a' + (int)i, sizeof(json));
        memcpy(json, "{\"text\":\"", 9);
        strcpy(json + 200 + 450 * i, "\"}");
        done(s, store_put(s, "volume", name, json, STORE_VERSION_NEW, NULL, NULL));
        done(s, store_append(s, "events", "{\"type\":\"volume.created\"}", NULL, NULL));
    }
    for (unsigned i = 0; i < 4; i++) { /* a change, its references, its event and its job, or nothing */
        snprintf(name, sizeof(name), "i%u", i);
        assert_int_equal(store_begin(s, NULL), 0);
        assert_int_equal(store_put(s, "instance", name, "{\"state\":\"creating\"}", 0, NULL, NULL), 0);
        assert_int_equal(store_link(s, "instance", name, "volume", i % 2 ? "v1" : "v2", NULL), 0);
        assert_int_equal(store_link(s, "instance", name, "volume", "v3", NULL), 0);
        assert_int_equal(store_put(s, "job", name, json, STORE_VERSION_NEW, NULL, NULL), 0);
        assert_int_equal(store_append(s, "events", "{\"type\":\"instance.creating\"}", NULL, NULL), 0);
        done(s, store_commit(s, NULL));
        done(s, store_put(s, "instance", name, "{\"state\":\"running\"}", STORE_VERSION_ANY, NULL, NULL));
    }
    assert_int_equal(store_begin(s, NULL), 0);
    assert_int_equal(store_put(s, "instance", "never", json, STORE_VERSION_NEW, NULL, NULL), 0);
    store_rollback(s);
    done(s, store_rename(s, "instance", "i0", "zero", STORE_VERSION_ANY, NULL));
    done(s, store_unlink_all(s, "instance", "zero", NULL));
    done(s, store_delete(s, "instance", "zero", STORE_VERSION_ANY, NULL));
    done(s, store_delete(s, "volume", "v0", STORE_VERSION_ANY, NULL));
    done(s, store_lease(s, "scheduler", "node", 60000, NULL));
    done(s, store_log_trim(s, "events", 3, NULL));
    for (unsigned i = 0; i < 6; i++) {
        snprintf(json, sizeof(json), "{\"n\":%u}", i);
        done(s, store_put(s, "job", "i3", json, STORE_VERSION_ANY, NULL, NULL));
    }
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    return remove(path);
}

static void make_dir(char *dir, size_t size)
{
    snprintf(dir, size, "%s/fonda-power-XXXXXX", access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    assert_non_null(mkdtemp(dir));
}

static void remove_dir(const char *dir)
{
    nftw(dir, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

/* Runs the workload. again: closed and opened again in the middle, as by a second daemon. */
static void record_work(bool synced)
{
    char dir[64];
    struct store *store = NULL;
    make_dir(dir, sizeof(dir));
    tape.recording = true;
    assert_int_equal(store_open(dir, &store, NULL), 0);
    sqlite3_wal_autocheckpoint(store->db, CHECKPOINTS);
    if (!synced) {
        sqlite3_exec(store->db, "PRAGMA synchronous = OFF", NULL, NULL, NULL);
    }
    acknowledged(store);
    work(store);
    store_close(store); /* brings the WAL into the database, and removes it */
    assert_int_equal(store_open(dir, &store, NULL), 0);
    done(store, store_put(store, "volume", "last", "{}", STORE_VERSION_NEW, NULL, NULL));
    store_close(store);
    tape.recording = false;
    remove_dir(dir);
}

static void forget_history(void)
{
    for (unsigned i = 0; i < history.count; i++) {
        free(history.held[i]);
    }
    memset(&history, 0, sizeof(history));
    forget_tape();
}

/* ---- the disk behind a cut ---- */

struct image {
    uint8_t *data;
    size_t len, room;
    bool there;
};

static void image_write(struct image *image, int64_t at, const uint8_t *data, size_t len)
{
    size_t end = (size_t)at + len;
    if (end > image->room) {
        image->room = 2 * end;
        image->data = realloc(image->data, image->room);
        assert_non_null(image->data);
    }
    if (end > image->len) {
        memset(image->data + image->len, 0, end - image->len);
        image->len = end;
    }
    memcpy(image->data + at, data, len);
    image->there = true;
}

/* share: of what is written, in sectors; the rest is lost. */
static void image_op(struct image *image, const struct op *op, size_t len)
{
    switch (op->type) {
    case OP_WRITE: image_write(image, op->at, op->data, len); break;
    case OP_TRUNCATE:
        if ((size_t)op->at < image->len) {
            image->len = (size_t)op->at;
        }
        break;
    case OP_DELETE:
        image->len = 0;
        image->there = false;
        break;
    case OP_SYNC: break;
    }
}

static void image_copy(struct image *to, const struct image *from)
{
    to->len = 0;
    to->there = false;
    if (from->there) {
        image_write(to, 0, from->data, from->len);
        to->len = from->len;
    }
    to->there = from->there;
}

enum mode { KEPT, DROPPED, MIXED };

static uint32_t chance(uint32_t *seed) /* xorshift: Marsaglia 2003 */
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 17;
    *seed ^= *seed << 5;
    return *seed;
}

/* What a disk has of the steps [from[file], cut) that were not synced. */
static void add_unsynced(struct image *images, const size_t *from, size_t cut, enum mode mode, uint32_t seed)
{
    size_t first = cut;
    for (unsigned i = 0; i < tape.files; i++) {
        first = MIN(first, from[i]);
    }
    for (size_t n = first; n < cut && mode != DROPPED; n++) {
        const struct op *op = &tape.ops[n];
        size_t len = op->len;
        if (n < from[op->file]) {
            continue;
        }
        uint32_t dice = mode == MIXED ? chance(&seed) % 4 : 0;
        if (dice == 3 && op->type == OP_WRITE && len > SECTOR) {
            len = SECTOR * (1 + chance(&seed) % (uint32_t)(len / SECTOR));
            len = MIN(len, op->len);
        } else if (dice >= 2) {
            continue;
        }
        image_op(&images[op->file], op, len);
    }
}

static void write_images(const char *dir, const struct image *images)
{
    char path[128];
    snprintf(path, sizeof(path), "%s/state.db-shm", dir);
    unlink(path); /* memory: gone with the power */
    for (unsigned i = 0; i < tape.files; i++) {
        snprintf(path, sizeof(path), "%s/%s", dir, tape.names[i]);
        unlink(path);
        if (!images[i].there) {
            continue;
        }
        auto_close int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        assert_true(fd >= 0);
        assert_int_equal(write(fd, images[i].data, images[i].len), images[i].len);
    }
}

static int count_rows(void *arg, int columns, char **values, char **names)
{
    *(unsigned *)arg += !(columns == 1 && values[0] && strcmp(values[0], "ok") == 0);
    return 0;
}

/* NULL: all is well; else what is not. */
static const char *look(const char *dir, unsigned acked)
{
    struct store *store = NULL;
    unsigned bad = 0;
    if (store_open(dir, &store, NULL) < 0) {
        return "the store does not open";
    }
    const char *wrong = NULL;
    auto_free char *text = dump(store);
    if (failed_sql) {
        wrong = "it can't be read";
    } else if (sqlite3_exec(store->db, "PRAGMA integrity_check", count_rows, &bad, NULL) != SQLITE_OK ||
               bad) {
        wrong = "it is damaged";
    } else if (sqlite3_exec(store->db, "PRAGMA foreign_key_check", count_rows, &bad, NULL) != SQLITE_OK ||
               bad) {
        wrong = "a reference points nowhere";
    } else if (strcmp(text, history.held[acked]) != 0 &&
               (acked + 1 == history.count || strcmp(text, history.held[acked + 1]) != 0)) {
        wrong = "it holds neither what was acknowledged nor what was under way";
    } else if (store_put(store, "volume", "after", "{}", STORE_VERSION_NEW, NULL, NULL) < 0) {
        wrong = "it can't be changed";
    }
    store_close(store);
    return wrong;
}

/* Cuts behind every step; returns how many cuts something was wrong after. quiet: this is expected. */
static unsigned replay(bool quiet, unsigned *ret_cuts)
{
    struct image synced[FILES_MAX] = {0}, images[FILES_MAX] = {0};
    size_t from[FILES_MAX] = {0}; /* what is not synced of a file begins there */
    unsigned acked = 0, wrong = 0, cuts = 0;
    char dir[64];
    make_dir(dir, sizeof(dir));
    for (size_t cut = 0; cut <= tape.count; cut++) {
        const struct op *last = cut ? &tape.ops[cut - 1] : NULL;
        if (last && (last->type == OP_SYNC || last->durable)) {
            for (size_t n = from[last->file]; n < cut; n++) {
                if (tape.ops[n].file == last->file) {
                    image_op(&synced[last->file], &tape.ops[n], tape.ops[n].len);
                }
            }
            synced[last->file].there = last->type == OP_SYNC;
            from[last->file] = cut;
        }
        while (acked + 1 < history.count && history.acked[acked + 1] <= cut) {
            acked++;
        }
        for (unsigned i = 0; i < 2 + MIXES; i++) {
            enum mode mode = MIN(i, (unsigned)MIXED);
            for (unsigned f = 0; f < tape.files; f++) {
                image_copy(&images[f], &synced[f]);
            }
            add_unsynced(images, from, cut, mode, (uint32_t)(cut * 31 + i + 1));
            write_images(dir, images);
            const char *what = look(dir, acked);
            cuts++;
            wrong += what != NULL;
            if (what && !quiet) {
                print_error("cut behind step %zu of %zu, %s, %u changes acknowledged: %s\n", cut, tape.count,
                            mode == KEPT      ? "kept"
                            : mode == DROPPED ? "dropped"
                                              : "mixed",
                            acked, what);
            }
        }
    }
    for (unsigned f = 0; f < FILES_MAX; f++) {
        free(synced[f].data);
        free(images[f].data);
    }
    remove_dir(dir);
    *ret_cuts = cuts;
    return wrong;
}

static void test_every_write(void **state)
{
    unsigned cuts = 0, checkpoints = 0;
    record_work(true);
    for (size_t n = 0; n < tape.count; n++) {
        checkpoints += tape.ops[n].type == OP_SYNC && strcmp(tape.names[tape.ops[n].file], "state.db") == 0;
    }
    assert_true(checkpoints > 3); /* the WAL went into the database more than once, and began anew */
    assert_int_equal(replay(false, &cuts), 0);
    print_message("%zu steps, %u changes, %u syncs of the database: %u cuts\n", tape.count, history.count,
                  checkpoints, cuts);
    forget_history();
}

static void test_without_syncs(void **state)
{
    unsigned cuts = 0;
    record_work(false);
    assert_true(replay(true, &cuts) > cuts / 10);
    forget_history();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_write),
        cmocka_unit_test(test_without_syncs),
    };
    return cmocka_run_group_tests(tests, install, NULL);
}
