/*
 * Jobs: a queue, a few worker threads, and a record of each job in the store.
 *
 *     job_add        job_kick + worker            run() returns
 *     ------> queued ----------------> running ------------------> done | failed | canceled
 *                |  job_cancel                       daemon killed: failed, "daemon_restarted" (jobs_open)
 *                +-----------> canceled
 *
 * Invariants
 *   1. At most one job per target runs at a time; the queue's order holds per target.
 *   2. Open jobs are in core->jobs and in the store; ended ones in the store alone.
 *   3. A job's record of progress is as new as its last step; bytes are only in memory.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "base/util.h"
#include "core/core_int.h"

#define JOB_LOG_MAX 200

struct job {
    struct job *next;
    struct core *core;
    const struct job_type *type;
    char name[24], target[128]; /* "instances/web" */
    char *who;
    json_t *args, *record;
    char hold[32]; /* id of what it copies; "": nothing */
    bool committed, running;
    volatile bool canceled;
    uint64_t bytes_done, bytes; /* under the lock of nobody: shown as they are */
    uint64_t serial;            /* core->job_serial at its last change */
};

const char *job_target(const struct job *job)
{
    return strchr(job->target, '/') + 1;
}

const char *job_who(const struct job *job)
{
    return job->who;
}

const json_t *job_args(const struct job *job)
{
    return job->args;
}

bool job_canceled(const struct job *job)
{
    return job->canceled;
}

static void job_free(struct job *job)
{
    json_decref(job->args);
    json_decref(job->record);
    free(job->who);
    free(job);
}

static void unlist(struct core *core, struct job *job)
{
    for (struct job **at = &core->jobs; *at; at = &(*at)->next) {
        if (*at == job) {
            *at = job->next;
            core->job_open--;
            return;
        }
    }
}

static struct job *find(struct core *core, const char *name)
{
    struct job *job = core->jobs;
    while (job && strcmp(job->name, name) != 0) {
        job = job->next;
    }
    return job;
}

static int save(struct core *core, struct job *job, uint64_t expected, struct fault *fault)
{
    return object_put(core, &model_job, job->record, expected, NULL, NULL, fault);
}

int job_add(struct core *core, const struct job_type *type, const struct object_type *of, const char *target,
            const char *who, json_t *args, char *ret_name, struct fault *fault)
{
    if (core->job_open >= JOBS_OPEN_MAX) {
        json_decref(args);
        return fault_set(fault, FAULT_LIMIT, "wait until some have ended", "%u jobs are open already",
                         JOBS_OPEN_MAX);
    }
    struct job *job = calloc(1, sizeof(*job));
    if (!job) {
        json_decref(args);
        return fault_set(fault, FAULT_INTERNAL, NULL, "no memory");
    }
    job->type = type;
    job->core = core;
    job->args = args;
    job->who = strdup(who);
    snprintf(job->name, sizeof(job->name), "j%lld", (long long)++core->job_last);
    snprintf(job->target, sizeof(job->target), "%s/%s", of->plural, target);
    job->record =
        json_pack("{s:s, s:I, s:s, s:s, s:s, s:s}", "name", job->name, "number", (json_int_t)core->job_last,
                  "type", type->name, "target", job->target, "state", "queued", "owner", who);
    field_defaults(&model_job, job->record);
    obj_set_now(job->record, "created_at");
    if (save(core, job, STORE_VERSION_NEW, fault) < 0) {
        job_free(job);
        return -1;
    }
    struct job **end = &core->jobs;
    while (*end) {
        end = &(*end)->next;
    }
    *end = job;
    core->job_open++;
    snprintf(ret_name, sizeof(job->name), "%s", job->name);
    return 0;
}

void job_kick(struct core *core)
{
    for (struct job *job = core->jobs; job; job = job->next) {
        job->committed = true;
    }
    pthread_cond_broadcast(&core->job_cond);
}

void job_forget(struct core *core, const char *name)
{
    struct job *job = find(core, name);
    if (job && !job->committed) {
        unlist(core, job);
        job_free(job);
    }
}

void job_hold(struct core *core, const char *name, const char *id)
{
    struct job *job = find(core, name);
    if (job) {
        snprintf(job->hold, sizeof(job->hold), "%s", id);
    }
}

const char *job_holding(struct core *core, const char *id)
{
    for (const struct job *job = core->jobs; job; job = job->next) {
        if (strcmp(job->hold, id) == 0) {
            return job->name;
        }
    }
    return NULL;
}

bool job_open_for(struct core *core, const struct object_type *of, const char *name)
{
    char target[128];
    snprintf(target, sizeof(target), "%s/%s", of->plural, name);
    for (const struct job *job = core->jobs; job; job = job->next) {
        if (strcmp(job->target, target) == 0) {
            return true;
        }
    }
    return false;
}

/* ---- the record ---- */

