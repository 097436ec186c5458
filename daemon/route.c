/*
 * From a request to its handler: path, role, body.
 */
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/util.h"
#include "daemon/route.h"

/* Takes one part of a path for a {placeholder} of FIELD_NAME_MAX + 1 bytes; NULL: it can't be one. */
static const char *take_part(const char *path, char *part)
{
    size_t len = strcspn(path, "/");
    if (len == 0 || len > FIELD_NAME_MAX) {
        return NULL;
    }
    memcpy(part, path, len);
    part[len] = '\0';
    return path + len;
}

/* Whether path is the route's; takes {name} and {item} out of it. */
static bool match(const char *pattern, const char *path, char *name, char *item)
{
    while (*pattern) {
        if (*pattern == '{') {
            path = take_part(path, strncmp(pattern, "{name}", 6) == 0 ? name : item);
            if (!path) {
                return false;
            }
            pattern += 6; /* both are as long */
        } else if (*pattern++ != *path++) {
            return false;
        }
    }
    return *path == '\0';
}

static int find_route(struct request *request, struct fault *fault)
{
    char allowed[64] = "";
    const char *method = strcmp(request->method, "HEAD") == 0 ? "GET" : request->method;
    for (unsigned i = 0; i < route_count; i++) {
        char name[FIELD_NAME_MAX + 1] = "", item[FIELD_NAME_MAX + 1] = "";
        if (!match(routes[i].path, request->path, name, item)) {
            continue;
        }
        if (strcmp(routes[i].method, method) == 0) {
            if ((name[0] && !field_name_ok(name)) || (item[0] && !field_name_ok(item))) {
                return fault_set(fault, FAULT_INVALID, NULL, "'%.64s' is no name",
                                 name[0] && !field_name_ok(name) ? name : item);
            }
            memcpy(request->name, name, sizeof(name));
            memcpy(request->item, item, sizeof(item));
            request->route = &routes[i];
            return 0;
        }
        size_t used = strlen(allowed);
        snprintf(allowed + used, sizeof(allowed) - used, "%s%s", used ? ", " : "", routes[i].method);
    }
    if (allowed[0]) {
        return fault_set(fault, FAULT_METHOD, NULL, "%s can't be used here: %s can", request->method,
                         allowed);
    }
    return fault_set(fault, FAULT_NOT_FOUND, "see /openapi.json", "there is nothing at '%.128s'",
                     request->path);
}

static int check_role(const struct request *request, struct fault *fault)
{
    const struct route *route = request->route;
    if (route->flags & ROUTE_OPEN) {
        return 0;
    }
    if (!request->caller.name[0]) {
        return fault_set(fault, FAULT_UNAUTHORIZED, "send a token: Authorization: Bearer ...",
                         "nobody has signed in");
    }
    enum role has = caller_role(&request->caller, route->flags & ROUTE_GRANTS ? request->name : NULL);
    bool filtered =
        (route->flags & ROUTE_LIST && route->type == &model_instance) || route->type == &model_event;
    if (filtered && json_object_size(request->caller.grants)) {
        has = MAX(has, ROLE_VIEWER); /* the list and the events show what is granted */
    }
    if (has < route->role) {
        return fault_set(fault, FAULT_FORBIDDEN, "ask an administrator for a role or a grant",
                         "'%s' has the role %s, and this needs %s", request->caller.name, role_name(has),
                         role_name(route->role));
    }
    return 0;
}

static int read_body(struct request *request, struct fault *fault)
{
    const struct route *route = request->route;
    if (!route->body) {
        return 0; /* whatever was sent with it does not matter */
    }
    if (!request->body_len) {
        request->body = json_object();
        return route->flags & ROUTE_OPTIONAL
                   ? 0
                   : fault_set(fault, FAULT_INVALID, "send a JSON object", "the body is empty");
    }
    if (!request->json_type) {
        return fault_set(fault, FAULT_MEDIA, "Content-Type: application/json",
                         "the body is not declared as JSON");
    }
    json_error_t error;
    request->body = json_loadb(request->body_text, request->body_len, JSON_REJECT_DUPLICATES, &error);
    if (!request->body) {
        return fault_set(fault, FAULT_INVALID, "send a JSON object",
                         "the body is not JSON: line %d, column %d: %s", error.line, error.column,
                         error.text);
    }
    bool host_ok = request->caller.role == ROLE_ADMIN;
    return field_check(route->body, request->body, route->mode, host_ok, fault);
}

bool route_dispatch(struct request *request)
{
    struct fault fault = {0};
    uint64_t wait = 0;
    int rc = find_route(request, &fault);
    if (rc == 0 && (request->route->flags & ROUTE_WS)) {
        rc = fault_set(&fault, FAULT_INVALID, "Upgrade: websocket", "this is a web socket");
    }
    if (rc == 0) {
        rc = check_role(request, &fault);
    }
    if (rc == 0 && rate_exceeded(request->caller.name)) {
        rc = fault_set(&fault, FAULT_LIMIT, "wait a second", "too many requests of '%s'",
                       request->caller.name);
    }
    if (rc == 0) {
        rc = read_body(request, &fault);
    }
    if (rc == 0 && (request->route->flags & ROUTE_JOB)) {
        rc = request_arg_uint(request, "wait", 0, REQUEST_WAIT_MAX, &wait, &fault);
        request->wait_s = (unsigned)wait;
    }
    if (rc == 0 && (request->route->flags & ROUTE_ASIDE)) {
        return true;
    }
    if (rc == 0) {
        rc = request->route->handler(request, &fault);
    }
    if (rc < 0) {
        answer_fault(request, &fault);
    }
    return false;
}

void route_aside(struct request *request)
{
    struct fault fault = {0};
    if (request->route->handler(request, &fault) < 0) {
        answer_fault(request, &fault);
    }
}

const struct route *route_upgrade(struct request *request, struct fault *fault)
{
    if (find_route(request, fault) < 0 || check_role(request, fault) < 0) {
        return NULL;
    }
    if (!(request->route->flags & ROUTE_WS)) {
        fault_set(fault, FAULT_INVALID, NULL, "'%.128s' is no web socket", request->path);
        return NULL;
    }
    return request->route;
}

/* ---- rate ---- */

#define RATE_PER_S 2000.0
#define RATE_BURST 4000.0
#define RATE_SLOTS 64

/* A bucket per caller; callers whose names collide share one. Main loop only. */
bool rate_exceeded(const char *who)
{
    static struct {
        double tokens;
        struct timespec at;
    } buckets[RATE_SLOTS];
    unsigned hash = 5381;
    for (const char *c = who; *c; c++) {
        hash = hash * 33 + (unsigned char)*c;
    }
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    double *tokens = &buckets[hash % RATE_SLOTS].tokens;
    struct timespec *at = &buckets[hash % RATE_SLOTS].at;
    double passed = (double)(now.tv_sec - at->tv_sec) + (double)(now.tv_nsec - at->tv_nsec) / 1e9;
    *at = now;
    *tokens = MIN(*tokens + passed * RATE_PER_S, RATE_BURST);
    if (*tokens < 1) {
        return true;
    }
    *tokens -= 1;
    return false;
}
