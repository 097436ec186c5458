/*
 * Jobs: work that outlasts its request, with progress, an end that can be waited for, and cancelling. And the
 * built-in methods.
 */
#include <stdio.h>
#include <string.h>

#include "base/util.h"
#include "control/control_int.h"

static json_t *job_json(const struct control_job *job)
{
    json_t *out = json_pack("{s:s, s:s, s:I, s:I}", "job", job->name, "state",
                            !job->ended ? "running" : (job->error ? "failed" : "done"), "done",
                            (json_int_t)job->done, "total", (json_int_t)job->total);
    if (job->result) {
        json_object_set(out, "result", job->result);
    }
    if (job->error) {
        json_object_set(out, "error", job->error);
    }
    return out;
}

static void job_free(struct control_job *job)
{
    json_decref(job->result);
    json_decref(job->error);
    free(job);
}

void control_jobs_free(struct control *control)
{
    while (control->jobs) {
        struct control_job *job = control->jobs;
        control->jobs = job->next;
        job_free(job);
    }
}

/* Makes room by forgetting the oldest ended job. False: all of them run. */
static bool make_room(struct control *control)
{
    struct control_job **oldest = NULL;
    if (control->job_count < CONTROL_JOBS_MAX) {
        return true;
    }
    for (struct control_job **at = &control->jobs; *at; at = &(*at)->next) {
        oldest = (*at)->ended ? at : oldest;
    }
    if (oldest) {
        struct control_job *job = *oldest;
        *oldest = job->next;
        control->job_count--;
        job_free(job);
    }
    return oldest != NULL;
}

struct control_job *control_job_new(struct control *control, const char *kind, void (*cancel)(void *opaque),
                                    void *opaque)
{
    struct control_job *job = make_room(control) ? calloc(1, sizeof(*job)) : NULL;
    if (!job) {
        return NULL;
    }
    snprintf(job->name, sizeof(job->name), "%.24s-%llu", kind, (unsigned long long)++control->job_serial);
    job->control = control;
    job->cancel = cancel;
    job->opaque = opaque;
    job->next = control->jobs;
    control->jobs = job;
    control->job_count++;
    control->refs++; /* until it ends */
    return job;
}

const char *control_job_name(const struct control_job *job)
{
    return job->name;
}

void control_job_progress(struct control_job *job, uint64_t done, uint64_t total)
{
    job->done = done;
    job->total = total;
    control_event(job->control, "job", job_json(job));
}

void control_job_end(struct control_job *job, json_t *result, const struct err *err)
{
    struct control *control = job->control;
    job->ended = true;
    job->cancel = NULL;
    if (err) {
        job->error = control_error(control_code(err->code), NULL, err->text);
        json_decref(result);
    } else {
        job->result = result ? result : json_object();
    }
    struct control_call *waiters = job->waiters;
    job->waiters = NULL;
    json_t *end = job_json(job);
    control_event(control, "job", json_incref(end));
    while (waiters) {
        struct control_call *call = waiters;
        waiters = call->next_waiter;
        control_reply(call, json_incref(end));
    }
    json_decref(end);
    control_unref(control);
}

void control_reply_job(struct control_call *call, const struct control_job *job)
{
    control_reply(call, json_pack("{s:s}", "job", job->name));
}

/* --- built-in methods; opaque is the server ----------------------------------------------------------------
 */

/* The job that the parameters name; otherwise the call is failed. */
static struct control_job *find_job(struct control_call *call, json_t *params, const struct control *control)
{
    struct {
        const char *job;
    } p = {0};
    static const struct control_param table[] = {{"job", CONTROL_STRING, true, 0, 0, 0}};
    if (!control_params(call, params, table, ARRAY_SIZE(table), &p)) {
        return NULL;
    }
    for (struct control_job *job = control->jobs; job; job = job->next) {
        if (strcmp(job->name, p.job) == 0) {
            return job;
        }
    }
    control_fail(call, "not_found", "the method \"jobs\" lists them", "there is no job '%.64s'", p.job);
    return NULL;
}

static void on_jobs(struct control_call *call, json_t *params, void *opaque)
{
    const struct control *control = opaque;
    json_t *list = json_array();
    for (const struct control_job *job = control->jobs; job; job = job->next) {
        json_array_append_new(list, job_json(job));
    }
    control_reply(call, json_pack("{s:o}", "jobs", list));
}

static void on_job_status(struct control_call *call, json_t *params, void *opaque)
{
    const struct control_job *job = find_job(call, params, opaque);
    if (job) {
        control_reply(call, job_json(job));
    }
}

static void on_job_wait(struct control_call *call, json_t *params, void *opaque)
{
    struct control_job *job = find_job(call, params, opaque);
    if (job && job->ended) {
        control_reply(call, job_json(job));
    } else if (job) {
        call->next_waiter = job->waiters;
        job->waiters = call;
    }
}

static void on_job_cancel(struct control_call *call, json_t *params, void *opaque)
{
    struct control_job *job = find_job(call, params, opaque);
    if (!job) {
        return;
    }
    if (!job->ended && !job->cancelled && !job->cancel) {
        control_fail(call, "not_supported", "wait for its end", "the job '%s' can't be cancelled", job->name);
        return;
    }
    control_reply(call, job_json(job));
    if (!job->ended && !job->cancelled) {
        job->cancelled = true;
        job->cancel(job->opaque);
    }
}

static void on_subscribe(struct control_call *call, json_t *params, void *opaque)
{
    call->conn->subscribed = true;
    control_reply(call, NULL);
}

static void on_methods(struct control_call *call, json_t *params, void *opaque)
{
    const struct control *control = opaque;
    json_t *out = json_object();
    for (unsigned i = 0; i < control->method_count; i++) {
        json_object_set_new(out, control->methods[i].name, json_string(control->methods[i].about));
    }
    for (unsigned i = 0; i < control_builtin_count; i++) {
        json_object_set_new(out, control_builtins[i].name, json_string(control_builtins[i].about));
    }
    control_reply(call, json_pack("{s:o}", "methods", out));
}

const struct control_method control_builtins[] = {
    {"subscribe", "send events on this connection from now on", on_subscribe},
    {"methods", "the methods, each with a line about it", on_methods},
    {"jobs", "the jobs that run, and those that ended lately", on_jobs},
    {"job_status", "how far a job is: {job}", on_job_status},
    {"job_wait", "answers when a job has ended: {job}", on_job_wait},
    {"job_cancel", "asks a job to end early: {job}", on_job_cancel},
};
const unsigned control_builtin_count = ARRAY_SIZE(control_builtins);
