/* The methods of the control protocol. Each replies once: at once, or when a call of fonda-oci is over. */
#include "container/monitor/monitor.h"

#include "base/util.h"
#include "container/signals.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

/* One request that waits for fonda-oci. */
struct pending {
    struct client *client;
    json_t *id;
    bool wants_output;
    enum life life; /* of the container on success; LIFE_STOPPED: as it was */
};

static void on_called(struct call *call)
{
    struct pending *p = call->opaque;
    if (call->status == 0 && p->life != LIFE_STOPPED &&
        (call->m->life == LIFE_RUNNING || call->m->life == LIFE_PAUSED)) {
        life_set(call->m, p->life);
    }
    json_t *result = p->wants_output && call->text ? json_loads(call->text, 0, NULL) : NULL;
    if (call->status) {
        server_error(p->client, p->id, "runtime_error", NULL, "%s", call->message);
    } else if (p->wants_output && !result) {
        server_error(p->client, p->id, "runtime_error", NULL, "fonda-oci printed no JSON");
    } else {
        server_reply(p->client, p->id, result);
    }
    server_release(p->client);
    free(p);
}

static void by_runtime(struct client *c, json_t *id, const char *const *args, bool wants_output,
                       enum life life)
{
    struct err err = {.code = 0};
    struct pending *p = calloc(1, sizeof(*p));
    if (!p) {
        server_error(c, id, "out_of_memory", NULL, "out of memory");
        return;
    }
    *p = (struct pending){c, id, wants_output, life};
    if (!oci_call(c->m, args, NULL, OCI_OUTPUT_MAX, OCI_SECONDS, on_called, p, &err)) {
        server_error(c, id, "runtime_error", NULL, "%s", err.text);
        free(p);
        return;
    }
    c->waiting++;
}

/* False, and the error is sent, unless the container is in one of the states (bits). */
static bool in_state(struct client *c, json_t *id, const char *what, unsigned states)
{
    if (states >> c->m->life & 1) {
        return true;
    }
    server_error(c, id, "wrong_state", NULL, "cannot %s container '%s': it is %s", what, c->m->o.id,
                 life_names[c->m->life]);
    return false;
}

static void m_status(struct client *c, json_t *id, json_t *params)
{
    server_reply(c, id, record_status(c->m));
}

static void m_start(struct client *c, json_t *id, json_t *params)
{
    struct err err = {.code = 0};
    if (!in_state(c, id, "start", BIT(LIFE_CREATED))) {
        return;
    }
    if (life_start(c->m, &err) < 0) {
        server_error(c, id, "runtime_error", NULL, "%s", err.text);
        return;
    }
    server_reply(c, id, NULL);
}

static void m_pause(struct client *c, json_t *id, json_t *params)
{
    const char *const args[] = {"pause", c->m->o.id, NULL};
    if (in_state(c, id, "pause", BIT(LIFE_RUNNING))) {
        by_runtime(c, id, args, false, LIFE_PAUSED);
    }
}

static void m_resume(struct client *c, json_t *id, json_t *params)
{
    const char *const args[] = {"resume", c->m->o.id, NULL};
    if (in_state(c, id, "resume", BIT(LIFE_PAUSED))) {
        by_runtime(c, id, args, false, LIFE_RUNNING);
    }
}

static void m_stats(struct client *c, json_t *id, json_t *params)
{
    const char *const args[] = {"events", "--stats", c->m->o.id, NULL};
    if (in_state(c, id, "measure", BIT(LIFE_RUNNING) | BIT(LIFE_PAUSED) | BIT(LIFE_CREATED))) {
        by_runtime(c, id, args, true, LIFE_STOPPED);
    }
}

static void m_top(struct client *c, json_t *id, json_t *params)
{
    const char *const args[] = {"ps", "--format", "json", c->m->o.id, NULL};
    if (in_state(c, id, "list the processes of", BIT(LIFE_RUNNING) | BIT(LIFE_PAUSED) | BIT(LIFE_CREATED))) {
        by_runtime(c, id, args, true, LIFE_STOPPED);
    }
}

