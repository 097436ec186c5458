/*
 * What instances use, over time: one thread samples those that run, each 10 seconds; each second those that
 * somebody looks at.
 *
 *     sampler: instance_stats --+--> DIR/history: three rings (10 s for an hour, 1 min for a day, 15 min for
 * a month)
 *                               +--> the latest sample, for web sockets (history_latest)
 *
 * A ring's slot is (time / step) modulo its length, and each record has its time: so there is no head to
 * keep, a record that a crash tore is one gap, and a clock that is set leaves gaps, never wrong times. Coarse
 * records are means of the samples so far, written over at each sample.
 *
 * Invariants
 *   1. The file has one size from its first sample on (about 230 KiB) and lies in the instance's directory:
 * it goes with it.
 *   2. The sampler holds the core's lock for lists, never while it asks an instance.
 */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/util.h"
#include "core/core_int.h"

#define LIVE_MS    1000
#define SAMPLE_MS  10000
#define TRACKS_MAX 10000u

enum column {
    CPU,
    MEMORY,
    DISK_READ,
    DISK_WRITE,
    NET_IN,
    NET_OUT,
    EXITS,
    TRANSLATED,
    TLB_MISSES,
    INTERRUPTS,
    COLUMNS
};

static const struct {
    const char *name;
    bool gauge; /* else a counter, shown per second */
} columns[COLUMNS] = {
    {"cpu", false},     {"memory", true}, {"disk_read", false},  {"disk_write", false}, {"net_in", false},
    {"net_out", false}, {"exits", false}, {"translated", false}, {"tlb_misses", false}, {"interrupts", false},
};

static const struct {
    const char *span;
    int64_t step_ms, count;
} rings[] = {{"hour", SAMPLE_MS, 360}, {"day", 60 * 1000, 1440}, {"month", 15 * 60 * 1000, 2976}};

struct record {
    int64_t time_ms; /* a multiple of the step; 0: none */
    float value[COLUMNS];
};

struct mean {
    int64_t time_ms;
    double sum[COLUMNS];
    unsigned n[COLUMNS];
};

struct track {
    struct track *next;
    char id[32], name[FIELD_NAME_MAX + 1];
    bool runs;     /* in the sampler's last list */
    int64_t at_ms; /* of `raw`; 0: none yet */
    double raw[COLUMNS];
    struct mean means[ARRAY_SIZE(rings)];
    unsigned watchers;
    uint64_t serial;
    char *latest;
};

static int64_t wall_ms(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_REALTIME, &ts);
    return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/* ---- from an instance's own words to columns ---- */

static double sum_members(const json_t *list, const char *member)
{
    double sum = NAN;
    size_t i;
    json_t *item;
    json_array_foreach(list, i, item)
    {
        json_t *value = json_object_get(item, member);
        if (json_is_number(value)) {
            sum = (isnan(sum) ? 0 : sum) + json_number_value(value);
        }
    }
    return sum;
}

static double sum_group(const json_t *group)
{
    double sum = NAN;
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)group, name, value)
    {
        if (json_is_number(value)) {
            sum = (isnan(sum) ? 0 : sum) + json_number_value(value);
        }
    }
    return sum;
}

static double counter(const json_t *counters, const char *group, const char *name)
{
    const json_t *value = json_object_get(json_object_get(counters, group), name);
    return json_is_number(value) ? json_number_value(value) : NAN;
}

static void read_columns(const json_t *stats, double *ret_raw)
{
    const json_t *engine = json_object_get(stats, "engine"), *counters = json_object_get(engine, "counters");
    const json_t *disks = json_object_get(engine, "disks"), *networks = json_object_get(engine, "networks");
    ret_raw[CPU] = (double)obj_int(stats, "cpu_ns") / 1e9;
    ret_raw[MEMORY] = (double)obj_int(stats, "rss");
    ret_raw[DISK_READ] = sum_members(disks, "read_bytes");
    ret_raw[DISK_WRITE] = sum_members(disks, "write_bytes");
    ret_raw[NET_IN] = sum_members(networks, "rx_bytes");
    ret_raw[NET_OUT] = sum_members(networks, "tx_bytes");
    ret_raw[EXITS] = sum_group(json_object_get(counters, "exits"));
    ret_raw[TRANSLATED] = counter(counters, "code", "blocks translated");
    ret_raw[TLB_MISSES] = counter(counters, "tlb", "misses");
    ret_raw[INTERRUPTS] = counter(counters, "interrupts", "interrupts");
}

/* ---- the file ---- */

static off_t ring_at(size_t ring, int64_t time_ms)
{
    int64_t slots = time_ms / rings[ring].step_ms % rings[ring].count;
    for (size_t i = 0; i < ring; i++) {
        slots += rings[i].count;
    }
    return (off_t)(slots * (int64_t)sizeof(struct record));
}

static int open_file(struct core *core, const char *id, int flags)
{
    struct driver_instance paths;
    char path[DRIVER_PATH_MAX + 16];
    instance_paths(core, id, &paths);
    snprintf(path, sizeof(path), "%s/history", paths.dir);
    return open(path, flags | O_CLOEXEC, 0600);
}

