/*
 * core/history.c from the inside: what becomes of an instance's words, means of coarse records, rings that go
 * round, gaps, files that are torn or foreign, live samples.
 */
#include "tests/unit/unit.h"

#include <ftw.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/history.c"

#define ID "0123456789ab"

struct rig {
    char dir[64], file[DRIVER_PATH_MAX + 16];
    struct core *core;
    int woken;
};

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    return remove(path);
}

static void wake(void *opaque)
{
    ((struct rig *)opaque)->woken++;
}

/* The sampler's own rounds would come between: the tests take its part. */
static void stop_sampler(struct core *core)
{
    core_lock(core);
    core->closing = true;
    pthread_cond_signal(&core->sampler_cond);
    core_unlock(core);
    pthread_join(core->sampler, NULL);
    core_lock(core);
    core->closing = core->sampling = false;
    core_unlock(core);
}

static int setup(void **state)
{
    struct rig *rig = calloc(1, sizeof(*rig));
    strcpy(rig->dir, "/tmp/fonda-history-XXXXXX");
    assert_non_null(mkdtemp(rig->dir));
    struct core_config config = {.state_dir = rig->dir, .wake = wake, .opaque = rig};
    struct err err = {0};
    assert_int_equal(core_open(&config, &rig->core, &err), 0);
    stop_sampler(rig->core);
    json_t *instance =
        json_pack("{s:s, s:s, s:s, s:s}", "name", "web", "id", ID, "kind", "vm", "state", "stopped");
    core_lock(rig->core);
    struct fault fault = {0};
    assert_int_equal(
        object_put(rig->core, &model_instance, instance, STORE_VERSION_NEW, NULL, "test", &fault), 0);
    core_unlock(rig->core);
    json_decref(instance);
    struct driver_instance paths;
    instance_paths(rig->core, ID, &paths);
    assert_int_equal(make_dirs(paths.dir), 0);
    snprintf(rig->file, sizeof(rig->file), "%s/history", paths.dir);
    *state = rig;
    return 0;
}

static int teardown(void **state)
{
    struct rig *rig = *state;
    core_close(rig->core);
    nftw(rig->dir, remove_one, 8, FTW_DEPTH | FTW_PHYS);
    free(rig);
    return 0;
}

static json_t *read_span(struct rig *rig, const char *span)
{
    json_t *history = NULL;
    struct fault fault = {0};
    core_lock(rig->core);
    assert_int_equal(history_read(rig->core, "web", span, &history, &fault), 0);
    core_unlock(rig->core);
    return history;
}

static size_t records(const json_t *history)
{
    return json_array_size(json_object_get(history, "time_ms"));
}

static double last_of(const json_t *history, const char *column)
{
    const json_t *list = json_object_get(json_object_get(history, "series"), column);
    const json_t *value = json_array_get(list, json_array_size(list) - 1);
    return json_is_number(value) ? json_number_value(value) : NAN;
}

static struct track *new_track(struct rig *rig)
{
    core_lock(rig->core);
    struct track *track = add(rig->core, ID, "web");
    core_unlock(rig->core);
    return track;
}

static void keep_all(struct rig *rig, struct track *track, int64_t now, double v)
{
    double value[COLUMNS];
    for (size_t i = 0; i < COLUMNS; i++) {
        value[i] = v;
    }
    keep(rig->core, track, now, value);
}

