/* See copy.h. */
#include "core/copy.h"

#include <stdio.h>
#include <string.h>

#include "base/util.h"
#include "core/disk.h"
#include "core/snapshot.h"

/* ---- where it is copied from ---- */

void origin_done(struct origin *origin)
{
    json_decref(origin->config);
    json_decref(origin->disks);
    memset(origin, 0, sizeof(*origin));
}

/* "FILE,format=qcow2,readonly": what is written to. NULL: nothing. */
static json_t *host_disk(const char *text)
{
    size_t len = strcspn(text, ",");
    const char *options = text + len, *format = strstr(options, ",format=");
    const char *readonly = strstr(options, ",readonly");
    if (readonly && strchr(",", readonly[sizeof(",readonly") - 1])) {
        return NULL;
    }
    format = format ? format + sizeof(",format=") - 1 : "";
    return json_pack("{s:s%, s:s%}", "path", text, len, "format", format, strcspn(format, ","));
}

static void add_host_disks(const json_t *spec, json_t *list)
{
    size_t i;
    json_t *item;
    json_array_foreach(json_object_get(spec, "disks"), i, item)
    {
        json_t *disk = host_disk(json_string_value(item));
        if (disk) {
            json_array_append_new(list, disk);
        }
    }
}

static void add_volumes(struct core *core, const json_t *spec, json_t *list)
{
    size_t i;
    json_t *item, *volume;
    char path[DRIVER_PATH_MAX];
    json_array_foreach(json_object_get(spec, "volumes"), i, item)
    {
        struct fault ignored = {0};
        if (object_get(core, &model_volume, json_string_value(item), &volume, NULL, &ignored) == 0) {
            volume_path(core, volume, path, sizeof(path));
            json_array_append_new(list, json_pack("{s:s, s:s, s:I, s:s}", "path", path, "format",
                                                  obj_text(volume, "format"), "size",
                                                  (json_int_t)obj_int(volume, "size"), "volume",
                                                  json_string_value(item)));
            json_decref(volume);
        }
    }
}

json_t *instance_disks(struct core *core, const json_t *spec)
{
    json_t *list = json_array();
    if (obj_bool(spec, "volumes_first")) {
        add_volumes(core, spec, list);
        add_host_disks(spec, list);
    } else {
        add_host_disks(spec, list);
        add_volumes(core, spec, list);
    }
    return list;
}

/* What a disk is called among the copy's: "web-data" of web is "data". */
static void label_disks(struct origin *origin)
{
    size_t i, len = strlen(origin->name);
    json_t *disk;
    json_array_foreach(origin->disks, i, disk)
    {
        const char *volume = obj_text(disk, "volume");
        bool own = strncmp(volume, origin->name, len) == 0 && volume[len] == '-' && volume[len + 1];
        char label[32];
        snprintf(label, sizeof(label), "disk%zu", i);
        obj_set_text(disk, "label", own ? volume + len + 1 : volume[0] ? volume : label);
    }
}

/* Formats and sizes of the host's files, which no row knows. */
int origin_look(struct origin *origin, struct fault *fault)
{
    size_t i;
    json_t *disk;
    json_array_foreach(origin->disks, i, disk)
    {
        char format[16];
        uint64_t size = 0;
        const char *known = obj_text(disk, "format"), *snapshot = obj_text(disk, "snapshot");
        const struct disk_source source = {obj_text(disk, "path"), known[0] ? known : NULL,
                                           snapshot[0] ? snapshot : NULL};
        if (json_object_get(disk, "size")) {
            continue;
        }
        if (disk_look(&source, format, sizeof(format), &size, fault) < 0) {
            return -1;
        }
        obj_set_text(disk, "format", format);
        obj_set_int(disk, "size", (int64_t)size);
    }
    return 0;
}

void origin_from_spec(struct core *core, const json_t *spec, const char *snapshot_id,
                      struct origin *ret_origin)
{
    struct origin origin = {.config = json_deep_copy(spec), .disks = instance_disks(core, spec)};
    size_t i;
    json_t *disk;
    snprintf(origin.name, sizeof(origin.name), "%s", obj_text(spec, "name"));
    snprintf(origin.id, sizeof(origin.id), "%s", obj_text(spec, "id"));
    json_array_foreach(origin.disks, i, disk)
    {
        obj_set_text(disk, "snapshot", snapshot_id);
    }
    label_disks(&origin);
    *ret_origin = origin;
}