static void keep(struct core *core, struct track *track, int64_t now, const double *value)
{
    auto_close int fd = open_file(core, track->id, O_WRONLY | O_CREAT);
    for (size_t ring = 0; fd >= 0 && ring < ARRAY_SIZE(rings); ring++) {
        struct mean *mean = &track->means[ring];
        int64_t slot = now - now % rings[ring].step_ms;
        struct record record = {.time_ms = slot};
        if (mean->time_ms != slot) {
            memset(mean, 0, sizeof(*mean));
            mean->time_ms = slot;
        }
        for (size_t i = 0; i < COLUMNS; i++) {
            if (!isnan(value[i])) {
                mean->sum[i] += value[i];
                mean->n[i]++;
            }
            record.value[i] = mean->n[i] ? (float)(mean->sum[i] / mean->n[i]) : NAN;
        }
        if (pwrite(fd, &record, sizeof(record), ring_at(ring, slot)) != (ssize_t)sizeof(record)) {
            return; /* no room: a gap */
        }
    }
}

int history_read(struct core *core, const char *name, const char *span, json_t **ret_history,
                 struct fault *fault)
{
    size_t ring = 0;
    while (ring < ARRAY_SIZE(rings) && strcmp(rings[ring].span, span) != 0) {
        ring++;
    }
    if (ring == ARRAY_SIZE(rings)) {
        return fault_set(fault, FAULT_INVALID, "hour, day or month", "span: '%.32s' is not kept", span);
    }
    json_t *instance = NULL;
    if (object_get(core, &model_instance, name, &instance, NULL, fault) < 0) {
        return -1;
    }
    auto_close int fd = open_file(core, obj_text(instance, "id"), O_RDONLY);
    json_decref(instance);
    size_t bytes = (size_t)rings[ring].count * sizeof(struct record);
    auto_free struct record *records = calloc(1, bytes);
    if (!records) {
        return fault_set(fault, FAULT_INTERNAL, NULL, "no memory");
    }
    ssize_t n = fd < 0 ? 0 : pread(fd, records, bytes, ring_at(ring, 0));
    json_t *times = json_array(), *series = json_object(), *lists[COLUMNS];
    for (size_t c = 0; c < COLUMNS; c++) {
        json_object_set_new(series, columns[c].name, lists[c] = json_array());
    }
    int64_t now = wall_ms(), step = rings[ring].step_ms, last = now - now % step;
    for (int64_t t = last - (rings[ring].count - 1) * step; t <= last; t += step) {
        size_t slot = (size_t)(t / step % rings[ring].count);
        if (records[slot].time_ms != t || (ssize_t)((slot + 1) * sizeof(struct record)) > n) {
            continue;
        }
        json_array_append_new(times, json_integer((json_int_t)t));
        for (size_t c = 0; c < COLUMNS; c++) {
            double value = (double)records[slot].value[c];
            json_array_append_new(lists[c], isfinite(value) ? json_real(value) : json_null());
        }
    }
    *ret_history = json_pack("{s:s, s:I, s:o, s:o}", "span", span, "step_ms", (json_int_t)step, "time_ms",
                             times, "series", series);
    return 0;
}

/* ---- tracks; locked ---- */

static struct track *find(struct core *core, const char *id)
{
    for (struct track *track = core->tracks; track; track = track->next) {
        if (strcmp(track->id, id) == 0) {
            return track;
        }
    }
    return NULL;
}

static struct track *add(struct core *core, const char *id, const char *name)
{
    struct track *track = find(core, id);
    if (!track && (track = calloc(1, sizeof(*track)))) {
        snprintf(track->id, sizeof(track->id), "%s", id);
        track->next = core->tracks;
        core->tracks = track;
    }
    if (track) {
        snprintf(track->name, sizeof(track->name), "%s", name);
    }
    return track;
}

static bool list_one(void *arg, const struct store_row *row)
{
    struct core *core = arg;
    json_t *instance = json_loads(row->json, 0, NULL);
    struct track *track = add(core, obj_text(instance, "id"), row->name);
    if (track) {
        track->runs = true;
    }
    json_decref(instance);
    return track != NULL;
}

/* Makes the tracks those of what runs, and of what is looked at. */
static void list_running(struct core *core)
{
    const struct store_node nodes[] = {
        {.op = STORE_OP_EQ, .path = "state", .type = STORE_TEXT, .text = "running"},
        {.op = STORE_OP_EQ, .path = "state", .type = STORE_TEXT, .text = "paused"},
        {.op = STORE_OP_OR, .left = 0, .right = 1},
    };
    struct store_query query = {.nodes = nodes, .count = ARRAY_SIZE(nodes), .limit = TRACKS_MAX};
    for (struct track *track = core->tracks; track; track = track->next) {
        track->runs = false;
    }
    store_list(core->store, "instance", &query, list_one, core, NULL, NULL);
    for (struct track **at = &core->tracks; *at;) {
        struct track *track = *at;
        if (track->runs || track->watchers) {
            at = &track->next;
        } else {
            *at = track->next;
            free(track->latest);
            free(track);
        }
    }
}