static json_t *error_of(const struct fault *fault)
{
    json_t *error = json_pack("{s:s, s:s}", "code", fault_word(fault->code), "detail", fault->detail);
    if (!error) {
        error = json_pack("{s:s, s:s}", "code", fault_word(fault->code), "detail", "(not UTF-8)");
    }
    if (fault->hint[0]) {
        json_object_set_new(error, "hint", json_string(fault->hint));
    }
    return error;
}

static void finish(struct core *core, struct job *job, const char *state, const struct fault *fault)
{
    struct fault ignored = {0};
    char event[80];
    obj_set_text(job->record, "state", state);
    obj_set_now(job->record, "ended_at");
    obj_set_int(job->record, "bytes_done", (int64_t)job->bytes_done);
    obj_set_int(job->record, "bytes", (int64_t)job->bytes);
    if (fault) {
        json_object_set_new(job->record, "error", error_of(fault));
    }
    snprintf(event, sizeof(event), "job.%s", state);
    if (object_put(core, &model_job, job->record, STORE_VERSION_ANY, NULL, NULL, &ignored) < 0 ||
        event_add(core, event, &model_job, job->name, job->who,
                  json_pack("{s:s, s:s}", "type", job->type->name, "target", job->target), &ignored) < 0) {
        log_error("cannot record the end of job %s: %s", job->name, ignored.detail);
    }
    unlist(core, job);
    core->config.wake(core->config.opaque);
}

void job_step(struct core *core, struct job *job, unsigned done, unsigned steps, const char *step)
{
    core_lock(core);
    obj_set_int(job->record, "steps_done", done);
    obj_set_int(job->record, "steps", steps);
    obj_set_text(job->record, "step", step);
    core_unlock(core);
    job_log(core, job, "%s", step);
}

/* Those who look at the job will see it. Locked. */
static void changed(struct core *core, struct job *job)
{
    job->serial = ++core->job_serial;
    core->config.wake(core->config.opaque);
}

void job_bytes(struct job *job, uint64_t done, uint64_t total)
{
    bool shows = !total || done * 100 / total != job->bytes_done * 100 / total;
    job->bytes_done = done;
    job->bytes = total;
    if (shows) {
        core_lock(job->core);
        changed(job->core, job);
        core_unlock(job->core);
    }
}

void job_log(struct core *core, struct job *job, const char *fmt, ...)
{
    char text[512];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    core_lock(core);
    json_t *log = json_object_get(job->record, "log");
    if (text[0] && json_array_size(log) < JOB_LOG_MAX) {
        json_t *line = json_string(text);
        json_array_append_new(log, line ? line : json_string("(not UTF-8)"));
    }
    changed(core, job);
    core_unlock(core);
}

uint64_t job_serial(const struct core *core)
{
    return core->job_serial;
}

json_t *jobs_changed(struct core *core, uint64_t serial)
{
    json_t *all = json_array();
    for (const struct job *job = core->jobs; job; job = job->next) {
        json_t *one = NULL;
        struct fault ignored = {0};
        if (job->serial > serial && job_get(core, job->name, &one, NULL, &ignored) == 0) {
            json_array_append_new(all, one);
        }
    }
    return all;
}

int job_get(struct core *core, const char *name, json_t **ret_job, uint64_t *ret_version, struct fault *fault)
{
    json_t *stored = NULL;
    if (object_get(core, &model_job, name, &stored, ret_version, fault) < 0) {
        return -1;
    }
    const struct job *open = find(core, name);
    if (open) {
        json_decref(stored);
        stored = json_deep_copy(open->record);
        obj_set_int(stored, "bytes_done", (int64_t)open->bytes_done);
        obj_set_int(stored, "bytes", (int64_t)open->bytes);
    }
    *ret_job = stored;
    return 0;
}

bool job_ended(struct core *core, const char *name)
{
    return !find(core, name);
}

unsigned job_count_open(struct core *core)
{
    return core->job_open;
}

int job_cancel(struct core *core, const char *name, struct fault *fault)
{
    struct job *job = find(core, name);
    if (!job) {
        json_t *ended = NULL;
        if (object_get(core, &model_job, name, &ended, NULL, fault) < 0) {
            return -1;
        }
        fault_set(fault, FAULT_STATE, NULL, "job %s has ended already (%s)", name, obj_text(ended, "state"));
        json_decref(ended);
        return -1;
    }
    job->canceled = true;
    pthread_cond_broadcast(
        &core->job_cond); /* a queued one ends at once, through a worker: it may have to undo */
    return 0;
}

/* ---- workers ---- */

static bool target_busy(struct core *core, const struct job *job)
{
    for (const struct job *other = core->jobs; other != job; other = other->next) {
        if (strcmp(other->target, job->target) == 0) {
            return true; /* it runs, or is first in the queue */
        }
    }
    return false;
}

static struct job *next_job(struct core *core)
{
    for (struct job *job = core->jobs; job; job = job->next) {
        if (job->committed && !job->running && !target_busy(core, job)) {
            return job;
        }
    }
    return NULL;
}

