/*
 * container/limit: which control files get which numbers, on hosts with cgroup v1, v2 and both. Directories
 * with plain files stand in for the groups, so that all three are tried on any host.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/util.h"
#include "container/limit/limit.h"

static const char *const v1_files[] = {"cpu.cfs_quota_us",
                                       "cpu.cfs_period_us",
                                       "cpu.shares",
                                       "memory.limit_in_bytes",
                                       "memory.memsw.limit_in_bytes",
                                       "memory.usage_in_bytes",
                                       "pids.max"};
static const char *const v2_files[] = {"cpu.max",         "cpu.weight",     "memory.max",
                                       "memory.swap.max", "memory.current", "pids.max"};

struct rig {
    char dir[64];
    struct cg cg;
};

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    return remove(path);
}

static void add(struct rig *rig, const char *name, const char *controllers, bool v2)
{
    char path[128];
    snprintf(path, sizeof(path), "%s/%s", rig->dir, name);
    assert_int_equal(mkdir(path, 0700), 0);
    struct cg_hierarchy *h = &rig->cg.h[rig->cg.count++];
    *h = (struct cg_hierarchy){.mount = name, .root = "/", .controllers = controllers, .own = "/", .v2 = v2};
    h->enter_fd = -1;
    h->fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    assert_true(h->fd >= 0);
    const char *const *files = v2 ? v2_files : v1_files;
    for (size_t i = 0; i < (v2 ? ARRAY_SIZE(v2_files) : ARRAY_SIZE(v1_files)); i++) {
        char word[16];
        snprintf(word, sizeof(word), ",%.*s,", (int)strcspn(files[i], "."), files[i]);
        int fd = strstr(controllers, word) ? openat(h->fd, files[i], O_CREAT | O_WRONLY, 0600) : -1;
        if (fd >= 0) {
            close(fd);
        }
    }
}

static int setup(void **state)
{
    struct rig *rig = calloc(1, sizeof(*rig));
    strcpy(rig->dir, "/tmp/fonda-limit-XXXXXX");
    assert_non_null(mkdtemp(rig->dir));
    rig->cg.path = "/x";
    *state = rig;
    return 0;
}

static int teardown(void **state)
{
    struct rig *rig = *state;
    cg_close(&rig->cg);
    nftw(rig->dir, remove_one, 8, FTW_DEPTH | FTW_PHYS);
    free(rig);
    return 0;
}

static int apply(struct rig *rig, const char *limits, bool update, struct err *err)
{
    json_t *object = json_loads(limits, JSON_DECODE_ANY, NULL);
    *err = (struct err){.code = 0};
    int rc = limit_apply(&rig->cg, object, update, err);
    json_decref(object);
    return rc;
}

static void expect(struct rig *rig, const char *file, const char *text)
{
    char path[160], buf[64] = "";
    snprintf(path, sizeof(path), "%s/%s", rig->dir, file);
    FILE *f = fopen(path, "re");
    assert_non_null(f);
    if (!fgets(buf, sizeof(buf), f)) {
        buf[0] = '\0';
    }
    fclose(f);
    assert_string_equal(buf, text);
}

/* Files keep what is behind a shorter text; the kernel's don't. */
static void clear(struct rig *rig, const char *file)
{
    char path[160];
    snprintf(path, sizeof(path), "%s/%s", rig->dir, file);
    assert_int_equal(truncate(path, 0), 0);
}

static const char all[] = "{\"cpu_limit\": \"1.5\", \"cpu_weight\": 50, \"memory_limit\": 1048576,"
                          " \"memory_swap\": 3145728, \"pids_limit\": 64}";

static void test_v1(void **state)
{
    struct rig *rig = *state;
    struct err err;
    add(rig, "cpu", ",cpu,cpuacct,", false);
    add(rig, "memory", ",memory,", false);
    add(rig, "pids", ",pids,", false);
    assert_int_equal(apply(rig, all, false, &err), 0);
    expect(rig, "cpu/cpu.cfs_period_us", "100000");
    expect(rig, "cpu/cpu.cfs_quota_us", "150000");
    expect(rig, "cpu/cpu.shares", "512");
    expect(rig, "memory/memory.limit_in_bytes", "1048576");
    expect(rig, "memory/memory.memsw.limit_in_bytes", "3145728"); /* the two together */
    expect(rig, "pids/pids.max", "64");
}

static void test_v2(void **state)
{
    struct rig *rig = *state;
    struct err err;
    add(rig, "unified", ",cpu,memory,pids,", true);
    assert_int_equal(apply(rig, all, false, &err), 0);
    expect(rig, "unified/cpu.max", "150000 100000");
    expect(rig, "unified/cpu.weight", "50");
    expect(rig, "unified/memory.max", "1048576");
    expect(rig, "unified/memory.swap.max", "2097152"); /* swap alone */
    expect(rig, "unified/pids.max", "64");
}

/* The CPU controller is v1's, the others are v2's. */
static void test_hybrid(void **state)
{
    struct rig *rig = *state;
    struct err err;
    add(rig, "cpu", ",cpu,", false);
    add(rig, "unified", ",memory,pids,", true);
    assert_int_equal(apply(rig, all, false, &err), 0);
    expect(rig, "cpu/cpu.cfs_quota_us", "150000");
    expect(rig, "cpu/cpu.shares", "512");
    expect(rig, "unified/memory.max", "1048576");
    expect(rig, "unified/pids.max", "64");
}