static int take_snapshot_of(struct core *core, struct origin *origin, const char *snapshot,
                            struct fault *fault)
{
    json_t *row = NULL, *config;
    size_t i;
    json_t *disk;
    if (snapshot_get(core, origin->id, snapshot, &row, NULL, fault) < 0) {
        return -1;
    }
    int rc = strcmp(obj_text(row, "state"), "ready") == 0
                 ? 0
                 : fault_set(fault, FAULT_STATE, "wait for its job", "snapshot '%s' is %s", snapshot,
                             obj_text(row, "state"));
    if (rc == 0) {
        config = json_deep_copy(origin->config);
        json_object_update(config, json_object_get(row, "config"));
        json_decref(origin->config);
        origin->config = config;
        origin->disks = instance_disks(core, config);
        json_array_foreach(origin->disks, i, disk)
        {
            obj_set_text(disk, "snapshot", obj_text(row, "id"));
        }
    }
    json_decref(row);
    return rc;
}

int origin_of_instance(struct core *core, const char *name, const char *snapshot, struct origin *ret_origin,
                       struct fault *fault)
{
    struct origin origin = {0};
    const char *allowed = snapshot ? "stopped or failed or saved or running or paused" : "stopped or failed";
    if (instance_in_state(core, name, "copy", allowed, &origin.config, fault) < 0) {
        return -1;
    }
    snprintf(origin.name, sizeof(origin.name), "%s", name);
    snprintf(origin.id, sizeof(origin.id), "%s", obj_text(origin.config, "id"));
    int rc = snapshot ? take_snapshot_of(core, &origin, snapshot, fault) : 0;
    if (rc == 0 && !snapshot) {
        origin.disks = instance_disks(core, origin.config);
    }
    if (rc == 0 && !driver_has_room(origin.config)) {
        rc = origin_look(&origin, fault);
    }
    if (rc < 0) {
        origin_done(&origin);
        return -1;
    }
    label_disks(&origin);
    *ret_origin = origin;
    return 0;
}

int origin_of_template(struct core *core, const char *name, struct origin *ret_origin, struct fault *fault)
{
    struct origin origin = {0};
    json_t *row = NULL;
    if (object_get(core, &model_template, name, &row, NULL, fault) < 0) {
        return -1;
    }
    if (strcmp(obj_text(row, "state"), "ready") != 0) {
        fault_set(fault, FAULT_STATE, "wait for its job", "template '%s' is %s", name,
                  obj_text(row, "state"));
        json_decref(row);
        return -1;
    }
    snprintf(origin.name, sizeof(origin.name), "%s", name);
    snprintf(origin.id, sizeof(origin.id), "%s", obj_text(row, "id"));
    origin.config = json_deep_copy(json_object_get(row, "config"));
    json_object_set(origin.config, "volumes", json_object_get(row, "volumes"));
    origin.disks = instance_disks(core, origin.config);
    json_decref(row);
    label_disks(&origin);
    *ret_origin = origin;
    return 0;
}

json_t *origin_config(const struct origin *origin)
{
    json_t *copy = json_object(), *disks = json_array();
    const char *key;
    json_t *value;
    size_t i;
    bool host_disks = false;
    json_object_foreach(origin->config, key, value)
    {
        const struct field *field = field_find(&model_instance, key, strlen(key));
        if (field && !(field->flags & F_RO) && strcmp(key, "name") != 0) {
            json_object_set_new(copy, key, json_deep_copy(value));
        }
    }
    json_array_foreach(json_object_get(origin->config, "disks"), i, value)
    {
        json_t *written = host_disk(json_string_value(value));
        host_disks |= written != NULL;
        if (!written) {
            json_array_append(disks, value);
        }
        json_decref(written);
    }
    if (!driver_has_room(copy)) {
        json_object_set(copy, "disks", disks);
        if (host_disks || obj_bool(origin->config, "volumes_first")) {
            json_object_set_new(copy, "volumes_first", json_true());
        }
    }
    json_decref(disks);
    json_object_set_new(copy, "volumes", json_array());
    return copy;
}

/* ---- the copy's volumes ---- */

