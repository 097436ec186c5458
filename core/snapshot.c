/* See snapshot.h. */
#include "core/snapshot.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/log.h"
#include "base/util.h"
#include "core/disk.h"

/* ---- rows: (snapshot, "INSTANCE-ID/NAME") ---- */

#define KEY_MAX (FIELD_NAME_MAX + 48)

static void make_key(const char *instance_id, const char *name, char *buf)
{
    snprintf(buf, KEY_MAX, "%.40s/%.63s", instance_id, name);
}

int snapshot_get(struct core *core, const char *instance_id, const char *name, json_t **ret_row,
                 uint64_t *ret_version, struct fault *fault)
{
    char key[KEY_MAX];
    auto_free char *text = NULL;
    make_key(instance_id, name, key);
    if (store_get(core->store, "snapshot", key, &text, ret_version, NULL) < 0) {
        return fault_set(fault, FAULT_NOT_FOUND, "fonda snapshot list INSTANCE",
                         "there is no snapshot '%.64s'", name);
    }
    json_t *row = json_loads(text, 0, NULL);
    if (!row) {
        return fault_set(fault, FAULT_INTERNAL, NULL, "snapshot '%s' is damaged in the state", name);
    }
    *ret_row = row;
    return 0;
}

int snapshot_put(struct core *core, const json_t *row, uint64_t expected, struct fault *fault)
{
    char key[KEY_MAX];
    struct err err = {0};
    auto_free char *text = json_dumps(row, JSON_COMPACT);
    make_key(obj_text(row, "instance_id"), obj_text(row, "name"), key);
    if (!text) {
        return fault_set(fault, FAULT_INTERNAL, NULL, "no memory");
    }
    if (store_put(core->store, "snapshot", key, text, expected, NULL, &err) < 0) {
        return err.code == -EEXIST ? fault_set(fault, FAULT_EXISTS, "choose another name",
                                               "there is a snapshot '%s' already", obj_text(row, "name"))
                                   : fault_from_err(fault, &err);
    }
    return 0;
}

static bool collect_row(void *arg, const struct store_row *row)
{
    json_array_append_new(arg, json_loads(row->json, 0, NULL));
    return true;
}

json_t *snapshot_rows(struct core *core, const char *instance_id)
{
    struct store_node node = {
        .op = STORE_OP_EQ, .path = "instance_id", .type = STORE_TEXT, .text = instance_id};
    struct store_query query = {.nodes = &node,
                                .count = instance_id ? 1 : 0,
                                .limit = UINT32_MAX,
                                .sort_count = 1,
                                .sort = {{"created_at", false}}};
    json_t *list = json_array();
    store_list(core->store, "snapshot", &query, collect_row, list, NULL, NULL);
    return list;
}

/* What the snapshot's disks are keeps from being deleted. */
int snapshot_link(struct core *core, const json_t *row, struct fault *fault)
{
    char key[KEY_MAX];
    size_t i;
    json_t *item;
    make_key(obj_text(row, "instance_id"), obj_text(row, "name"), key);
    json_array_foreach(json_object_get(json_object_get(row, "config"), "volumes"), i, item)
    {
        struct err err = {0};
        if (store_link(core->store, "snapshot", key, "volume", json_string_value(item), &err) < 0) {
            return fault_from_err(fault, &err);
        }
    }
    return 0;
}

static int set_current(struct core *core, const char *instance, const char *snapshot, struct fault *fault)
{
    json_t *row = NULL;
    if (object_get(core, &model_instance, instance, &row, NULL, fault) < 0) {
        return -1;
    }
    obj_set_text(row, "snapshot", snapshot[0] ? snapshot : NULL);
    int rc = object_put(core, &model_instance, row, STORE_VERSION_ANY, NULL, NULL, fault);
    json_decref(row);
    return rc;
}

