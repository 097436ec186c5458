/*
 * Events and the audit log: numbered records in the store. Events of a change are part of its transaction, so
 * neither is there without the other.
 */
#include <stdio.h>
#include <string.h>

#include "base/util.h"
#include "core/core_int.h"

#define TRIM_EVERY 500

static void trim(struct core *core)
{
    if (core->trim_in-- == 0) {
        store_log_trim(core->store, EVENTS_LOG, EVENTS_KEEP, NULL);
        store_log_trim(core->store, AUDIT_LOG, AUDIT_KEEP, NULL);
        core->trim_in = TRIM_EVERY;
    }
}

static int append(struct core *core, const char *log, json_t *record, struct fault *fault)
{
    struct err err = {0};
    auto_free char *text = record ? json_dumps(record, JSON_COMPACT) : NULL;
    json_decref(record);
    if (!text) {
        return fault_set(fault, FAULT_INTERNAL, NULL, "no memory");
    }
    if (store_append(core->store, log, text, NULL, &err) < 0) {
        return fault_from_err(fault, &err);
    }
    trim(core);
    return 0;
}

int event_add(struct core *core, const char *type, const struct object_type *of, const char *name,
              const char *who, json_t *data, struct fault *fault)
{
    char subject[128];
    snprintf(subject, sizeof(subject), "%s/%s", of->plural, name);
    json_t *event = json_pack("{s:s, s:s, s:s}", "type", type, "subject", subject, "who", who ? who : "");
    obj_set_now(event, "time");
    if (data) {
        json_object_set_new(event, "data", data);
    }
    int rc = append(core, EVENTS_LOG, event, fault);
    core->config.wake(core->config.opaque);
    return rc;
}

void audit_add(struct core *core, const struct caller *caller, const char *method, const char *path,
               int status)
{
    json_t *record =
        json_pack("{s:s, s:s, s:s, s:s%, s:i}", "who", caller->name, "from", caller->from, "method", method,
                  "path", path, MIN(strlen(path), (size_t)256), "status", status);
    if (!record) {
        record = json_pack("{s:s, s:s, s:s, s:s, s:i}", "who", caller->name, "from", caller->from, "method",
                           method, "path", "(not UTF-8)", "status", status);
    }
    obj_set_now(record, "time");
    append(core, AUDIT_LOG, record, NULL);
}
