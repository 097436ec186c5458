/* Requests and answers: query arguments, ETags, JSON and problem+json bodies. */
#include <stdio.h>
#include <string.h>

#include "base/options.h"
#include "base/util.h"
#include "daemon/request.h"
#include "daemon/route.h"

const char *request_arg(const struct request *request, const char *name)
{
    for (unsigned i = 0; i < request->arg_count; i++) {
        if (strcmp(request->args[i].name, name) == 0) {
            return request->args[i].value;
        }
    }
    return NULL;
}

int request_arg_uint(const struct request *request, const char *name, uint64_t def, uint64_t max,
                     uint64_t *ret_value, struct fault *fault)
{
    const char *text = request_arg(request, name);
    *ret_value = def;
    if (!text) {
        return 0;
    }
    if (parse_uint(text, ret_value, NULL) < 0 || *ret_value > max) {
        return fault_set(fault, FAULT_INVALID, NULL, "'%s' must be a number from 0 to %llu, and is '%.32s'",
                         name, (unsigned long long)max, text);
    }
    return 0;
}

int request_expected(const struct request *request, uint64_t *ret_expected, struct fault *fault)
{
    *ret_expected = STORE_VERSION_ANY;
    const char *tag = request->if_match;
    if (!tag || strcmp(tag, "*") == 0) {
        return 0;
    }
    char text[32];
    size_t len = strlen(tag);
    if (len < 3 || len > sizeof(text) || tag[0] != '"' || tag[len - 1] != '"') {
        return fault_set(fault, FAULT_INVALID, "send the ETag as it came", "If-Match is no ETag: '%.32s'",
                         tag);
    }
    snprintf(text, sizeof(text), "%.*s", (int)(len - 2), tag + 1);
    if (parse_uint(text, ret_expected, NULL) < 0 || *ret_expected == STORE_VERSION_NEW) {
        return fault_set(fault, FAULT_CHANGED, "read it again",
                         "If-Match: '%.32s' is not the object's version", text);
    }
    return 0;
}

void request_done(struct request *request)
{
    for (unsigned i = 0; i < request->arg_count; i++) {
        free(request->args[i].name);
        free(request->args[i].value);
    }
    caller_done(&request->caller);
    json_decref(request->body);
    free(request->body_text);
    free(request->if_match);
    free(request->text);
}

void answer_text(struct request *request, const char *type, char *text, size_t len)
{
    request->status = 200;
    request->type = type;
    request->text = text;
    request->len = len;
}

void answer_json(struct request *request, int status, json_t *object)
{
    char *text = object ? json_dumps(object, JSON_COMPACT) : NULL;
    json_decref(object);
    answer_text(request, NULL, text, text ? strlen(text) : 0);
    request->status = text ? status : 500;
}

/* Only the members that ?fields= names; the name always. */
static json_t *project(const struct request *request, json_t *object)
{
    const char *fields = request_arg(request, "fields");
    if (!fields) {
        return object;
    }
    json_t *some = json_object();
    json_object_set(some, "name", json_object_get(object, "name"));
    while (*fields) {
        char name[64];
        size_t len = strcspn(fields, ",");
        snprintf(name, sizeof(name), "%.*s", (int)MIN(len, sizeof(name) - 1), fields);
        json_t *value = json_object_get(object, name);
        if (value) {
            json_object_set(some, name, value);
        }
        fields += len;
        fields += *fields == ',';
    }
    json_decref(object);
    return some;
}

void answer_object(struct request *request, int status, const struct object_type *type, json_t *object,
                   uint64_t version)
{
    for (unsigned i = 0; i < type->count; i++) {
        if (type->fields[i].flags & F_SECRET) {
            json_object_del(object, type->fields[i].name);
        }
    }
    if (version) {
        obj_set_int(object, "version", (int64_t)version);
    }
    answer_json(request, status, project(request, object));
    request->version = version;
}

void answer_fault(struct request *request, const struct fault *fault)
{
    json_t *problem = json_pack("{s:s, s:s, s:i, s:s, s:s}", "type", "about:blank", "title",
                                fault_title(fault->code), "status", fault_http(fault->code), "code",
                                fault_word(fault->code), "detail", fault->detail);
    if (!problem) {
        problem = json_pack("{s:s, s:s, s:i, s:s, s:s}", "type", "about:blank", "title",
                            fault_title(fault->code), "status", fault_http(fault->code), "code",
                            fault_word(fault->code), "detail", "(a name in this message is not UTF-8)");
    }
    if (fault->hint[0]) {
        obj_set_text(problem, "hint", fault->hint);
    }
    free(request->text);
    answer_json(request, fault_http(fault->code), problem);
    request->type = "application/problem+json";
    request->retry = fault->code == FAULT_LIMIT;
}

void answer_job(struct request *request, const char *job)
{
    struct fault fault = {0};
    json_t *object = NULL;
    uint64_t version = 0;
    bool ended = job_ended(request->core, job);
    if (job_get(request->core, job, &object, &version, &fault) < 0) {
        answer_fault(request, &fault);
        return;
    }
    free(request->text);
    request->text = NULL;
    answer_object(request, ended ? 200 : 202, &model_job, object, version);
    snprintf(request->location, sizeof(request->location), "/v1/jobs/%s", job);
    if (!ended) {
        snprintf(request->job, sizeof(request->job), "%s", job);
    }
}