static bool number_row(void *arg, const struct store_row *row)
{
    *(int64_t *)arg = strtoll(row->name + 1, NULL, 10);
    return false;
}

/* Forgets the oldest ended jobs. */
static void trim(struct core *core)
{
    char name[24];
    if (core->job_last > JOBS_KEEP && core->job_last % 16 == 0) {
        for (int64_t i = 0; i < 32; i++) {
            snprintf(name, sizeof(name), "j%lld", (long long)(core->job_last - JOBS_KEEP - i));
            if (!find(core, name) &&
                store_delete(core->store, "job", name, STORE_VERSION_ANY, NULL) == -ENOENT) {
                break;
            }
        }
    }
}

static void *worker(void *arg)
{
    struct core *core = arg;
    core_lock(core);
    while (!core->closing) {
        struct job *job = next_job(core);
        if (!job) {
            pthread_cond_wait(&core->job_cond, &core->lock);
            continue;
        }
        struct fault fault = {0};
        job->running = true;
        obj_set_text(job->record, "state", "running");
        obj_set_now(job->record, "started_at");
        save(core, job, STORE_VERSION_ANY, &fault);
        core_unlock(core);
        int rc = job->type->run(core, job, &fault);
        core_lock(core);
        if (rc < 0 && fault.code == FAULT_NONE) {
            fault_set(&fault, FAULT_INTERNAL, NULL, "%s failed without saying why", job->type->name);
        }
        const char *state = rc == 0 ? "done" : fault.code == FAULT_CANCELED ? "canceled" : "failed";
        finish(core, job, state, rc == 0 ? NULL : &fault);
        trim(core);
        job_free(job);
        pthread_cond_broadcast(&core->job_cond); /* its target is free */
    }
    core_unlock(core);
    return NULL;
}

static bool collect_row(void *arg, const struct store_row *row)
{
    json_array_append_new(arg, json_loads(row->json, 0, NULL));
    return true;
}

/* What the last daemon had open. */
static int end_old_jobs(struct core *core, struct err *err)
{
    static const struct store_node nodes[] = {
        {.op = STORE_OP_EQ, .path = "state", .type = STORE_TEXT, .text = "queued"},
        {.op = STORE_OP_EQ, .path = "state", .type = STORE_TEXT, .text = "running"},
        {.op = STORE_OP_OR, .left = 0, .right = 1},
    };
    struct store_query query = {.nodes = nodes, .count = ARRAY_SIZE(nodes), .limit = UINT32_MAX};
    json_t *open = json_array(), *record;
    int rc = store_list(core->store, "job", &query, collect_row, open, NULL, err);
    size_t i;
    struct fault fault = {0}, why = {0};
    fault_set(&why, FAULT_RESTARTED, "look at the instance, then ask again",
              "the daemon ended while this job was open");
    json_array_foreach(open, i, record)
    {
        obj_set_text(record, "state", "failed");
        obj_set_now(record, "ended_at");
        json_object_set_new(record, "error", error_of(&why));
        if (rc == 0 && (object_put(core, &model_job, record, STORE_VERSION_ANY, NULL, NULL, &fault) < 0 ||
                        event_add(core, "job.failed", &model_job, obj_text(record, "name"),
                                  obj_text(record, "owner"), NULL, &fault) < 0)) {
            rc = err_set(err, -EIO, "%s", fault.detail);
        }
    }
    json_decref(open);
    return rc;
}

int jobs_open(struct core *core, struct err *err)
{
    struct store_query query = {.limit = 1, .sort_count = 1, .sort = {{"number", true}}};
    int rc = store_list(core->store, "job", &query, number_row, &core->job_last, NULL, err);
    if (rc == 0) {
        rc = end_old_jobs(core, err);
    }
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, 512 * KiB);
    while (rc == 0 && core->worker_count < JOB_WORKERS) {
        rc = -pthread_create(&core->workers[core->worker_count], &attr, worker, core);
        if (rc < 0) {
            err_sys(err, rc, "cannot start a thread");
        } else {
            core->worker_count++;
        }
    }
    pthread_attr_destroy(&attr);
    return rc;
}

void jobs_close(struct core *core)
{
    core_lock(core);
    core->closing = true;
    for (struct job *job = core->jobs; job; job = job->next) {
        job->canceled = true;
    }
    pthread_cond_broadcast(&core->job_cond);
    core_unlock(core);
    for (unsigned i = 0; i < core->worker_count; i++) {
        pthread_join(core->workers[i], NULL);
    }
    struct fault fault = {0};
    fault_set(&fault, FAULT_RESTARTED, "ask again", "the daemon ended before this job began");
    while (core->jobs) {
        struct job *job = core->jobs;
        core_lock(core);
        finish(core, job, "failed", &fault);
        core_unlock(core);
        job_free(job);
    }
}
