/*
 * What members the objects of the API have, as tables. One table serves the checks of what comes in, the
 * JSON that goes out, filters and sorting, and the OpenAPI description, so that they can't differ.
 */
#ifndef FONDA_CORE_FIELD_H
#define FONDA_CORE_FIELD_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "core/fault.h"

enum field_type {
    FIELD_STRING,  /* min to max bytes */
    FIELD_NAME,    /* a letter or digit, then up to 62 letters, digits, '-', '_', '.' */
    FIELD_ENUM,    /* one of values */
    FIELD_INT,     /* min to max */
    FIELD_SIZE,    /* bytes, min to max; "512M" is taken as well */
    FIELD_BOOL,    /**/
    FIELD_TIME,    /* RFC 3339 in UTC, to the millisecond: sorts as text */
    FIELD_STRINGS, /* up to max texts of 1 to FIELD_ITEM_MAX bytes */
    FIELD_MAP,     /* up to max members: names to texts; to one of values, if there are any */
    FIELD_OBJECT,  /* members */
    FIELD_ANY,     /* whatever the daemon puts there */
};

#define FIELD_ITEM_MAX 4096
#define FIELD_NAME_MAX 63

enum field_flag {
    F_RO = 1,        /* the daemon's alone */
    F_REQUIRED = 2,  /* must be there at creation */
    F_CREATE = 4,    /* can't be changed later */
    F_RESTART = 8,   /* a change takes effect when the instance starts the next time */
    F_HOST = 16,     /* names the host's files or devices: administrators only */
    F_SECRET = 32,   /* never goes out */
    F_NULLABLE = 64, /* may be absent in what goes out */
    F_LIVE = 128,    /* with F_RESTART: a running machine may take the change at once (live.c) */
};

struct object_type;

struct field {
    const char *name;
    enum field_type type;
    unsigned flags;
    int64_t min, max;
    const char *const *values; /* ends with NULL */
    const char *def;           /* JSON; NULL: absent */
    const struct object_type *sub;
    const char *about;
};

struct object_type {
    const char *kind;   /* "instance": in the store, in messages */
    const char *plural; /* "instances": in URLs; NULL: a part of others */
    const char *schema; /* "Instance": in OpenAPI */
    const char *about;
    const struct field *fields;
    unsigned count;
};

enum field_mode { FIELD_CREATE, FIELD_CHANGE };

const struct field *field_find(const struct object_type *type, const char *name, size_t len);
bool field_name_ok(const char *name);

/* Checks what a caller sent for an object, and brings it into its stored form (sizes become numbers; at
 * creation, defaults are added). Changes `in`. host_ok: the caller may name the host's files. */
int field_check(const struct object_type *type, json_t *in, enum field_mode mode, bool host_ok,
                struct fault *fault);
/* Defaults of all members that are absent, F_RO ones too. */
int field_defaults(const struct object_type *type, json_t *object);
/* The type's JSON Schema. in: what may be sent (for changes: nothing is required). */
json_t *field_schema(const struct object_type *type, bool in, enum field_mode mode);

/* Members of checked objects. */
const char *obj_text(const json_t *object, const char *name); /* "" when absent */
int64_t obj_int(const json_t *object, const char *name);      /* 0 when absent */
bool obj_bool(const json_t *object, const char *name);
void obj_set_text(json_t *object, const char *name, const char *text); /* NULL: removes it */
void obj_set_int(json_t *object, const char *name, int64_t value);
/* "2024-05-06T07:08:09.000Z", seconds since 1970. */
void obj_set_time(json_t *object, const char *name, int64_t seconds);
/* "2024-05-06T07:08:09.123Z" of now. */
void obj_set_now(json_t *object, const char *name);

#endif