int snapshot_drop(struct core *core, const json_t *instance, const json_t *row, const char *who,
                  struct fault *fault)
{
    const char *name = obj_text(row, "name"), *parent = obj_text(row, "parent");
    json_t *all = snapshot_rows(core, obj_text(row, "instance_id")), *other;
    char key[KEY_MAX];
    struct err err = {0};
    size_t i;
    int rc = 0;
    make_key(obj_text(row, "instance_id"), name, key);
    json_array_foreach(all, i, other)
    {
        if (rc == 0 && strcmp(obj_text(other, "parent"), name) == 0) {
            obj_set_text(other, "parent", parent[0] ? parent : NULL);
            rc = snapshot_put(core, other, STORE_VERSION_ANY, fault);
        }
    }
    json_decref(all);
    if (rc == 0 && strcmp(obj_text(instance, "snapshot"), name) == 0) {
        rc = set_current(core, obj_text(instance, "name"), parent, fault);
    }
    if (rc == 0 && store_delete(core->store, "snapshot", key, STORE_VERSION_ANY, &err) < 0) {
        rc = fault_from_err(fault, &err);
    }
    return rc ? rc
              : event_add(core, "instance.snapshot_deleted", &model_instance, obj_text(instance, "name"), who,
                          json_pack("{s:s}", "snapshot", name), fault);
}

void snapshot_path(const struct driver_instance *instance, const json_t *row, char *buf, size_t size)
{
    snprintf(buf, size, "%s/snapshot-%s.fonda", instance->dir, obj_text(row, "id"));
}

/* ---- requests ---- */

#define INSTANCE_STATES "running or paused or stopped or failed"

static bool runs(const json_t *instance)
{
    const char *state = obj_text(instance, "state");
    return strcmp(state, "running") == 0 || strcmp(state, "paused") == 0;
}

/* The members that say what the machine is made of. */
static json_t *config_of(const json_t *instance)
{
    json_t *config = json_object();
    for (unsigned i = 0; i < model_instance.count; i++) {
        const struct field *field = &model_instance.fields[i];
        json_t *value = json_object_get(instance, field->name);
        if (value && ((field->flags & F_RESTART) || strcmp(field->name, "volumes_first") == 0)) {
            json_object_set_new(config, field->name, json_deep_copy(value));
        }
    }
    return config;
}

static int check_kind(const json_t *instance, struct fault *fault)
{
    const struct driver_ops *ops = driver_of(instance);
    return ops && ops->restore
               ? 0
               : fault_set(fault, FAULT_UNSUPPORTED, "fonda image commit keeps a container's files",
                           "instance '%s' is a container: only machines have snapshots",
                           obj_text(instance, "name"));
}

/* Whether there is something to keep, and what it may come to take. */
static int weigh(struct core *core, const json_t *instance, bool memory, int64_t *ret_size,
                 struct fault *fault)
{
    json_t *disks = instance_disks(core, instance), *disk;
    int64_t size = memory ? obj_int(instance, "memory") : 0;
    size_t i;
    int rc =
        json_array_size(disks) || memory
            ? 0
            : fault_set(fault, FAULT_STATE, "start it, or give it a volume",
                        "instance '%s' has no disk that it writes to, and no memory while it is stopped: "
                        "there is nothing to keep",
                        obj_text(instance, "name"));
    json_array_foreach(disks, i, disk)
    {
        if (rc == 0 && strcmp(obj_text(disk, "format"), "raw") == 0) {
            const char *volume = obj_text(disk, "volume");
            rc = fault_set(fault, FAULT_UNSUPPORTED, "a clone in mode full has qcow2 volumes",
                           "%s '%s' is raw, which has no snapshots", volume[0] ? "volume" : "disk",
                           volume[0] ? volume : obj_text(disk, "path"));
        }
        size += disk_used(obj_text(disk, "path"));
    }
    json_decref(disks);
    *ret_size = size;
    return rc;
}

json_t *snapshot_new_row(const json_t *instance, const json_t *how, bool memory, const char *owner)
{
    char id[16], name[64];
    time_t now = time(NULL);
    struct tm tm;
    gmtime_r(&now, &tm);
    strftime(name, sizeof(name), "snap-%Y%m%d-%H%M%S", &tm);
    random_id(id);
    const char *given = obj_text(how, "name"), *parent = obj_text(instance, "snapshot");
    json_t *row =
        json_pack("{s:s, s:s, s:s, s:s, s:b, s:s, s:o}", "name", given[0] ? given : name, "id", id,
                  "instance_id", obj_text(instance, "id"), "description", obj_text(how, "description"),
                  "memory", memory, "owner", owner, "config", config_of(instance));
    field_defaults(&model_snapshot, row);
    obj_set_text(row, "parent", parent[0] ? parent : NULL);
    obj_set_text(row, "schedule", obj_text(how, "schedule")[0] ? obj_text(how, "schedule") : NULL);
    obj_set_now(row, "created_at");
    if (obj_int(how, "keep")) {
        obj_set_time(row, "expires_at", time(NULL) + (time_t)obj_int(how, "keep"));
    }
    return row;
}

