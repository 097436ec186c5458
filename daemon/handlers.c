/*
 * Objects of any kind: list, create, show, change, delete.
 *
 * Lists splice the stored texts together unless ?fields= wants parts of them: parsing 10,000 objects to print
 * them again would be most of the time.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/util.h"
#include "core/filter.h"
#include "daemon/handlers.h"

struct listing {
    const struct object_type *type;
    const char *fields; /* ?fields=, or NULL */
    bool secrets;       /* the kind has members that never go out */
    char *text;
    size_t len, room, count;
    bool failed;
};

static void append(struct listing *list, const char *text, size_t len)
{
    if (list->len + len + 1 > list->room) {
        size_t room = MAX(2 * list->room, list->len + len + 4096);
        char *more = realloc(list->text, room);
        if (!more) {
            list->failed = true;
            return;
        }
        list->text = more;
        list->room = room;
    }
    memcpy(list->text + list->len, text, len);
    list->len += len;
    list->text[list->len] = '\0';
}

static void append_parsed(struct listing *list, const struct store_row *row)
{
    json_t *object = json_loads(row->json, 0, NULL);
    json_t *out = json_object();
    obj_set_int(object, "version", (int64_t)row->version);
    for (unsigned i = 0; i < list->type->count; i++) {
        const struct field *field = &list->type->fields[i];
        json_t *value = json_object_get(object, field->name);
        const char *at = list->fields;
        size_t len = strlen(field->name);
        bool wanted = !at || strcmp(field->name, "name") == 0;
        while (!wanted && at && *at) {
            size_t n = strcspn(at, ",");
            wanted = n == len && memcmp(at, field->name, n) == 0;
            at += n;
            at += *at == ',';
        }
        if (value && wanted && !(field->flags & F_SECRET)) {
            json_object_set(out, field->name, value);
        }
    }
    auto_free char *text = json_dumps(out, JSON_COMPACT);
    append(list, text ? text : "{}", text ? strlen(text) : 2);
    json_decref(object);
    json_decref(out);
}

static bool list_row(void *arg, const struct store_row *row)
{
    struct listing *list = arg;
    if (list->count++) {
        append(list, ",", 1);
    }
    if (list->fields || list->secrets) {
        append_parsed(list, row);
    } else {
        char head[48];
        append(list, head, (size_t)snprintf(head, sizeof(head), "{\"version\":%" PRIu64 ",", row->version));
        append(list, row->json + 1, strlen(row->json) - 1);
    }
    return !list->failed;
}

/* Callers without a role on everything see what is granted to them; snapshots are listed by their instance,
 * whose id has to stay as long as the filter. */
static int restrict_list(const struct request *request, struct filter *filter, char *id, size_t size,
                         struct fault *fault)
{
    if (request->route->type == &model_snapshot) { /* one instance's */
        json_t *instance = NULL;
        if (object_get(request->core, &model_instance, request->name, &instance, NULL, fault) < 0) {
            return -1;
        }
        const char *texts[] = {id};
        snprintf(id, size, "%s", obj_text(instance, "id"));
        json_decref(instance);
        return filter_restrict(filter, "instance_id", texts, 1, fault);
    }
    if (request->caller.role >= ROLE_VIEWER || request->route->type != &model_instance) {
        return 0;
    }
    const char *names[STORE_NODES_MAX];
    unsigned count = 0;
    const char *name;
    json_t *role;
    json_object_foreach(request->caller.grants, name, role)
    {
        if (role_parse(json_string_value(role)) >= ROLE_VIEWER && count < ARRAY_SIZE(names)) {
            names[count++] = name;
        }
    }
    return filter_restrict(filter, "name", names, count, fault);
}

static int check_fields(const struct object_type *type, const char *fields, struct fault *fault)
{
    while (fields && *fields) {
        size_t len = strcspn(fields, ",");
        if (!field_find(type, fields, len)) {
            return fault_set(fault, FAULT_INVALID, "for example: fields=name,state",
                             "fields: %s has no member '%.*s'", type->kind, (int)MIN(len, 64), fields);
        }
        fields += len;
        fields += *fields == ',';
    }
    return 0;
}

int handle_list(struct request *request, struct fault *fault)
{
    const struct object_type *type = request->route->type;
    const char *filter_text = request_arg(request, "filter"), *sort = request_arg(request, "sort");
    struct filter *filter = malloc(sizeof(*filter));
    struct listing list = {
        .type = type, .fields = request_arg(request, "fields"), .secrets = type == &model_user};
    struct store_query query = {0};
    uint64_t total = 0;
    char id[32];
    struct err err = {0};
    int rc = filter ? 0 : fault_set(fault, FAULT_INTERNAL, NULL, "no memory");
    if (rc == 0 && (request_arg_uint(request, "limit", LIST_LIMIT, LIST_LIMIT_MAX, &query.limit, fault) < 0 ||
                    request_arg_uint(request, "offset", 0, INT64_MAX, &query.offset, fault) < 0 ||
                    check_fields(type, list.fields, fault) < 0 ||
                    filter_parse(type, filter_text ? filter_text : "", filter, fault) < 0 ||
                    filter_sort(type, sort ? sort : "", &query, fault) < 0 ||
                    restrict_list(request, filter, id, sizeof(id), fault) < 0)) {
        rc = -1;
    }
    if (rc == 0) {
        query.nodes = filter->nodes;
        query.count = filter->count;
        append(&list, "{\"items\":[", 10);
        if (store_list(core_store(request->core), type->kind, &query, list_row, &list, &total, &err) < 0) {
            rc = fault_from_err(fault, &err);
        }
    }
    if (rc == 0) {
        char tail[64];
        append(&list, tail, (size_t)snprintf(tail, sizeof(tail), "],\"total\":%" PRIu64 "}", total));
        rc = list.failed ? fault_set(fault, FAULT_INTERNAL, NULL, "no memory") : 0;
    }
    free(filter);
    if (rc < 0) {
        free(list.text);
        return rc;
    }
    answer_text(request, NULL, list.text, list.len);
    return 0;
}

static int show(struct request *request, int status, struct fault *fault)
{
    json_t *object = NULL;
    uint64_t version = 0;
    const char *name = request->name[0] ? request->name : obj_text(request->body, "name");
    if (object_get(request->core, request->route->type, name, &object, &version, fault) < 0) {
        return -1;
    }
    answer_object(request, status, request->route->type, object, version);
    return 0;
}

int handle_get(struct request *request, struct fault *fault)
{
    if (check_fields(request->route->type, request_arg(request, "fields"), fault) < 0) {
        return -1;
    }
    return show(request, 200, fault);
}

int handle_create(struct request *request, struct fault *fault)
{
    if (object_create(request->core, request->route->type, request->body, &request->caller, fault) < 0 ||
        show(request, 201, fault) < 0) {
        return -1;
    }
    snprintf(request->location, sizeof(request->location), "/v1/%s/%s", request->route->type->plural,
             obj_text(request->body, "name"));
    return 0;
}

int handle_change(struct request *request, struct fault *fault)
{
    uint64_t expected;
    if (request_expected(request, &expected, fault) < 0 ||
        object_change(request->core, request->route->type, request->name, request->body, expected,
                      &request->caller, NULL, fault) < 0) {
        return -1;
    }
    return show(request, 200, fault);
}

int handle_delete(struct request *request, struct fault *fault)
{
    uint64_t expected;
    if (request_expected(request, &expected, fault) < 0 ||
        object_delete(request->core, request->route->type, request->name, expected, &request->caller, fault) <
            0) {
        return -1;
    }
    request->status = 204;
    return 0;
}
