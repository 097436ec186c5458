/* The daemon itself, users' tokens, jobs, events and the audit log. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>

#include "base/util.h"
#include "daemon/handlers.h"

int handle_openapi(struct request *request, struct fault *fault)
{
    char *text = openapi_text();
    answer_text(request, NULL, text, text ? strlen(text) : 0);
    return text ? 0 : fault_set(fault, FAULT_INTERNAL, NULL, "no memory");
}

int handle_metrics(struct request *request, struct fault *fault)
{
    char *text = metrics_text(request->core);
    answer_text(request, "text/plain; version=0.0.4; charset=utf-8", text, text ? strlen(text) : 0);
    return text ? 0 : fault_set(fault, FAULT_INTERNAL, NULL, "no memory");
}

int handle_host(struct request *request, struct fault *fault)
{
    struct sysinfo info = {0};
    struct utsname name = {0};
    sysinfo(&info);
    uname(&name);
    answer_json(request, 200,
                json_pack("{s:s, s:i, s:s, s:i, s:I, s:s, s:I}", "version", FONDA_VERSION, "pid",
                          (int)getpid(), "state_dir", core_state_dir(request->core), "cpus",
                          (int)sysconf(_SC_NPROCESSORS_ONLN), "memory",
                          (json_int_t)info.totalram * info.mem_unit, "kernel", name.release, "uptime_ms",
                          (json_int_t)core_uptime_ms(request->core)));
    return 0;
}

int handle_whoami(struct request *request, struct fault *fault)
{
    answer_json(
        request, 200,
        json_pack("{s:s, s:s}", "name", request->caller.name, "role", role_name(request->caller.role)));
    return 0;
}

/* ---- signing in with a browser ---- */

int handle_web(struct request *request, struct fault *fault)
{
    char code[SIGNIN_CODE_LEN + 1], url[256];
    unsigned port = 0;
    if (!request->open_web) {
        return fault_set(fault, FAULT_UNSUPPORTED, NULL, "there is no page here");
    }
    if ((!request->host[0] && request->open_web(request->open_web_opaque, &port, fault) < 0) ||
        signin_code(request->core, &request->caller, code, fault) < 0) {
        return -1;
    }
    if (request->host[0]) {
        snprintf(url, sizeof(url), "https://%s/#/signin/%s", request->host, code);
    } else {
        snprintf(url, sizeof(url), "http://127.0.0.1:%u/#/signin/%s", port, code);
    }
    answer_json(request, 201, json_pack("{s:s, s:s}", "url", url, "code", code));
    return 0;
}

int handle_session(struct request *request, struct fault *fault)
{
    char token[SESSION_TOKEN_LEN + 1];
    struct caller caller = {0};
    if (signin_redeem(request->core, obj_text(request->body, "code"), &caller, token, fault) < 0) {
        return -1;
    }
    snprintf(caller.from, sizeof(caller.from), "%s", request->caller.from);
    caller_done(&request->caller);
    request->caller = caller; /* for the audit log */
    answer_json(request, 201, json_pack("{s:s}", "token", token));
    return 0;
}

int handle_session_end(struct request *request, struct fault *fault)
{
    signin_end(request->core, &request->caller);
    request->status = 204;
    return 0;
}

int handle_token(struct request *request, struct fault *fault)
{
    char *token = NULL;
    if (user_new_token(request->core, &request->caller, request->name, &token, fault) < 0) {
        return -1;
    }
    answer_json(request, 201, json_pack("{s:s}", "token", token));
    free(token);
    return 0;
}

/* ---- jobs: those who asked for one may always look at it ---- */

static int check_job(struct request *request, enum role role, struct fault *fault)
{
    json_t *job = NULL;
    if (job_get(request->core, request->name, &job, NULL, fault) < 0) {
        if (request->caller.role < ROLE_VIEWER) {
            return fault_set(fault, FAULT_FORBIDDEN, NULL, "this is not your job");
        }
        return -1;
    }
    bool own = strcmp(obj_text(job, "owner"), request->caller.name) == 0;
    json_decref(job);
    if (!own && request->caller.role < role) {
        return fault_set(fault, FAULT_FORBIDDEN, "ask whoever started it",
                         "this is not your job, and needs the role %s", role_name(role));
    }
    return 0;
}

int handle_job(struct request *request, struct fault *fault)
{
    if (check_job(request, ROLE_VIEWER, fault) < 0) {
        return -1;
    }
    answer_job(request, request->name);
    request->status = 200;
    return 0;
}

int handle_job_cancel(struct request *request, struct fault *fault)
{
    if (check_job(request, ROLE_OPERATOR, fault) < 0 || job_cancel(request->core, request->name, fault) < 0) {
        return -1;
    }
    answer_job(request, request->name);
    return 0;
}

/* ---- logs ---- */

struct records {
    json_t *items;
    const struct caller *caller; /* NULL: everything is shown */
    size_t room;
};

static bool add_record(void *arg, const struct store_row *row)
{
    struct records *records = arg;
    json_t *record = json_loads(row->json, 0, NULL);
    if (records->caller && !events_seen(records->caller, record)) {
        json_decref(record);
        return true;
    }
    obj_set_int(record, "seq", (int64_t)row->version);
    json_array_append_new(records->items, record);
    return json_array_size(records->items) < records->room;
}

static int show_log(struct request *request, const char *log, struct fault *fault)
{
    uint64_t after, limit;
    struct err err = {0};
    if (request_arg_uint(request, "after", 0, INT64_MAX, &after, fault) < 0 ||
        request_arg_uint(request, "limit", LIST_LIMIT, LIST_LIMIT_MAX, &limit, fault) < 0) {
        return -1;
    }
    bool filtered = strcmp(log, EVENTS_LOG) == 0 && request->caller.role < ROLE_VIEWER;
    struct records records = {json_array(), filtered ? &request->caller : NULL, .room = limit};
    if (limit && store_log(core_store(request->core), log, after, filtered ? EVENTS_KEEP : (unsigned)limit,
                           add_record, &records, &err) < 0) {
        json_decref(records.items);
        return fault_from_err(fault, &err);
    }
    answer_json(request, 200,
                json_pack("{s:o, s:I}", "items", records.items, "last",
                          (json_int_t)store_log_last(core_store(request->core), log)));
    return 0;
}

int handle_events(struct request *request, struct fault *fault)
{
    return show_log(request, EVENTS_LOG, fault);
}

int handle_audit(struct request *request, struct fault *fault)
{
    return show_log(request, AUDIT_LOG, fault);
}