static void test_columns(void **state)
{
    double raw[COLUMNS];
    json_t *stats =
        json_pack("{s:I, s:I, s:{s:{s:{s:i, s:i}, s:{s:i}, s:{s:i}, s:{s:i}}, s:[{s:i, s:i}, {s:i}], "
                  "s:[{s:i, s:i}, {s:i}]}}",
                  "cpu_ns", (json_int_t)2500000000, "rss", (json_int_t)4096, "engine", "counters", "exits",
                  "halts", 3, "kicks", 4, "code", "blocks translated", 7, "tlb", "misses", 8, "interrupts",
                  "interrupts", 9, "disks", "read_bytes", 10, "write_bytes", 20, "read_bytes", 5, "networks",
                  "rx_bytes", 100, "tx_bytes", 50, "rx_bytes", 1);
    read_columns(stats, raw);
    assert_true(raw[CPU] == 2.5 && raw[MEMORY] == 4096);
    assert_true(raw[DISK_READ] == 15 && raw[DISK_WRITE] == 20);
    assert_true(raw[NET_IN] == 101 && raw[NET_OUT] == 50);
    assert_true(raw[EXITS] == 7 && raw[TRANSLATED] == 7 && raw[TLB_MISSES] == 8 && raw[INTERRUPTS] == 9);
    json_decref(stats);
}

/* What an instance doesn't count, or says in other shapes, is unknown and not zero. */
static void test_unknown_columns(void **state)
{
    static const char *const texts[] = {
        "{\"cpu_ns\": 1, \"rss\": 2}",
        "{\"cpu_ns\": 1, \"rss\": 2, \"engine\": 7}",
        "{\"cpu_ns\": 1, \"rss\": 2, \"engine\": {\"counters\": []}}",
        "{\"cpu_ns\": 1, \"rss\": 2, \"engine\": {\"disks\": {}, \"networks\": []}}",
        "{\"cpu_ns\": 1, \"rss\": 2, \"engine\": {\"counters\": {\"exits\": {\"x\": \"y\"}}}}",
        "{\"cpu_ns\": 1, \"rss\": 2, \"engine\": {\"disks\": [3, null, {\"read_bytes\": \"many\"}]}}"};
    for (size_t i = 0; i < ARRAY_SIZE(texts); i++) {
        double raw[COLUMNS];
        json_t *stats = json_loads(texts[i], 0, NULL);
        assert_non_null(stats);
        read_columns(stats, raw);
        assert_true(raw[MEMORY] == 2);
        for (size_t c = DISK_READ; c < COLUMNS; c++) {
            assert_true(isnan(raw[c]));
        }
        json_decref(stats);
    }
}

static void test_none_yet(void **state)
{
    struct rig *rig = *state;
    json_t *history = read_span(rig, "hour");
    assert_int_equal(records(history), 0);
    assert_int_equal(json_object_size(json_object_get(history, "series")), COLUMNS);
    json_decref(history);
}

static void test_refused(void **state)
{
    struct rig *rig = *state;
    json_t *history = NULL;
    struct fault fault = {0};
    core_lock(rig->core);
    assert_int_equal(history_read(rig->core, "web", "year", &history, &fault), -1);
    assert_int_equal(fault.code, FAULT_INVALID);
    assert_int_equal(history_read(rig->core, "none", "hour", &history, &fault), -1);
    assert_int_equal(fault.code, FAULT_NOT_FOUND);
    core_unlock(rig->core);
    assert_null(history);
}

/* Coarse records are means of what came so far; the fine ones are what was measured. */
static void test_means(void **state)
{
    struct rig *rig = *state;
    struct track *track = new_track(rig);
    int64_t now = wall_ms();
    now -= now % rings[2].step_ms +
           rings[2].step_ms; /* the quarter before this one, so that all are in one record of each */
    for (int i = 0; i < 6; i++) {
        keep_all(rig, track, now + i * SAMPLE_MS, i + 1);
    }
    static const double expected[] = {6, 3.5, 3.5};
    static const size_t count[] = {6, 1, 1};
    for (size_t ring = 0; ring < ARRAY_SIZE(rings); ring++) {
        json_t *history = read_span(rig, rings[ring].span);
        assert_int_equal(records(history), count[ring]);
        assert_true(last_of(history, "exits") == expected[ring]);
        assert_int_equal(json_integer_value(json_object_get(history, "step_ms")), rings[ring].step_ms);
        json_decref(history);
    }
    struct stat st;
    assert_int_equal(stat(rig->file, &st), 0);
    assert_true(st.st_size <= (off_t)((360 + 1440 + 2976) * sizeof(struct record)));
}

