/*
 * The OpenAPI 3.1 description, from routes.c and the field tables. docs/openapi.json is what this prints.
 */
#include <stdio.h>
#include <string.h>

#include "base/util.h"
#include "daemon/route.h"

static json_t *ref(const char *schema)
{
    char text[96];
    snprintf(text, sizeof(text), "#/components/schemas/%s", schema);
    return json_pack("{s:s}", "$ref", text);
}

static json_t *content(const char *type, json_t *schema)
{
    return json_pack("{s:{s:o}}", type, "schema", schema);
}

static void add_param(json_t *params, const char *in, const char *name, const char *about, json_t *schema)
{
    json_array_append_new(params, json_pack("{s:s, s:s, s:b, s:s, s:o}", "name", name, "in", in, "required",
                                            strcmp(in, "path") == 0, "description", about, "schema", schema));
}

static json_t *integer(int64_t max)
{
    return json_pack("{s:s, s:i, s:I}", "type", "integer", "minimum", 0, "maximum", (json_int_t)max);
}

static json_t *text(void)
{
    return json_pack("{s:s}", "type", "string");
}

static json_t *parameters(const struct route *route)
{
    json_t *params = json_array();
    if (strstr(route->path, "{name}")) {
        add_param(params, "path", "name", "the object's name",
                  json_pack("{s:s, s:s}", "type", "string", "pattern", "^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$"));
    }
    if (strstr(route->path, "{item}")) {
        add_param(params, "path", "item", "the name of what belongs to it",
                  json_pack("{s:s, s:s}", "type", "string", "pattern", "^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$"));
    }
    if (route->flags & ROUTE_LIST) {
        add_param(params, "query", "filter", "for example: state=running and memory>=1G", text());
        add_param(params, "query", "sort", "for example: -memory,name", text());
        add_param(params, "query", "offset", "how many to leave out", integer(INT64_MAX));
        add_param(params, "query", "fields", "only these members, and the name", text());
    }
    if (route->flags & (ROUTE_LIST | ROUTE_AFTER)) {
        add_param(params, "query", "limit", "at most so many (100)", integer(LIST_LIMIT_MAX));
    }
    if (route->flags & ROUTE_AFTER || strcmp(route->id, "streamEvents") == 0) {
        add_param(params, "query", "after", "only behind this number", integer(INT64_MAX));
    }
    if (strcmp(route->id, "streamEvents") == 0) {
        add_param(params, "query", "jobs", "1: progress of jobs too", integer(1));
    }
    if (strcmp(route->id, "deleteInstance") == 0) {
        add_param(params, "query", "volumes", "1: those of its volumes that nothing else uses go too",
                  integer(1));
    }
    if (strcmp(route->id, "instanceHistory") == 0) {
        add_param(params, "query", "span", "hour, day or month", text());
    }
    if (strcmp(route->id, "instanceLog") == 0) {
        add_param(params, "query", "bytes", "at most so many", integer(1024 * 1024));
    }
    if (route->flags & ROUTE_JOB) {
        add_param(params, "query", "wait", "seconds to wait for the job's end before answering",
                  integer(REQUEST_WAIT_MAX));
    }
    if (route->flags & ROUTE_IF_MATCH) {
        add_param(params, "header", "If-Match", "the ETag that the object must still have", text());
    }
    return params;
}

static json_t *result_schema(const struct route *route)
{
    if (route->flags & ROUTE_LIST) {
        return json_pack("{s:s, s:[ss], s:{s:{s:s, s:o}, s:{s:s}}}", "type", "object", "required", "items",
                         "total", "properties", "items", "type", "array", "items", ref(route->result->schema),
                         "total", "type", "integer");
    }
    if (route->flags & ROUTE_AFTER) {
        return json_pack("{s:s, s:[ss], s:{s:{s:s, s:o}, s:{s:s}}}", "type", "object", "required", "items",
                         "last", "properties", "items", "type", "array", "items", ref(route->result->schema),
                         "last", "type", "integer");
    }
    return ref(route->result->schema);
}

static void add_answer(json_t *answers, const char *status, const char *about, json_t *body)
{
    json_t *answer = json_pack("{s:s}", "description", about);
    if (body) {
        json_object_set_new(answer, "content", body);
    }
    json_object_set_new(answers, status, answer);
}

