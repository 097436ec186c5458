/*
 * Schedules: a thread that looks every few seconds what is due, asks for snapshots and backups as anybody
 * would, and deletes what has expired.
 *
 * Invariants
 *   1. What was missed (the daemon was down, a job took long) is made once, not once for each time.
 *   2. The wall clock may jump. Forward or back by more than JUMP_S against the monotonic one: nothing is
 * made for what the jump passed over, next times are planned anew, and nothing expires for GRACE_S, so that a
 * clock that was wrong can be set right before it costs anything. Back: next times that lie farther away than
 * one period are planned anew.
 *   3. Of what a schedule made, the newest that is complete is never deleted by it. One thing per instance
 * and look is deleted at most, and JOBS_AT_ONCE things at all.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/log.h"
#include "base/util.h"
#include "core/backup.h"
#include "core/cron.h"
#include "core/snapshot.h"

#define LOOK_EVERY_S 5
#define JUMP_S       120
#define GRACE_S      3600
#define JOBS_AT_ONCE 8u
#define WHO          "schedule"

/* ---- times ---- */

/* "2024-05-06T07:08:09.123Z" in seconds since 1970; -1: it is none. */
static time_t time_of(const json_t *object, const char *member)
{
    struct tm tm = {0};
    const char *end = strptime(obj_text(object, member), "%Y-%m-%dT%H:%M:%S", &tm);
    return end ? timegm(&tm) : -1;
}

/* The next time behind `now`; -1: never. */
static time_t plan(const json_t *schedule, time_t now)
{
    struct cron cron;
    if (json_object_get(schedule, "cron")) {
        return cron_parse(obj_text(schedule, "cron"), &cron, NULL) == 0 ? cron_next(&cron, now) : -1;
    }
    return now + (time_t)obj_int(schedule, "every");
}

static void set_next(json_t *schedule, time_t when)
{
    if (when < 0) {
        json_object_del(schedule, "next_at");
    } else {
        obj_set_time(schedule, "next_at", when);
    }
}

/* ---- rows ---- */

static bool collect_row(void *arg, const struct store_row *row)
{
    json_array_append_new(arg, json_loads(row->json, 0, NULL));
    return true;
}

static json_t *rows_of(struct core *core, const char *kind, const char *member, const char *text)
{
    struct store_node node = {.op = STORE_OP_EQ, .path = member, .type = STORE_TEXT, .text = text};
    struct store_query query = {.nodes = &node,
                                .count = member ? 1 : 0,
                                .limit = UINT32_MAX,
                                .sort_count = 1,
                                .sort = {{"created_at", false}}};
    json_t *list = json_array();
    store_list(core->store, kind, &query, collect_row, list, NULL, NULL);
    return list;
}

static int check(const json_t *schedule, struct fault *fault)
{
    struct cron cron;
    struct err err = {0};
    bool every = json_object_get(schedule, "every"), has_cron = json_object_get(schedule, "cron");
    if (every == has_cron) {
        return fault_set(fault, FAULT_INVALID, "every: seconds; cron: such as \"30 3 * * *\"",
                         "a schedule needs 'every' or 'cron', and not both");
    }
    if (has_cron && cron_parse(obj_text(schedule, "cron"), &cron, &err) < 0) {
        return fault_set(fault, FAULT_INVALID, "such as \"30 3 * * 1-5\"", "'cron': %s", err.text);
    }
    if (has_cron && cron_next(&cron, time(NULL)) < 0) {
        return fault_set(fault, FAULT_INVALID, "such as \"30 3 * * 1-5\"", "'cron': '%s' never comes",
                         obj_text(schedule, "cron"));
    }
    return 0;
}

int schedule_create(struct core *core, json_t *in, const struct caller *caller, struct fault *fault)
{
    json_t *instance = NULL;
    char id[16];
    if (check(in, fault) < 0 ||
        object_get(core, &model_instance, obj_text(in, "instance"), &instance, NULL, fault) < 0) {
        return -1;
    }
    int rc = !driver_has_room(instance)
                 ? 0
                 : fault_set(fault, FAULT_UNSUPPORTED, NULL,
                             "instance '%s' is a container: only machines have schedules",
                             obj_text(in, "instance"));
    random_id(id);
    obj_set_text(in, "id", id);
    obj_set_text(in, "instance_id", obj_text(instance, "id"));
    obj_set_text(in, "owner", caller->name);
    obj_set_now(in, "created_at");
    field_defaults(&model_schedule, in);
    set_next(in, plan(in, time(NULL)));
    json_decref(instance);
    return rc ? rc
              : object_put(core, &model_schedule, in, STORE_VERSION_NEW, "schedule.created", caller->name,
                           fault);
}