static void m_stop(struct client *c, json_t *id, json_t *params)
{
    life_stop(c->m, json_is_true(json_object_get(params, "force")));
    server_reply(c, id, json_pack("{s:s}", "job", STOP_JOB));
}

static void m_kill(struct client *c, json_t *id, json_t *params)
{
    json_t *value = json_object_get(params, "signal");
    int signal = !value                   ? SIGKILL
                 : json_is_integer(value) ? (int)MIN(MAX(json_integer_value(value), 0), 65)
                 : json_is_string(value)  ? signal_number(json_string_value(value))
                                          : 0;
    struct err err = {.code = 0};
    if (signal <= 0 || signal > 64) {
        server_error(c, id, "bad_params", "a name such as TERM, or a number",
                     "kill: 'signal' is not a signal");
        return;
    }
    if (!in_state(c, id, "signal", BIT(LIFE_RUNNING) | BIT(LIFE_PAUSED) | BIT(LIFE_CREATED))) {
        return;
    }
    if (life_signal(c->m, signal, &err) < 0) {
        server_error(c, id, "runtime_error", NULL, "%s", err.text);
    } else {
        server_reply(c, id, NULL);
    }
}

static void m_attach(struct client *c, json_t *id, json_t *params)
{
    static const struct {
        const char *name;
        unsigned wants;
    } channels[] = {{"serial", 3 | ATTACH_INPUT},
                    {"stdio", 3 | ATTACH_INPUT},
                    {"output", 3},
                    {"stdout", 1},
                    {"stdin+stdout", 1 | ATTACH_INPUT},
                    {"stderr", 2}};
    json_t *value = json_object_get(params, "channel");
    const char *name = value ? json_string_value(value) : "stdio";
    size_t i = 0;
    while (i < ARRAY_SIZE(channels) && (!name || strcmp(name, channels[i].name) != 0)) {
        i++;
    }
    if (i == ARRAY_SIZE(channels)) {
        server_error(c, id, "bad_params", "stdio, output, stdout, stdin+stdout or stderr",
                     "attach: no such channel");
        return;
    }
    if (!in_state(c, id, "attach to", BIT(LIFE_CREATED) | BIT(LIFE_RUNNING) | BIT(LIFE_PAUSED))) {
        return;
    }
    struct monitor *m = c->m;
    char *rest = NULL;
    size_t size = 0;
    server_reply(c, id, NULL);
    int fd = server_hijack(c, &rest, &size);
    if (fd >= 0) {
        (void)attach_new(m, fd, channels[i].wants, rest,
                         size); /* on failure the connection is closed, which says it */
    }
    free(rest);
}

static void m_resize(struct client *c, json_t *id, json_t *params)
{
    json_int_t rows = json_integer_value(json_object_get(params, "rows"));
    json_int_t columns = json_integer_value(json_object_get(params, "columns"));
    struct err err = {.code = 0};
    if (rows < 1 || rows > 65535 || columns < 1 || columns > 65535) {
        server_error(c, id, "bad_params", NULL, "resize: rows and columns must be from 1 to 65535");
    } else if (streams_resize(c->m, (unsigned)rows, (unsigned)columns, &err) < 0) {
        server_error(c, id, "no_terminal", NULL, "%s", err.text);
    } else {
        server_reply(c, id, NULL);
    }
}

static void m_subscribe(struct client *c, json_t *id, json_t *params)
{
    c->subscribed = true;
    server_reply(c, id, NULL);
}

json_t *methods_job_json(const struct monitor *m)
{
    return json_pack("{s:s, s:s, s:i, s:i}", "job", STOP_JOB, "state",
                     m->stop_job == JOB_RUNNING ? "running" : "done", "done", m->stop_job == JOB_DONE,
                     "total", 1);
}