static json_t *answers(const struct route *route)
{
    json_t *all = json_object();
    if (route->flags & ROUTE_WS) {
        add_answer(all, "101", "the web socket", NULL);
    } else if (route->flags & ROUTE_EMPTY) {
        add_answer(all, "204", "done", NULL);
    } else if (route->flags & ROUTE_TEXT) {
        bool json = strcmp(route->id, "openapi") == 0;
        add_answer(all, "200", "the text",
                   json ? content("application/json", json_pack("{s:s}", "type", "object"))
                        : content("text/plain", text()));
    } else {
        const char *status = route->flags & ROUTE_CREATED ? "201" : "200";
        add_answer(all, status, "done", content("application/json", result_schema(route)));
    }
    if (route->flags & ROUTE_JOB) {
        add_answer(all, "202", "the job goes on; Location names it", content("application/json", ref("Job")));
    }
    add_answer(all, "default", "refused", content("application/problem+json", ref("Problem")));
    return all;
}

static json_t *operation(const struct route *route)
{
    json_t *op = json_pack("{s:s, s:s, s:s, s:o, s:o}", "operationId", route->id, "summary", route->about,
                           "x-fonda-role", route->flags & ROUTE_OPEN ? "anybody" : role_name(route->role),
                           "parameters", parameters(route), "responses", answers(route));
    if (route->flags & ROUTE_WS) {
        json_object_set_new(op, "x-fonda-websocket", json_true());
    }
    if (route->body) {
        char schema[64];
        snprintf(schema, sizeof(schema), "%s%s", route->body->schema,
                 !route->body->plural          ? ""
                 : route->mode == FIELD_CREATE ? "Create"
                                               : "Change");
        json_object_set_new(op, "requestBody",
                            json_pack("{s:b, s:o}", "required", !(route->flags & ROUTE_OPTIONAL), "content",
                                      content("application/json", ref(schema))));
    }
    return op;
}

static json_t *schemas(void)
{
    json_t *all = json_object();
    for (unsigned i = 0; model_types[i]; i++) {
        const struct object_type *type = model_types[i];
        bool is_body = false;
        for (unsigned r = 0; r < route_count; r++) {
            char name[64];
            if (routes[r].body != type) {
                continue;
            }
            is_body |= !type->plural;
            snprintf(name, sizeof(name), "%s%s", type->schema,
                     !type->plural                    ? ""
                     : routes[r].mode == FIELD_CREATE ? "Create"
                                                      : "Change");
            json_object_set_new(all, name, field_schema(type, true, routes[r].mode));
        }
        if (!is_body) {
            json_object_set_new(all, type->schema, field_schema(type, false, FIELD_CREATE));
        }
    }
    return all;
}

char *openapi_text(void)
{
    json_t *paths = json_object();
    for (unsigned i = 0; i < route_count; i++) {
        char method[8];
        json_t *path = json_object_get(paths, routes[i].path);
        if (!path) {
            path = json_object();
            json_object_set_new(paths, routes[i].path, path);
        }
        snprintf(method, sizeof(method), "%s", routes[i].method);
        for (char *c = method; *c; c++) {
            *c = (char)(*c | 0x20);
        }
        json_object_set_new(path, method, operation(&routes[i]));
    }
    json_t *root = json_pack(
        "{s:s, s:{s:s, s:s, s:s}, s:o, s:{s:o, s:{s:{s:s, s:s}, s:{s:s}}}, s:[{s:[]}, {s:[]}, {}]}",
        "openapi", "3.1.0", "info", "title", "Fonda", "version", FONDA_VERSION, "description",
        "Machines and containers of one host. Errors are problem+json with a code, what was wrong and what "
        "to do; "
        "work that takes longer is a job.",
        "paths", paths, "components", "schemas", schemas(), "securitySchemes", "token", "type", "http",
        "scheme", "bearer", "certificate", "type", "mutualTLS", "security", "token", "certificate");
    char *out = root ? json_dumps(root, JSON_INDENT(1)) : NULL;
    json_decref(root);
    return out;
}