static int add_volume(struct core *core, const json_t *disk, const struct copy_target *target, json_t *names,
                      json_t *work, struct fault *fault)
{
    char name[2 * FIELD_NAME_MAX + 2], id[16], path[DRIVER_PATH_MAX];
    const char *from = obj_text(disk, "volume");
    struct err err = {0};
    snprintf(name, sizeof(name), "%s-%s", target->name, obj_text(disk, "label"));
    if (!field_name_ok(name)) {
        return fault_set(fault, FAULT_INVALID, "choose a shorter one",
                         "the volume would be called '%s', which is too long", name);
    }
    if (target->linked && !from[0]) {
        return fault_set(
            fault, FAULT_UNSUPPORTED, "clone in mode full",
            "disk '%s' is a file of the host's, which nothing keeps from changing: a linked copy "
            "needs volumes",
            obj_text(disk, "path"));
    }
    random_id(id);
    json_t *volume =
        json_pack("{s:s, s:s, s:s, s:I, s:s, s:s}", "name", name, "id", id, "format", "qcow2", "size",
                  (json_int_t)obj_int(disk, "size"), "owner", target->owner, "made_for", target->id);
    field_defaults(&model_volume, volume);
    obj_set_now(volume, "created_at");
    obj_set_text(volume, "template", target->template_name);
    obj_set_text(volume, "backing", target->linked ? from : NULL);
    volume_path(core, volume, path, sizeof(path));
    int rc = quota_check(core, target->owner, &model_volume, volume, NULL, fault);
    rc = rc ? rc
            : object_put(core, &model_volume, volume, STORE_VERSION_NEW, "volume.created", target->owner,
                         fault);
    if (rc == 0 && target->linked && store_link(core->store, "volume", name, "volume", from, &err) < 0) {
        rc = fault_from_err(fault, &err);
    }
    json_decref(volume);
    if (rc == 0) {
        json_array_append_new(names, json_string(name));
        json_t *one = json_deep_copy(disk);
        obj_set_text(one, "to", path);
        json_object_set_new(one, "linked", json_boolean(target->linked));
        json_array_append_new(work, one);
    }
    return rc;
}

int copy_volumes(struct core *core, const struct origin *origin, const struct copy_target *target,
                 json_t **ret_names, json_t **ret_work, struct fault *fault)
{
    json_t *names = json_array(), *work = json_array(), *disk;
    size_t i;
    json_array_foreach(origin->disks, i, disk)
    {
        if (add_volume(core, disk, target, names, work, fault) < 0) {
            json_decref(names);
            json_decref(work);
            return -1;
        }
    }
    *ret_names = names;
    *ret_work = work;
    return 0;
}

bool copy_progress(void *opaque, uint64_t done, uint64_t total)
{
    struct job *job = opaque;
    job_bytes(job, done, total);
    return !job_canceled(job);
}

int copy_run(struct core *core, struct job *job, const json_t *work, struct fault *fault)
{
    size_t i;
    json_t *disk;
    json_array_foreach((json_t *)work, i, disk)
    {
        const char *format = obj_text(disk, "format"), *snapshot = obj_text(disk, "snapshot");
        const struct disk_source source = {obj_text(disk, "path"), format[0] ? format : NULL,
                                           snapshot[0] ? snapshot : NULL};
        bool linked = obj_bool(disk, "linked");
        char step[160];
        snprintf(step, sizeof(step), "%s %.100s", linked ? "linking" : "copying", obj_text(disk, "label"));
        job_step(core, job, (unsigned)i, (unsigned)json_array_size(work), step);
        if (job_canceled(job)) {
            return fault_set(fault, FAULT_CANCELED, NULL, "it was canceled");
        }
        int rc = linked ? disk_make(obj_text(disk, "to"), "qcow2", (uint64_t)obj_int(disk, "size"),
                                    source.path, format, fault)
                        : disk_copy(&source, obj_text(disk, "to"), copy_progress, job, fault);
        if (rc < 0) {
            return -1;
        }
    }
    return 0;
}

static bool collect_row(void *arg, const struct store_row *row)
{
    json_array_append_new(arg, json_loads(row->json, 0, NULL));
    return true;
}

void copy_forget_volumes(struct core *core, const char *made_for)
{
    struct store_node node = {.op = STORE_OP_EQ, .path = "made_for", .type = STORE_TEXT, .text = made_for};
    struct store_query query = {.nodes = &node, .count = 1, .limit = UINT32_MAX};
    json_t *list = json_array(), *volume;
    size_t i;
    store_list(core->store, "volume", &query, collect_row, list, NULL, NULL);
    json_array_foreach(list, i, volume)
    {
        char path[DRIVER_PATH_MAX];
        struct fault ignored = {0};
        const char *name = obj_text(volume, "name");
        if (store_delete(core->store, "volume", name, STORE_VERSION_ANY, NULL) == 0) {
            volume_path(core, volume, path, sizeof(path));
            unlink(path);
            event_add(core, "volume.deleted", &model_volume, name, "", NULL, &ignored);
        }
    }
    json_decref(list);
}
