/*
 * Checks, defaults and schemas from field tables (model.c has the tables).
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/options.h"
#include "base/util.h"
#include "core/field.h"

const struct field *field_find(const struct object_type *type, const char *name, size_t len)
{
    for (unsigned i = 0; i < type->count; i++) {
        if (strlen(type->fields[i].name) == len && memcmp(type->fields[i].name, name, len) == 0) {
            return &type->fields[i];
        }
    }
    return NULL;
}

static bool alnum(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
}

bool field_name_ok(const char *name)
{
    size_t len = strnlen(name, FIELD_NAME_MAX + 1);
    if (len == 0 || len > FIELD_NAME_MAX || !alnum(name[0])) {
        return false;
    }
    for (size_t i = 1; i < len; i++) {
        if (!alnum(name[i]) && !strchr("-_.", name[i])) {
            return false;
        }
    }
    return true;
}

/* ---- checks ---- */

static int bad(struct fault *fault, const struct field *field, const char *what)
{
    return fault_set(fault, FAULT_INVALID, field->about, "'%s' %s", field->name, what);
}

static void name_values(const struct field *field, char *buf, size_t size)
{
    size_t used = 0;
    buf[0] = '\0';
    for (unsigned i = 0; field->values[i] && used < size; i++) {
        used += (size_t)snprintf(buf + used, size - used, "%s%s", i ? ", " : "", field->values[i]);
    }
}

static int check_enum(const struct field *field, const json_t *value, struct fault *fault)
{
    const char *text = json_string_value(value);
    for (unsigned i = 0; text && field->values[i]; i++) {
        if (strcmp(field->values[i], text) == 0) {
            return 0;
        }
    }
    char values[256];
    name_values(field, values, sizeof(values));
    return fault_set(fault, FAULT_INVALID, field->about, "'%s' must be one of: %s", field->name, values);
}

static int check_text(const struct field *field, const json_t *value, int64_t min, int64_t max,
                      struct fault *fault)
{
    const char *text = json_string_value(value);
    if (!text) {
        return bad(fault, field, "must be a text");
    }
    size_t len = json_string_length(value);
    if (len < (size_t)min || len > (size_t)max) {
        return fault_set(fault, FAULT_INVALID, field->about,
                         "'%s' must have %" PRId64 " to %" PRId64 " bytes, and has %zu", field->name, min,
                         max, len);
    }
    for (size_t i = 0; i < len; i++) {
        if ((unsigned char)text[i] < ' ' && text[i] != '\t' && text[i] != '\n') {
            return bad(fault, field, "has a control character in it");
        }
    }
    return 0;
}

static int check_number(const struct field *field, const json_t *value, struct fault *fault)
{
    if (!json_is_integer(value)) {
        return bad(fault, field,
                   field->type == FIELD_SIZE ? "must be a size: bytes, or a text such as \"512M\""
                                             : "must be a whole number");
    }
    int64_t number = json_integer_value(value);
    if (number < field->min || number > field->max) {
        return fault_set(fault, FAULT_INVALID, field->about,
                         "'%s' must be %" PRId64 " to %" PRId64 ", and is %" PRId64, field->name, field->min,
                         field->max, number);
    }
    return 0;
}

static int check_strings(const struct field *field, const json_t *value, struct fault *fault)
{
    if (!json_is_array(value) || json_array_size(value) > (size_t)field->max) {
        return fault_set(fault, FAULT_INVALID, field->about,
                         "'%s' must be a list of at most %" PRId64 " texts", field->name, field->max);
    }
    size_t i;
    json_t *item;
    json_array_foreach(value, i, item)
    {
        if (check_text(field, item, 1, FIELD_ITEM_MAX, fault) < 0) {
            return -1;
        }
    }
    return 0;
}

static int check_map(const struct field *field, json_t *value, struct fault *fault)
{
    if (!json_is_object(value) || json_object_size(value) > (size_t)field->max) {
        return fault_set(fault, FAULT_INVALID, field->about,
                         "'%s' must be an object of at most %" PRId64 " members", field->name, field->max);
    }
    const char *key;
    json_t *item;
    json_object_foreach(value, key, item)
    {
        if (!field_name_ok(key)) {
            return bad(fault, field, "has a member whose name is not letters, digits, '-', '_' and '.'");
        }
        if (field->values ? check_enum(field, item, fault) : check_text(field, item, 0, 256, fault)) {
            return -1;
        }
    }
    return 0;
}

/* A size that came as text becomes a number. */
static int normalize_size(const struct field *field, json_t *in, json_t **value, struct fault *fault)
{
    const char *text = json_string_value(*value);
    if (!text) {
        return 0;
    }
    uint64_t bytes = 0;
    struct err err = {0};
    if (parse_size(text, &bytes, &err) < 0 || bytes > INT64_MAX) {
        return fault_set(fault, FAULT_INVALID, field->about, "'%s': %s", field->name,
                         err.code ? err.text : "too large");
    }
    json_object_set_new(in, field->name, json_integer((json_int_t)bytes));
    *value = json_object_get(in, field->name);
    return 0;
}