int snapshot_check_fresh(const json_t *instance, struct fault *fault)
{
    return runs(instance) && obj_bool(instance, "after_restart")
               ? fault_set(
                     fault, FAULT_STATE, "restart it first: fonda restart NAME",
                     "instance '%s' was changed, and runs as it was before: what it is made of would not fit "
                     "its disks and memory",
                     obj_text(instance, "name"))
               : 0;
}

int snapshot_create(struct core *core, const char *name, const json_t *how, const char *who, char *ret_job,
                    struct fault *fault)
{
    json_t *instance = NULL, *row = NULL, *all = NULL;
    int64_t size = 0;
    ret_job[0] = '\0';
    if (core_begin(core, fault) < 0) {
        return -1;
    }
    int rc = instance_in_state(core, name, "snapshot", INSTANCE_STATES, &instance, fault);
    const json_t *wish = json_object_get(how, "memory");
    bool memory = wish ? json_is_true(wish) : rc == 0 && runs(instance);
    if (rc == 0 && memory && !runs(instance)) {
        rc = fault_set(fault, FAULT_STATE, "start it, or leave memory out",
                       "instance '%s' is stopped: it has no memory to keep", name);
    }
    if (rc == 0) {
        all = snapshot_rows(core, obj_text(instance, "id"));
        rc = json_array_size(all) >= SNAPSHOTS_MAX
                 ? fault_set(fault, FAULT_LIMIT, "delete some", "instance '%s' has %u snapshots already",
                             name, SNAPSHOTS_MAX)
                 : 0;
    }
    rc = rc ? rc : check_kind(instance, fault);
    rc = rc ? rc : snapshot_check_fresh(instance, fault);
    rc = rc ? rc : instance_not_held(core, instance, "be snapshotted", fault);
    rc = rc ? rc : instance_not_base(core, instance, fault);
    rc = rc ? rc : weigh(core, instance, memory, &size, fault);
    if (rc == 0) {
        row = snapshot_new_row(instance, how, memory, obj_text(instance, "owner"));
        obj_set_int(row, "size", size);
        rc = quota_check(core, obj_text(row, "owner"), &model_snapshot, row, NULL, fault);
    }
    rc = rc ? rc : snapshot_put(core, row, STORE_VERSION_NEW, fault);
    rc = rc ? rc : snapshot_link(core, row, fault);
    rc = rc ? rc
            : job_add(core, &job_snapshot_create, &model_instance, name, who,
                      json_pack("{s:s}", "snapshot", obj_text(row, "name")), ret_job, fault);
    json_decref(all);
    json_decref(row);
    json_decref(instance);
    return core_end(core, rc, ret_job, fault);
}

int snapshot_delete(struct core *core, const char *name, const char *snapshot, const char *who, char *ret_job,
                    struct fault *fault)
{
    json_t *instance = NULL, *row = NULL;
    ret_job[0] = '\0';
    if (core_begin(core, fault) < 0) {
        return -1;
    }
    int rc = instance_in_state(core, name, "change", INSTANCE_STATES " or saved", &instance, fault);
    rc = rc ? rc : snapshot_get(core, obj_text(instance, "id"), snapshot, &row, NULL, fault);
    if (rc == 0 && strcmp(obj_text(row, "state"), "creating") == 0) {
        rc = fault_set(fault, FAULT_STATE, "cancel the job that makes it", "snapshot '%s' is being made",
                       snapshot);
    }
    rc = rc ? rc : instance_not_held(core, instance, "lose a snapshot", fault);
    rc = rc ? rc : instance_not_base(core, instance, fault);
    if (rc == 0) {
        obj_set_text(row, "state", "deleting");
        rc = snapshot_put(core, row, STORE_VERSION_ANY, fault);
    }
    rc = rc ? rc
            : job_add(core, &job_snapshot_delete, &model_instance, name, who,
                      json_pack("{s:s}", "snapshot", snapshot), ret_job, fault);
    json_decref(row);
    json_decref(instance);
    return core_end(core, rc, ret_job, fault);
}