static void m_job_status(struct client *c, json_t *id, json_t *params)
{
    const char *name = json_string_value(json_object_get(params, "job"));
    if (!name || strcmp(name, STOP_JOB) != 0 || c->m->stop_job == JOB_NONE) {
        server_error(c, id, "no_such_job", NULL, "there is no job '%s'", name ? name : "");
    } else {
        server_reply(c, id, methods_job_json(c->m));
    }
}

static void m_jobs(struct client *c, json_t *id, json_t *params)
{
    json_t *jobs = json_array();
    if (c->m->stop_job != JOB_NONE) {
        json_array_append_new(jobs, methods_job_json(c->m));
    }
    server_reply(c, id, json_pack("{s:o}", "jobs", jobs));
}

static void m_job_wait(struct client *c, json_t *id, json_t *params)
{
    struct monitor *m = c->m;
    struct waiter *w = m->stop_job == JOB_RUNNING ? calloc(1, sizeof(*w)) : NULL;
    if (!w) {
        m_job_status(c, id, params);
        return;
    }
    *w = (struct waiter){.client = c, .id = id, .next = m->waiters};
    m->waiters = w;
    c->waiting++;
}

void methods_job_ended(struct monitor *m)
{
    while (m->waiters) {
        struct waiter *w = m->waiters;
        m->waiters = w->next;
        server_reply(w->client, w->id, methods_job_json(m));
        server_release(w->client);
        free(w);
    }
}

static void m_job_cancel(struct client *c, json_t *id, json_t *params)
{
    server_error(c, id, "cannot_cancel", NULL,
                 "a stop can't be taken back: the container has got the signal");
}

static void m_quit(struct client *c, json_t *id, json_t *params)
{
    server_reply(c, id, NULL);
    life_quit(c->m);
}

static const struct {
    const char *name;
    void (*fn)(struct client *c, json_t *id, json_t *params); /* takes id */
    const char *params[2];                                    /* what it knows */
} methods[] = {
    {"status", m_status, {NULL}},
    {"start", m_start, {NULL}},
    {"stop", m_stop, {"force"}},
    {"kill", m_kill, {"signal"}},
    {"pause", m_pause, {NULL}},
    {"resume", m_resume, {NULL}},
    {"stats", m_stats, {NULL}},
    {"top", m_top, {NULL}},
    {"attach", m_attach, {"channel"}},
    {"resize", m_resize, {"rows", "columns"}},
    {"subscribe", m_subscribe, {NULL}},
    {"jobs", m_jobs, {NULL}},
    {"job_status", m_job_status, {"job"}},
    {"job_wait", m_job_wait, {"job"}},
    {"job_cancel", m_job_cancel, {"job"}},
    {"quit", m_quit, {NULL}},
};

/* A parameter that the method doesn't know; NULL: there is none. */
static const char *unknown_param(json_t *params, const char *const known[2])
{
    const char *key;
    json_t *value;
    json_object_foreach(params, key, value)
    {
        if ((!known[0] || strcmp(key, known[0]) != 0) && (!known[1] || strcmp(key, known[1]) != 0)) {
            return key;
        }
    }
    return NULL;
}

void method_call(struct client *c, json_t *request)
{
    json_t *id = json_object_get(request, "id");
    json_t *params = json_object_get(request, "params");
    const char *name = json_string_value(json_object_get(request, "method"));
    id = id ? json_incref(id) : json_null();
    if (!name || (params && !json_is_object(params))) {
        server_error(c, id, "bad_request", "{\"id\": 1, \"method\": \"status\", \"params\": {}}",
                     "a request needs a method, and params must be an object");
        return;
    }
    for (size_t i = 0; i < ARRAY_SIZE(methods); i++) {
        if (strcmp(name, methods[i].name) != 0) {
            continue;
        }
        const char *unknown = unknown_param(params, methods[i].params);
        if (unknown) {
            server_error(c, id, "bad_params", NULL, "%s: there is no parameter '%.64s'", name, unknown);
        } else {
            methods[i].fn(c, id, params);
        }
        return;
    }
    server_error(c, id, "no_such_method", NULL, "there is no method '%.64s'", name);
}