static int check_member(const struct field *field, json_t *in, json_t *value, bool host_ok,
                        struct fault *fault)
{
    switch (field->type) {
    case FIELD_STRING: return check_text(field, value, field->min, field->max, fault);
    case FIELD_NAME: {
        const char *name = json_string_value(value);
        if (!name || json_string_length(value) != strlen(name) || !field_name_ok(name)) {
            return bad(fault, field,
                       "must be a name: a letter or digit, then up to 62 letters, digits, '-', '_', '.'");
        }
        return 0;
    }
    case FIELD_ENUM: return check_enum(field, value, fault);
    case FIELD_SIZE:
        if (normalize_size(field, in, &value, fault) < 0) {
            return -1;
        }
        return check_number(field, value, fault);
    case FIELD_INT: return check_number(field, value, fault);
    case FIELD_BOOL: return json_is_boolean(value) ? 0 : bad(fault, field, "must be true or false");
    case FIELD_STRINGS: return check_strings(field, value, fault);
    case FIELD_MAP: return check_map(field, value, fault);
    case FIELD_OBJECT:
        return json_is_object(value) ? field_check(field->sub, value, FIELD_CHANGE, host_ok, fault)
                                     : bad(fault, field, "must be an object");
    case FIELD_TIME:
    case FIELD_ANY: return 0;
    }
    return 0;
}

/* In changes, null means: back to absence. */
static bool removable(const struct field *field, enum field_mode mode, const json_t *value)
{
    return mode == FIELD_CHANGE && json_is_null(value) && !field->def && !(field->flags & F_REQUIRED);
}

static void add_defaults(const struct object_type *type, json_t *object, bool read_only_too)
{
    for (unsigned i = 0; i < type->count; i++) {
        const struct field *field = &type->fields[i];
        if (field->def && (read_only_too || !(field->flags & F_RO)) &&
            !json_object_get(object, field->name)) {
            json_object_set_new(object, field->name, json_loads(field->def, JSON_DECODE_ANY, NULL));
        }
    }
}

int field_defaults(const struct object_type *type, json_t *object)
{
    add_defaults(type, object, true);
    return 0;
}

int field_check(const struct object_type *type, json_t *in, enum field_mode mode, bool host_ok,
                struct fault *fault)
{
    if (!json_is_object(in)) {
        return fault_set(fault, FAULT_INVALID, NULL, "the body must be a JSON object");
    }
    const char *key;
    json_t *value;
    void *next;
    json_object_foreach_safe(in, next, key, value)
    {
        const struct field *field = field_find(type, key, strlen(key));
        if (!field) {
            return fault_set(fault, FAULT_INVALID, "the members are described in /openapi.json",
                             "%s: there is no member '%.64s'", type->kind, key);
        }
        if (field->flags & F_RO) {
            return fault_set(fault, FAULT_INVALID, "leave it out", "'%s' can't be set: Fonda sets it itself",
                             key);
        }
        if (mode == FIELD_CHANGE && (field->flags & F_CREATE)) {
            return fault_set(fault, FAULT_INVALID, NULL, "'%s' can't be changed after creation", key);
        }
        if ((field->flags & F_HOST) && !host_ok) {
            return fault_set(fault, FAULT_FORBIDDEN, "ask an administrator",
                             "'%s' names the host's own files or devices, which only administrators may",
                             key);
        }
        if (!removable(field, mode, value) && check_member(field, in, value, host_ok, fault) < 0) {
            return -1;
        }
    }
    for (unsigned i = 0; mode == FIELD_CREATE && i < type->count; i++) {
        if ((type->fields[i].flags & (F_REQUIRED | F_RO)) == F_REQUIRED &&
            !json_object_get(in, type->fields[i].name)) {
            return fault_set(fault, FAULT_INVALID, type->fields[i].about, "%s: '%s' is missing", type->kind,
                             type->fields[i].name);
        }
    }
    if (mode == FIELD_CREATE) {
        add_defaults(type, in, false);
    }
    return 0;
}

/* ---- schemas ---- */

static json_t *values_schema(const char *const *values)
{
    json_t *list = json_array();
    for (unsigned i = 0; values[i]; i++) {
        json_array_append_new(list, json_string(values[i]));
    }
    return list;
}

#define NAME_PATTERN "^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$"