int snapshot_restore(struct core *core, const char *name, const char *snapshot, const json_t *how,
                     const char *who, char *ret_job, struct fault *fault)
{
    json_t *instance = NULL, *row = NULL;
    ret_job[0] = '\0';
    if (core_begin(core, fault) < 0) {
        return -1;
    }
    int rc = instance_in_state(core, name, "restore", INSTANCE_STATES " or saved", &instance, fault);
    rc = rc ? rc : snapshot_get(core, obj_text(instance, "id"), snapshot, &row, NULL, fault);
    if (rc == 0 && strcmp(obj_text(row, "state"), "ready") != 0) {
        rc = fault_set(fault, FAULT_STATE, "fonda snapshot list shows states", "snapshot '%s' is %s",
                       snapshot, obj_text(row, "state"));
    }
    rc = rc ? rc : instance_not_held(core, instance, "be restored", fault);
    rc = rc ? rc : instance_not_base(core, instance, fault);
    if (rc == 0) {
        const json_t *wish = json_object_get(how, "start");
        bool start = wish ? json_is_true(wish) : obj_bool(row, "memory") || runs(instance);
        obj_set_text(instance, "restoring", snapshot);
        rc = object_put(core, &model_instance, instance, STORE_VERSION_ANY, NULL, who, fault);
        rc = rc ? rc
                : job_add(core, &job_snapshot_restore, &model_instance, name, who,
                          json_pack("{s:s, s:b}", "snapshot", snapshot, "start", start), ret_job, fault);
    }
    json_decref(row);
    json_decref(instance);
    return core_end(core, rc, ret_job, fault);
}

/* ---- what the last daemon left ---- */

static void finish_row(struct core *core, json_t *row)
{
    char job[24] = "";
    struct fault fault = {0};
    auto_free char *name = instance_name_of(core, obj_text(row, "instance_id"));
    if (!name || core_begin(core, &fault) < 0) {
        return; /* its instance is being deleted, and takes it along */
    }
    obj_set_text(row, "state", "deleting");
    int rc = snapshot_put(core, row, STORE_VERSION_ANY, &fault);
    rc = rc ? rc
            : job_add(core, &job_snapshot_delete, &model_instance, name, "recovery",
                      json_pack("{s:s}", "snapshot", obj_text(row, "name")), job, &fault);
    if (core_end(core, rc, job, &fault) < 0) {
        log_warning("cannot remove what is left of snapshot '%s' of '%s': %s", obj_text(row, "name"), name,
                    fault.detail);
    }
}

static bool restoring_row(void *arg, const struct store_row *row)
{
    json_t *instance = json_loads(row->json, 0, NULL);
    if (obj_text(instance, "restoring")[0]) {
        json_array_append(arg, instance);
    }
    json_decref(instance);
    return true;
}

void snapshot_recover(struct core *core)
{
    json_t *rows = snapshot_rows(core, NULL), *restoring = json_array(), *row;
    struct store_query all = {.limit = UINT32_MAX};
    size_t i;
    json_array_foreach(rows, i, row)
    {
        if (strcmp(obj_text(row, "state"), "ready") != 0) {
            finish_row(core, row);
        }
    }
    store_list(core->store, "instance", &all, restoring_row, restoring, NULL, NULL);
    json_array_foreach(restoring, i, row)
    {
        char job[24] = "";
        struct fault fault = {0};
        int rc = core_begin(core, &fault);
        rc = rc ? rc
                : job_add(core, &job_snapshot_restore, &model_instance, obj_text(row, "name"), "recovery",
                          json_pack("{s:s}", "snapshot", obj_text(row, "restoring")), job, &fault);
        if (core_end(core, rc, job, &fault) < 0) {
            log_warning("cannot restore '%s': %s", obj_text(row, "name"), fault.detail);
        }
    }
    json_decref(rows);
    json_decref(restoring);
}