int schedule_changed(struct core *core, json_t *schedule, struct fault *fault)
{
    if (check(schedule, fault) < 0) {
        return -1;
    }
    set_next(schedule, plan(schedule, time(NULL)));
    return 0;
}

void schedule_forget(struct core *core, const char *instance_id)
{
    json_t *rows = rows_of(core, "schedule", "instance_id", instance_id), *row;
    size_t i;
    json_array_foreach(rows, i, row)
    {
        struct fault ignored = {0};
        if (store_delete(core->store, "schedule", obj_text(row, "name"), STORE_VERSION_ANY, NULL) == 0) {
            event_add(core, "schedule.deleted", &model_schedule, obj_text(row, "name"), "", NULL, &ignored);
        }
    }
    json_decref(rows);
}

int schedule_rename(struct core *core, const char *instance_id, const char *name, struct fault *fault)
{
    json_t *rows = rows_of(core, "schedule", "instance_id", instance_id), *row;
    size_t i;
    int rc = 0;
    json_array_foreach(rows, i, row)
    {
        obj_set_text(row, "instance", name);
        rc = rc ? rc : object_put(core, &model_schedule, row, STORE_VERSION_ANY, NULL, NULL, fault);
    }
    json_decref(rows);
    return rc;
}

/* ---- what is due ---- */

static void save(struct core *core, json_t *schedule)
{
    struct fault fault = {0};
    if (object_put(core, &model_schedule, schedule, STORE_VERSION_ANY, NULL, NULL, &fault) < 0) {
        log_warning("schedule '%s': %s", obj_text(schedule, "name"), fault.detail);
    }
}

static void fire(struct core *core, json_t *schedule, time_t now)
{
    char job[24] = "", name[80], when[24];
    struct fault fault = {0};
    struct tm tm;
    auto_free char *instance = instance_name_of(core, obj_text(schedule, "instance_id"));
    if (!instance) {
        return; /* it is being deleted */
    }
    gmtime_r(&now, &tm);
    strftime(when, sizeof(when), "%Y%m%d-%H%M%S", &tm);
    snprintf(name, sizeof(name), "%.40s-%s", obj_text(schedule, "name"), when);
    json_t *how =
        json_pack("{s:s, s:s, s:s}", "name", name, "schedule", obj_text(schedule, "name"), "description", "");
    bool backup = strcmp(obj_text(schedule, "action"), "backup") == 0;
    json_t *row = NULL;
    struct fault ignored = {0};
    object_get(core, &model_instance, instance, &row, NULL, &ignored);
    bool runs =
        strcmp(obj_text(row, "state"), "running") == 0 || strcmp(obj_text(row, "state"), "paused") == 0;
    json_decref(row);
    json_object_set_new(how, "memory", json_boolean(obj_bool(schedule, "memory") && runs));
    int rc = backup ? backup_create(core, instance, how, WHO, job, &fault)
                    : snapshot_create(core, instance, how, WHO, job, &fault);
    json_decref(how);
    obj_set_time(schedule, "last_at", now);
    obj_set_text(schedule, "last_job", rc == 0 ? job : NULL);
    obj_set_text(schedule, "last_error", rc == 0 ? NULL : fault.detail);
    if (rc < 0) {
        event_add(core, "schedule.failed", &model_schedule, obj_text(schedule, "name"), WHO,
                  json_pack("{s:s}", "detail", fault.detail), &ignored);
    }
}

static void look_at(struct core *core, json_t *schedule, time_t now, bool jumped)
{
    time_t next = time_of(schedule, "next_at");
    time_t after = plan(schedule, now);
    if (!obj_bool(schedule, "enabled") || after < 0) {
        return;
    }
    if (jumped || next < 0 || next > after) { /* farther away than one period: the clock was set back */
        if (next != after) {
            set_next(schedule, after);
            save(core, schedule);
        }
    } else if (now >= next && job_count_open(core) < JOBS_OPEN_MAX / 2) {
        fire(core, schedule, now);
        set_next(schedule, after);
        save(core, schedule);
    }
}

/* ---- what has expired ---- */

struct expiring {
    const json_t *rows;
    size_t index;
    time_t now;
    int64_t keep_last, keep_for; /* of its schedule; 0: none */
};

/* Complete ones of the same schedule that are newer. */
static unsigned newer_of(const json_t *rows, size_t index)
{
    const json_t *row = json_array_get(rows, index);
    unsigned count = 0;
    for (size_t i = index + 1; i < json_array_size(rows); i++) {
        const json_t *other = json_array_get(rows, i);
        count += strcmp(obj_text(other, "schedule"), obj_text(row, "schedule")) == 0 &&
                 strcmp(obj_text(other, "instance_id"), obj_text(row, "instance_id")) == 0 &&
                 strcmp(obj_text(other, "state"), "ready") == 0;
    }
    return count;
}