/* One unknown value doesn't spoil the mean; all unknown is null. */
static void test_unknown_in_means(void **state)
{
    struct rig *rig = *state;
    struct track *track = new_track(rig);
    int64_t now = wall_ms();
    now -= now % rings[1].step_ms + rings[1].step_ms;
    keep_all(rig, track, now, 4);
    keep_all(rig, track, now + SAMPLE_MS, NAN);
    json_t *hour = read_span(rig, "hour"), *day = read_span(rig, "day");
    assert_true(isnan(last_of(hour, "cpu")));
    assert_true(last_of(day, "cpu") == 4);
    json_decref(hour);
    json_decref(day);
}

/* A ring holds its span, and what is older than that is neither shown nor kept. */
static void test_round(void **state)
{
    struct rig *rig = *state;
    struct track *track = new_track(rig);
    int64_t now = wall_ms();
    now -= now % SAMPLE_MS;
    for (int64_t i = rings[0].count + 50; i >= 0; i--) {
        keep_all(rig, track, now - i * SAMPLE_MS, (double)i);
    }
    json_t *history = read_span(rig, "hour");
    size_t n = records(history); /* one fewer where the clock has gone into the next step meanwhile */
    assert_in_range(n, (size_t)rings[0].count - 2, (size_t)rings[0].count);
    const json_t *times = json_object_get(history, "time_ms");
    for (size_t i = 1; i < n; i++) {
        assert_true(json_integer_value(json_array_get(times, i)) -
                        json_integer_value(json_array_get(times, i - 1)) ==
                    SAMPLE_MS);
    }
    assert_true(last_of(history, "cpu") == 0);
    json_decref(history);
}

/* Records of another time in the same slot (the clock was set, or nobody ran for long) are gaps. */
static void test_gaps(void **state)
{
    struct rig *rig = *state;
    struct track *track = new_track(rig);
    int64_t now = wall_ms();
    now -= now % SAMPLE_MS;
    keep_all(rig, track, now - 3 * SAMPLE_MS, 1);
    keep_all(rig, track, now - SAMPLE_MS, 2);
    keep_all(rig, track, now - 2 * SAMPLE_MS - rings[0].count * SAMPLE_MS, 9); /* an hour earlier */
    keep_all(rig, track, now + 3600 * 1000 + 5 * SAMPLE_MS, 9);                /* in the future */
    json_t *history = read_span(rig, "hour");
    assert_int_equal(records(history), 2);
    assert_true(last_of(history, "memory") == 2);
    json_decref(history);
}

static void test_torn_file(void **state)
{
    struct rig *rig = *state;
    struct track *track = new_track(rig);
    int64_t now = wall_ms();
    now -= now % SAMPLE_MS;
    keep_all(rig, track, now - SAMPLE_MS, 1);
    off_t at = ring_at(0, now - SAMPLE_MS);
    assert_int_equal(truncate(rig->file, at + 12), 0); /* a record that a full disk cut */
    json_t *history = read_span(rig, "hour");
    assert_int_equal(records(history), 0);
    json_decref(history);

    uint64_t seed = unit_seed();
    FILE *f = fopen(rig->file, "w"); /* and one that is no history at all */
    assert_non_null(f);
    for (int i = 0; i < 30000; i++) {
        uint64_t value = unit_random(&seed);
        fwrite(&value, sizeof(value), 1, f);
    }
    fclose(f);
    for (size_t ring = 0; ring < ARRAY_SIZE(rings); ring++) {
        history = read_span(rig, rings[ring].span);
        assert_int_equal(records(history), 0);
        json_decref(history);
    }

    assert_int_equal(truncate(rig->file, 0), 0);
    int fd = open(rig->file, O_WRONLY);
    struct record record = {.time_ms = now - SAMPLE_MS, .value = {INFINITY, NAN, -INFINITY}};
    assert_int_equal(pwrite(fd, &record, sizeof(record), ring_at(0, record.time_ms)),
                     (ssize_t)sizeof(record));
    close(fd);
    history = read_span(rig, "hour"); /* numbers that JSON has no words for */
    assert_int_equal(records(history), 1);
    assert_true(isnan(last_of(history, "cpu")) && isnan(last_of(history, "disk_read")));
    char *text = json_dumps(history, 0);
    assert_non_null(text);
    free(text);
    json_decref(history);
}