static json_t *member_schema(const struct field *field, bool in)
{
    switch (field->type) {
    case FIELD_STRING:
        return json_pack("{s:s, s:I, s:I}", "type", "string", "minLength", (json_int_t)field->min,
                         "maxLength", (json_int_t)field->max);
    case FIELD_NAME: return json_pack("{s:s, s:s}", "type", "string", "pattern", NAME_PATTERN);
    case FIELD_ENUM: return json_pack("{s:s, s:o}", "type", "string", "enum", values_schema(field->values));
    case FIELD_SIZE:
        if (in) {
            return json_pack("{s:[{s:s, s:I, s:I}, {s:s, s:s}]}", "oneOf", "type", "integer", "minimum",
                             (json_int_t)field->min, "maximum", (json_int_t)field->max, "type", "string",
                             "pattern", "^[0-9]+(\\.[0-9]+)?[KMGT](i?B)?$");
        }
        __attribute__((fallthrough));
    case FIELD_INT:
        return json_pack("{s:s, s:I, s:I}", "type", "integer", "minimum", (json_int_t)field->min, "maximum",
                         (json_int_t)field->max);
    case FIELD_BOOL: return json_pack("{s:s}", "type", "boolean");
    case FIELD_TIME: return json_pack("{s:s, s:s}", "type", "string", "format", "date-time");
    case FIELD_STRINGS:
        return json_pack("{s:s, s:I, s:{s:s, s:i, s:i}}", "type", "array", "maxItems", (json_int_t)field->max,
                         "items", "type", "string", "minLength", 1, "maxLength", FIELD_ITEM_MAX);
    case FIELD_MAP: {
        json_t *value = field->values
                            ? json_pack("{s:s, s:o}", "type", "string", "enum", values_schema(field->values))
                            : json_pack("{s:s, s:i}", "type", "string", "maxLength", 256);
        return json_pack("{s:s, s:I, s:{s:s}, s:o}", "type", "object", "maxProperties",
                         (json_int_t)field->max, "propertyNames", "pattern", NAME_PATTERN,
                         "additionalProperties", value);
    }
    case FIELD_OBJECT: return field_schema(field->sub, in, FIELD_CHANGE);
    case FIELD_ANY: return json_object();
    }
    return json_object();
}

json_t *field_schema(const struct object_type *type, bool in, enum field_mode mode)
{
    json_t *members = json_object();
    json_t *required = json_array();
    for (unsigned i = 0; i < type->count; i++) {
        const struct field *field = &type->fields[i];
        bool hidden = in ? (field->flags & F_RO) || (mode == FIELD_CHANGE && (field->flags & F_CREATE))
                         : (field->flags & F_SECRET) != 0;
        if (hidden) {
            continue;
        }
        json_t *member = member_schema(field, in);
        json_object_set_new(member, "description", json_string(field->about));
        if (in && mode == FIELD_CREATE && field->def) {
            json_object_set_new(member, "default", json_loads(field->def, JSON_DECODE_ANY, NULL));
        }
        json_object_set_new(members, field->name, member);
        bool always = in ? mode == FIELD_CREATE && (field->flags & F_REQUIRED)
                         : (field->flags & F_REQUIRED) || (field->def && !(field->flags & F_NULLABLE));
        if (always) {
            json_array_append_new(required, json_string(field->name));
        }
    }
    json_t *schema = json_pack("{s:s, s:s, s:o, s:b}", "type", "object", "description", type->about,
                               "properties", members, "additionalProperties", 0);
    if (json_array_size(required)) {
        json_object_set(schema, "required", required);
    }
    json_decref(required);
    return schema;
}

/* ---- members ---- */

const char *obj_text(const json_t *object, const char *name)
{
    const char *text = json_string_value(json_object_get(object, name));
    return text ? text : "";
}

int64_t obj_int(const json_t *object, const char *name)
{
    return json_integer_value(json_object_get(object, name));
}

bool obj_bool(const json_t *object, const char *name)
{
    return json_is_true(json_object_get(object, name));
}

void obj_set_text(json_t *object, const char *name, const char *text)
{
    if (text) {
        json_object_set_new(object, name, json_string(text));
    } else {
        json_object_del(object, name);
    }
}

void obj_set_int(json_t *object, const char *name, int64_t value)
{
    json_object_set_new(object, name, json_integer((json_int_t)value));
}

void obj_set_time(json_t *object, const char *name, int64_t seconds)
{
    time_t time = (time_t)seconds;
    struct tm tm = {0};
    char text[64] = "";
    gmtime_r(&time, &tm);
    strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%S.000Z", &tm);
    obj_set_text(object, name, text);
}

void obj_set_now(json_t *object, const char *name)
{
    struct timespec ts;
    struct tm tm;
    clock_gettime(CLOCK_REALTIME, &ts);
    gmtime_r(&ts.tv_sec, &tm);
    char text[64];
    size_t len = strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%S", &tm);
    snprintf(text + len, sizeof(text) - len, ".%03dZ", (int)(ts.tv_nsec / 1000000));
    obj_set_text(object, name, text);
}