static void test_taken_away(void **state)
{
    static const char *const files[] = {"unified/cpu.max", "unified/cpu.weight", "unified/memory.max",
                                        "unified/memory.swap.max", "unified/pids.max"};
    struct rig *rig = *state;
    struct err err;
    add(rig, "unified", ",cpu,memory,pids,", true);
    assert_int_equal(apply(rig, all, false, &err), 0);
    for (size_t i = 0; i < ARRAY_SIZE(files); i++) {
        clear(rig, files[i]);
    }
    assert_int_equal(apply(rig, "{}", true, &err), 0);
    expect(rig, "unified/cpu.max", "max 100000");
    expect(rig, "unified/cpu.weight", "100");
    expect(rig, "unified/memory.max", "max");
    expect(rig, "unified/memory.swap.max", "max");
    expect(rig, "unified/pids.max", "max");
}

static void test_taken_away_v1(void **state)
{
    struct rig *rig = *state;
    struct err err;
    add(rig, "cpu", ",cpu,", false);
    add(rig, "memory", ",memory,", false);
    assert_int_equal(apply(rig, "{}", true, &err), 0); /* no pids controller: nothing to take away */
    expect(rig, "cpu/cpu.cfs_quota_us", "-1");
    expect(rig, "cpu/cpu.shares", "1024");
    expect(rig, "memory/memory.limit_in_bytes", "-1");
    expect(rig, "memory/memory.memsw.limit_in_bytes", "-1");
}

static void test_in_use(void **state)
{
    struct rig *rig = *state;
    struct err err;
    add(rig, "unified", ",memory,", true);
    int fd = openat(rig->cg.h[0].fd, "memory.current", O_WRONLY);
    assert_int_equal(write(fd, "2000000\n", 8), 8);
    close(fd);
    assert_int_equal(apply(rig, "{\"memory_limit\": 1048576}", true, &err), -EBUSY);
    assert_non_null(strstr(err.text, "memory_limit"));
    expect(rig, "unified/memory.max", ""); /* or its guest would be killed */
    assert_int_equal(apply(rig, "{\"memory_limit\": 4194304}", true, &err), 0);
    expect(rig, "unified/memory.max", "4194304");
}

static void test_refused(void **state)
{
    static const struct {
        const char *limits;
        int code;
        const char *says;
    } cases[] = {
        {"{\"pids_limit\": 5}", -EOPNOTSUPP, "pids_limit can't be applied: this host has no 'pids'"},
        {"{\"cpu_weight\": 5}", -EOPNOTSUPP, "cpu_weight can't be applied"},
        {"{\"cpu_limit\": \"0.001\"}", -EINVAL, "cpu_limit"},
        {"{\"cpu_limit\": \"1e3\"}", -EINVAL, "cpu_limit"},
        {"{\"cpu_limit\": \"\"}", -EINVAL, "cpu_limit"},
        {"{\"memory_limit\": -1}", -EINVAL, "memory_limit"},
        {"{\"memory_limit\": 8, \"memory_swap\": 4}", -EINVAL, "memory_swap"},
        {"{\"memory_swap\": 4}", -EINVAL, "memory_swap"},
        {"{\"other\": 4}", -EINVAL, "other"},
        {"[]", -EINVAL, NULL},
        {"1", -EINVAL, NULL},
    };
    struct rig *rig = *state;
    struct err err;
    add(rig, "memory", ",memory,", false);
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        int rc = apply(rig, cases[i].limits, false, &err);
        assert_int_equal(rc, cases[i].code);
        assert_true(!cases[i].says || strstr(err.text, cases[i].says));
        assert_null(strstr(err.text, "linux.resources"));
    }
}

/* A hierarchy that this user could make no group in. */
static void test_not_delegated(void **state)
{
    struct rig *rig = *state;
    struct err err;
    add(rig, "unified", ",memory,", true);
    close(rig->cg.h[0].fd);
    rig->cg.h[0].fd = -1;
    assert_int_equal(apply(rig, "{\"memory_limit\": 1048576}", false, &err), -EACCES);
    assert_non_null(strstr(err.text, "memory_limit"));
    assert_non_null(strstr(err.text, "delegated"));
}

/* The controller is there, but was not handed down to this group. */
static void test_not_enabled(void **state)
{
    struct rig *rig = *state;
    struct err err;
    add(rig, "unified", ",memory,", true);
    assert_int_equal(unlinkat(rig->cg.h[0].fd, "memory.max", 0), 0);
    assert_int_equal(apply(rig, "{\"memory_limit\": 1048576}", false, &err), -EOPNOTSUPP);
    assert_non_null(strstr(err.text, "memory_limit can't be applied"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_v1, setup, teardown),
        cmocka_unit_test_setup_teardown(test_v2, setup, teardown),
        cmocka_unit_test_setup_teardown(test_hybrid, setup, teardown),
        cmocka_unit_test_setup_teardown(test_taken_away, setup, teardown),
        cmocka_unit_test_setup_teardown(test_taken_away_v1, setup, teardown),
        cmocka_unit_test_setup_teardown(test_in_use, setup, teardown),
        cmocka_unit_test_setup_teardown(test_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(test_not_delegated, setup, teardown),
        cmocka_unit_test_setup_teardown(test_not_enabled, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