static json_t *stats_of(double cpu_s, int64_t rss)
{
    return json_pack("{s:I, s:I}", "cpu_ns", (json_int_t)(cpu_s * 1e9), "rss", (json_int_t)rss);
}

/* Counters become rates between two samples; a counter that is less than before was started anew. */
static void test_rates(void **state)
{
    struct rig *rig = *state;
    struct track *track = new_track(rig);
    int64_t now = wall_ms();
    now -= now % SAMPLE_MS + 4 * SAMPLE_MS;
    static const struct {
        double cpu, expected;
    } steps[] = {{10, NAN}, {15, 0.5}, {2, NAN}, {2, 0}};
    core_lock(rig->core);
    for (size_t i = 0; i < ARRAY_SIZE(steps); i++) {
        json_t *stats = stats_of(steps[i].cpu, 1000);
        take(rig->core, track, now + (int64_t)i * SAMPLE_MS, true, stats);
        json_decref(stats);
        core_unlock(rig->core);
        json_t *history = read_span(rig, "hour");
        double got = last_of(history, "cpu");
        assert_true(isnan(steps[i].expected) ? isnan(got) : fabs(got - steps[i].expected) < 1e-6);
        assert_true(last_of(history, "memory") == 1000);
        json_decref(history);
        core_lock(rig->core);
    }
    core_unlock(rig->core);
    assert_int_equal(rig->woken, 0); /* nobody looks */
}

static void test_live(void **state)
{
    struct rig *rig = *state;
    struct core *core = rig->core;
    char id[32];
    uint64_t serial = 0, other = 0;
    struct fault fault = {0};
    core_lock(core);
    assert_int_equal(history_watch(core, "none", id, &fault), -1);
    assert_int_equal(history_watch(core, "web", id, &fault), 0);
    assert_string_equal(id, ID);
    assert_null(history_latest(core, id, &serial));
    struct track *track = find(core, id);
    json_t *stats = stats_of(1, 7);
    take(core, track, 1000, false, stats);
    take(core, track, 2000, false, stats);
    json_decref(stats);
    assert_int_equal(rig->woken, 2);
    char *text = history_latest(core, id, &serial);
    assert_non_null(strstr(text, "\"time_ms\":2000")); /* the newest alone */
    free(text);
    assert_null(history_latest(core, id, &serial)); /* once for each listener */
    text = history_latest(core, id, &other);
    assert_non_null(text);
    free(text);
    assert_int_equal(access(rig->file, F_OK), -1); /* looking keeps nothing */
    list_running(core);
    assert_ptr_equal(find(core, id), track); /* it doesn't run, but somebody looks */
    history_unwatch(core, id);
    history_unwatch(core, id); /* one too many */
    history_unwatch(core, "unknown");
    list_running(core);
    assert_null(find(core, id));
    core_unlock(core);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_columns),
        cmocka_unit_test(test_unknown_columns),
        cmocka_unit_test_setup_teardown(test_none_yet, setup, teardown),
        cmocka_unit_test_setup_teardown(test_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(test_means, setup, teardown),
        cmocka_unit_test_setup_teardown(test_unknown_in_means, setup, teardown),
        cmocka_unit_test_setup_teardown(test_round, setup, teardown),
        cmocka_unit_test_setup_teardown(test_gaps, setup, teardown),
        cmocka_unit_test_setup_teardown(test_torn_file, setup, teardown),
        cmocka_unit_test_setup_teardown(test_rates, setup, teardown),
        cmocka_unit_test_setup_teardown(test_live, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
