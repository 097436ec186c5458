/*
 * core/store: versions, references, transactions, logs, leases, watches, the lock; and what survives a
 * process that is killed between any two of its writes.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <ftw.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/store/store.h"

struct rig {
    char dir[64];
    struct store *store;
};

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    return remove(path);
}

static int setup(void **state)
{
    struct rig *rig = calloc(1, sizeof(*rig));
    strcpy(rig->dir, "/tmp/fonda-store-XXXXXX");
    assert_non_null(mkdtemp(rig->dir));
    assert_int_equal(store_open(rig->dir, &rig->store, NULL), 0);
    *state = rig;
    return 0;
}

static int teardown(void **state)
{
    struct rig *rig = *state;
    store_close(rig->store);
    nftw(rig->dir, remove_one, 8, FTW_DEPTH | FTW_PHYS);
    free(rig);
    return 0;
}

static void test_versions(void **state)
{
    struct store *s = ((struct rig *)*state)->store;
    uint64_t first, second;
    char *json;
    assert_int_equal(store_put(s, "k", "a", "{\"x\":1}", STORE_VERSION_NEW, &first, NULL), 0);
    assert_int_equal(store_put(s, "k", "a", "{}", STORE_VERSION_NEW, NULL, NULL), -EEXIST);
    assert_int_equal(store_put(s, "k", "b", "{}", STORE_VERSION_ANY, NULL, NULL), -ENOENT);
    assert_int_equal(store_put(s, "k", "a", "{\"x\":2}", first, &second, NULL), 0);
    assert_true(second > first);
    assert_int_equal(store_put(s, "k", "a", "{}", first, NULL, NULL), -ESTALE);
    assert_int_equal(store_get(s, "k", "a", &json, &first, NULL), 0);
    assert_string_equal(json, "{\"x\":2}");
    free(json);
    assert_int_equal(store_delete(s, "k", "a", second, NULL), 0);
    assert_int_equal(store_put(s, "k", "a", "{}", STORE_VERSION_NEW, &first, NULL), 0);
    assert_true(first > second); /* made again, with a version that nobody remembers */
}

static void test_references(void **state)
{
    struct store *s = ((struct rig *)*state)->store;
    struct err err = {0};
    store_put(s, "instance", "web", "{}", STORE_VERSION_NEW, NULL, NULL);
    store_put(s, "volume", "data", "{}", STORE_VERSION_NEW, NULL, NULL);
    assert_int_equal(store_link(s, "instance", "web", "volume", "none", NULL), -ENOENT);
    assert_int_equal(store_link(s, "instance", "web", "volume", "data", NULL), 0);
    assert_int_equal(store_delete(s, "volume", "data", STORE_VERSION_ANY, &err), -EBUSY);
    assert_non_null(strstr(err.text, "instance 'web'"));
    assert_int_equal(store_rename(s, "instance", "web", "www", STORE_VERSION_ANY, NULL), 0);
    assert_int_equal(store_delete(s, "volume", "data", STORE_VERSION_ANY, NULL), -EBUSY);
    assert_int_equal(store_delete(s, "instance", "www", STORE_VERSION_ANY, NULL), 0);
    assert_int_equal(store_delete(s, "volume", "data", STORE_VERSION_ANY, NULL), 0);
}

static unsigned changes;
static void count_change(void *arg, const struct store_change *change)
{
    changes++;
}

static void test_transactions(void **state)
{
    struct store *s = ((struct rig *)*state)->store;
    changes = 0;
    assert_int_equal(store_watch(s, count_change, NULL), 0);
    assert_int_equal(store_begin(s, NULL), 0);
    store_put(s, "k", "a", "{}", STORE_VERSION_NEW, NULL, NULL);
    store_append(s, "log", "{}", NULL, NULL);
    store_rollback(s);
    assert_int_equal(changes, 0);
    assert_int_equal(store_get(s, "k", "a", NULL, NULL, NULL), -ENOENT);
    assert_int_equal(store_log_last(s, "log"), 0);
    assert_int_equal(store_begin(s, NULL), 0);
    store_put(s, "k", "a", "{}", STORE_VERSION_NEW, NULL, NULL);
    store_put(s, "k", "b", "{}", STORE_VERSION_NEW, NULL, NULL);
    assert_int_equal(changes, 0);
    assert_int_equal(store_commit(s, NULL), 0);
    assert_int_equal(changes, 2);
    store_unwatch(s, count_change, NULL);
    store_delete(s, "k", "a", STORE_VERSION_ANY, NULL);
    assert_int_equal(changes, 2);
}