int history_watch(struct core *core, const char *name, char *ret_id, struct fault *fault)
{
    json_t *instance = NULL;
    if (object_get(core, &model_instance, name, &instance, NULL, fault) < 0) {
        return -1;
    }
    snprintf(ret_id, 32, "%s", obj_text(instance, "id"));
    struct track *track = add(core, ret_id, name);
    json_decref(instance);
    if (!track) {
        return fault_set(fault, FAULT_INTERNAL, NULL, "no memory");
    }
    track->watchers++;
    pthread_cond_signal(&core->sampler_cond);
    return 0;
}

void history_unwatch(struct core *core, const char *id)
{
    struct track *track = find(core, id);
    if (track && track->watchers) {
        track->watchers--;
    }
}

char *history_latest(struct core *core, const char *id, uint64_t *serial)
{
    struct track *track = find(core, id);
    if (!track || !track->latest || track->serial <= *serial) {
        return NULL;
    }
    *serial = track->serial;
    return strdup(track->latest);
}

/* ---- the sampler ---- */

static void take(struct core *core, struct track *track, int64_t now, bool kept, const json_t *stats)
{
    double raw[COLUMNS], value[COLUMNS];
    read_columns(stats, raw);
    double seconds = (double)(now - track->at_ms) / 1e3;
    for (size_t i = 0; i < COLUMNS; i++) {
        bool both = track->at_ms && seconds > 0 && raw[i] >= track->raw[i]; /* else it was started anew */
        value[i] = columns[i].gauge ? raw[i] : both ? (raw[i] - track->raw[i]) / seconds : NAN;
    }
    if (kept) {
        keep(core, track, now, value);
        memcpy(track->raw, raw, sizeof(raw));
        track->at_ms = now;
    }
    if (track->watchers) {
        json_t *out = json_pack("{s:I, s:O}", "time_ms", (json_int_t)now, "stats", (json_t *)stats);
        free(track->latest);
        track->latest = out ? json_dumps(out, JSON_COMPACT) : NULL;
        track->serial++;
        json_decref(out);
        core->config.wake(core->config.opaque);
    }
}

/* All that run, or those that are looked at. Locked; unlocks while it asks. */
static void round_of(struct core *core, bool kept)
{
    unsigned count = 0, room = 16;
    char(*ids)[32] = malloc(room * sizeof(*ids));
    for (struct track *track = core->tracks; ids && track; track = track->next) {
        if (!kept && !track->watchers) {
            continue;
        }
        if (count == room) {
            room *= 2;
            void *more = realloc(ids, room * sizeof(*ids));
            if (!more) {
                break;
            }
            ids = more;
        }
        memcpy(ids[count++], track->id, sizeof(*ids));
    }
    for (unsigned i = 0; i < count && !core->closing; i++) {
        struct driver_instance instance;
        const struct driver_ops *ops;
        struct fault ignored = {0};
        json_t *stats = NULL;
        struct track *track = find(core, ids[i]);
        if (!track || instance_driver(core, track->name, &instance, &ops, &ignored) < 0) {
            continue;
        }
        core_unlock(core);
        int rc = instance_stats(&instance, ops, &stats, &ignored);
        instance_driver_done(&instance);
        core_lock(core);
        track = find(core, ids[i]);
        if (rc == 0 && track) {
            take(core, track, wall_ms(), kept, stats);
        } else if (track) {
            track->at_ms = 0;
        }
        json_decref(stats);
    }
    free(ids);
}

static bool watched(const struct core *core)
{
    for (const struct track *track = core->tracks; track; track = track->next) {
        if (track->watchers) {
            return true;
        }
    }
    return false;
}

static void *sampler(void *arg)
{
    struct core *core = arg;
    int64_t next = 0;
    core_lock(core);
    while (!core->closing) {
        int64_t now = wall_ms();
        bool kept = now >= next || next - now > SAMPLE_MS; /* the clock was set back */
        if (kept) {
            next = now - now % SAMPLE_MS + SAMPLE_MS;
            list_running(core);
        }
        round_of(core, kept);
        int64_t until = watched(core) ? MIN(next, now + LIVE_MS) : next;
        struct timespec ts = {.tv_sec = until / 1000, .tv_nsec = until % 1000 * 1000000};
        if (!core->closing) {
            pthread_cond_timedwait(&core->sampler_cond, &core->lock, &ts);
        }
    }
    core_unlock(core);
    return NULL;
}

int history_open(struct core *core, struct err *err)
{
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, 256 * KiB);
    int rc = -pthread_create(&core->sampler, &attr, sampler, core);
    pthread_attr_destroy(&attr);
    core->sampling = rc == 0;
    return rc < 0 ? err_sys(err, rc, "cannot start a thread") : 0;
}

void history_close(struct core *core)
{
    if (core->sampling) {
        core_lock(core);
        core->closing = true;
        pthread_cond_signal(&core->sampler_cond);
        core_unlock(core);
        pthread_join(core->sampler, NULL);
    }
    while (core->tracks) {
        struct track *track = core->tracks;
        core->tracks = track->next;
        free(track->latest);
        free(track);
    }
    pthread_cond_destroy(&core->sampler_cond);
}