static bool expired(const struct expiring *e)
{
    const json_t *row = json_array_get(e->rows, e->index);
    time_t expires = time_of(row, "expires_at"), made = time_of(row, "created_at");
    if (strcmp(obj_text(row, "state"), "ready") != 0) {
        return false;
    }
    if (!obj_text(row, "schedule")[0]) {
        return expires >= 0 && expires <= e->now;
    }
    unsigned newer = newer_of(e->rows, e->index);
    return newer > 0 && ((e->keep_last && newer >= e->keep_last) ||
                         (e->keep_for && made >= 0 && made + (time_t)e->keep_for <= e->now) ||
                         (expires >= 0 && expires <= e->now));
}

static void rules_of(const json_t *schedules, const char *name, struct expiring *e)
{
    size_t i;
    json_t *schedule;
    e->keep_last = e->keep_for = 0;
    json_array_foreach((json_t *)schedules, i, schedule)
    {
        if (strcmp(obj_text(schedule, "name"), name) == 0 && obj_bool(schedule, "enabled")) {
            e->keep_last = obj_int(schedule, "keep_last");
            e->keep_for = obj_int(schedule, "keep_for");
        }
    }
}

static void expire_one(struct core *core, const json_t *row, bool backup)
{
    struct fault fault = {0};
    char job[24];
    auto_free char *instance = instance_name_of(core, obj_text(row, "instance_id"));
    int rc = 0;
    if (backup) {
        rc = backup_delete(core, obj_text(row, "name"), STORE_VERSION_ANY, WHO, &fault);
    } else if (instance && !job_open_for(core, &model_instance, instance)) {
        rc = snapshot_delete(core, instance, obj_text(row, "name"), WHO, job, &fault);
    }
    if (rc < 0 && fault.code != FAULT_BUSY && fault.code != FAULT_STATE) {
        log_warning("cannot delete '%s', which has expired: %s", obj_text(row, "name"), fault.detail);
    }
}

static void expire(struct core *core, const json_t *schedules, const char *kind, time_t now)
{
    json_t *rows = rows_of(core, kind, NULL, NULL), *row;
    struct expiring e = {.rows = rows, .now = now};
    unsigned done = 0;
    json_array_foreach(rows, e.index, row)
    {
        rules_of(schedules, obj_text(row, "schedule"), &e);
        if (done < JOBS_AT_ONCE && expired(&e)) {
            expire_one(core, row, strcmp(kind, "backup") == 0);
            done++;
        }
    }
    json_decref(rows);
}

/* ---- the thread ---- */

static void *scheduler(void *arg)
{
    struct core *core = arg;
    int64_t offset = (int64_t)time(NULL) - (int64_t)(monotonic_ms() / 1000);
    uint64_t grace_until_s = 0;
    core_lock(core);
    while (!core->closing) {
        uint64_t up_s = monotonic_ms() / 1000;
        time_t now = time(NULL);
        int64_t moved = (int64_t)now - (int64_t)up_s - offset;
        bool jumped = moved > JUMP_S || moved < -JUMP_S;
        if (jumped) {
            log_warning(
                "the clock jumped by %lld s: schedules are planned anew, and nothing expires for %d minutes",
                (long long)moved, GRACE_S / 60);
            grace_until_s = up_s + GRACE_S;
        }
        offset += moved; /* slow corrections add up to no jump */
        json_t *schedules = rows_of(core, "schedule", NULL, NULL), *schedule;
        size_t i;
        json_array_foreach(schedules, i, schedule)
        {
            look_at(core, schedule, now, jumped);
        }
        if (up_s >= grace_until_s) {
            expire(core, schedules, "snapshot", now);
            expire(core, schedules, "backup", now);
        }
        json_decref(schedules);
        struct timespec until;
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_sec += LOOK_EVERY_S;
        pthread_cond_timedwait(&core->scheduler_cond, &core->lock, &until);
    }
    core_unlock(core);
    return NULL;
}

int schedule_open(struct core *core, struct err *err)
{
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, 256 * KiB);
    int rc = -pthread_create(&core->scheduler, &attr, scheduler, core);
    pthread_attr_destroy(&attr);
    core->scheduling = rc == 0;
    return rc < 0 ? err_sys(err, rc, "cannot start a thread") : 0;
}

void schedule_close(struct core *core)
{
    if (core->scheduling) {
        core_lock(core);
        core->closing = true;
        pthread_cond_broadcast(&core->scheduler_cond);
        core_unlock(core);
        pthread_join(core->scheduler, NULL);
        core->scheduling = false;
    }
}