static bool sum_row(void *arg, const struct store_row *row)
{
    *(uint64_t *)arg = *(uint64_t *)arg * 100 + row->version;
    return true;
}

static void test_logs(void **state)
{
    struct store *s = ((struct rig *)*state)->store;
    uint64_t seq, sum = 0;
    for (unsigned i = 1; i <= 5; i++) {
        assert_int_equal(store_append(s, "log", "{}", &seq, NULL), 0);
        assert_int_equal(seq, i);
    }
    assert_int_equal(store_log(s, "log", 2, 2, sum_row, &sum, NULL), 0);
    assert_int_equal(sum, 304);
    assert_int_equal(store_log_trim(s, "log", 1, NULL), 0);
    sum = 0;
    store_log(s, "log", 0, 10, sum_row, &sum, NULL);
    assert_int_equal(sum, 5);
    store_log_trim(s, "log", 0, NULL);
    store_append(s, "log", "{}", &seq, NULL);
    assert_int_equal(seq, 6); /* numbers are never used again */
}

static void test_leases(void **state)
{
    struct store *s = ((struct rig *)*state)->store;
    assert_int_equal(store_lease(s, "l", "a", 60000, NULL), 0);
    assert_int_equal(store_lease(s, "l", "a", 60000, NULL), 0);
    assert_int_equal(store_lease(s, "l", "b", 60000, NULL), -EBUSY);
    assert_int_equal(store_lease(s, "l", "a", 0, NULL), 0); /* ends now */
    assert_int_equal(store_lease(s, "l", "b", 60000, NULL), 0);
    assert_int_equal(store_lease_drop(s, "l", "b", NULL), 0);
    assert_int_equal(store_lease(s, "l", "a", 60000, NULL), 0);
}

static void test_lock(void **state)
{
    struct rig *rig = *state;
    struct store *second = NULL;
    struct err err = {0};
    char pid[16];
    snprintf(pid, sizeof(pid), "%d", (int)getpid());
    assert_int_equal(store_open(rig->dir, &second, &err), -EBUSY);
    assert_non_null(strstr(err.text, pid));
}

/* A process that is killed at a random moment: whatever it reported as stored is there. */
static void test_killed(void **state)
{
    struct rig *rig = *state;
    store_close(rig->store);
    rig->store = NULL;
    for (unsigned round = 0; round < 8; round++) {
        int fds[2];
        assert_int_equal(pipe(fds), 0);
        pid_t pid = fork();
        if (pid == 0) {
            struct store *s = NULL;
            char name[32];
            if (store_open(rig->dir, &s, NULL) < 0) {
                _exit(1);
            }
            for (unsigned i = 0;; i++) {
                snprintf(name, sizeof(name), "r%u-%u", round, i);
                if (store_put(s, "k", name, "{}", STORE_VERSION_NEW, NULL, NULL) < 0 ||
                    write(fds[1], &i, sizeof(i)) < 0) {
                    _exit(1);
                }
            }
        }
        close(fds[1]);
        unsigned last = 0, got;
        for (unsigned i = 0; i <= 3 * round; i++) {
            assert_int_equal(read(fds[0], &last, sizeof(last)), sizeof(last));
        }
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
        while (read(fds[0], &got, sizeof(got)) == sizeof(got)) {
            last = got;
        }
        close(fds[0]);
        assert_int_equal(store_open(rig->dir, &rig->store, NULL), 0);
        for (unsigned i = 0; i <= last; i++) {
            char name[32];
            snprintf(name, sizeof(name), "r%u-%u", round, i);
            assert_int_equal(store_get(rig->store, "k", name, NULL, NULL, NULL), 0);
        }
        store_close(rig->store);
        rig->store = NULL;
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_versions, setup, teardown),
        cmocka_unit_test_setup_teardown(test_references, setup, teardown),
        cmocka_unit_test_setup_teardown(test_transactions, setup, teardown),
        cmocka_unit_test_setup_teardown(test_logs, setup, teardown),
        cmocka_unit_test_setup_teardown(test_leases, setup, teardown),
        cmocka_unit_test_setup_teardown(test_lock, setup, teardown),
        cmocka_unit_test_setup_teardown(test_killed, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
