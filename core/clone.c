/*
 * Clones and templates: what a request changes at once, and the jobs behind them.
 *
 *     instance --clone--> instance          full: disks copied; linked: overlays over the original's volumes,
 * which instance --template--> template       nothing may write to as long as there are such
 * (volume_not_base) template --use--> instance            a template's volumes never change, so linking costs
 * nothing
 *
 * A daemon that is killed leaves instances and templates in state creating: recover.c removes them, and by
 * their id the volumes that were made for them.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include "base/util.h"
#include "core/copy.h"

void random_machine_id(char *buf, size_t size)
{
    uint8_t bytes[16];
    if (getrandom(bytes, sizeof(bytes), 0) != (ssize_t)sizeof(bytes)) {
        abort(); /* never for so few bytes (getrandom(2)) */
    }
    bytes[6] = (bytes[6] & 0x0f) | 0x40; /* a UUID of version 4, RFC 9562 5.4 */
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    for (size_t i = 0; i < sizeof(bytes) && 2 * i + 2 < size; i++) {
        snprintf(buf + 2 * i, size - 2 * i, "%02x", bytes[i]);
    }
}

/* A new instance from the origin, in state creating, with its job. In a transaction. */
static int make_instance(struct core *core, const struct origin *origin, const char *new_name, bool linked,
                         const char *template_name, const struct caller *caller, char *ret_job,
                         struct fault *fault)
{
    json_t *copy = origin_config(origin), *names = NULL, *work = NULL;
    char id[16], machine_id[33];
    random_id(id);
    obj_set_text(copy, "name", new_name);
    obj_set_text(copy, "id", id);
    obj_set_text(copy, "owner", caller->name);
    obj_set_text(copy, "template", template_name);
    obj_set_now(copy, "created_at");
    field_defaults(&model_instance, copy);
    if (!driver_has_room(copy)) {
        random_machine_id(machine_id, sizeof(machine_id));
        obj_set_text(copy, "machine_id", machine_id);
    }
    const struct copy_target target = {new_name, id, caller->name, NULL, linked};
    int rc = quota_check(core, caller->name, &model_instance, copy, NULL, fault);
    rc = rc ? rc : copy_volumes(core, origin, &target, &names, &work, fault);
    if (rc == 0) {
        json_object_set(copy, "volumes", names);
        rc = object_put(core, &model_instance, copy, STORE_VERSION_NEW, "instance.creating", caller->name,
                        fault);
    }
    rc = rc ? rc : instance_link(core, copy, fault);
    rc = rc ? rc
            : job_add(core, &job_instance_clone, &model_instance, new_name, caller->name,
                      json_pack("{s:O}", "work", work), ret_job, fault);
    if (rc == 0) {
        job_hold(core, ret_job, origin->id);
    }
    json_decref(copy);
    json_decref(names);
    json_decref(work);
    return rc;
}

int instance_clone(struct core *core, const char *name, const json_t *how, const struct caller *caller,
                   char *ret_job, struct fault *fault)
{
    struct origin origin = {0};
    const char *snapshot = obj_text(how, "snapshot");
    bool linked = strcmp(obj_text(how, "mode"), "linked") == 0;
    ret_job[0] = '\0';
    if (linked && snapshot[0]) {
        return fault_set(fault, FAULT_UNSUPPORTED, "clone in mode full, or make a template of such a clone",
                         "a linked copy can't be made of a snapshot");
    }
    if (core_begin(core, fault) < 0) {
        return -1;
    }
    int rc = origin_of_instance(core, name, snapshot[0] ? snapshot : NULL, &origin, fault);
    rc = rc ? rc : make_instance(core, &origin, obj_text(how, "name"), linked, NULL, caller, ret_job, fault);
    origin_done(&origin);
    return core_end(core, rc, ret_job, fault);
}

int template_use(struct core *core, const char *name, const json_t *how, const struct caller *caller,
                 char *ret_job, struct fault *fault)
{
    struct origin origin = {0};
    bool linked = strcmp(obj_text(how, "mode"), "full") != 0;
    ret_job[0] = '\0';
    if (core_begin(core, fault) < 0) {
        return -1;
    }
    int rc = origin_of_template(core, name, &origin, fault);
    rc = rc ? rc : make_instance(core, &origin, obj_text(how, "name"), linked, name, caller, ret_job, fault);
    origin_done(&origin);
    return core_end(core, rc, ret_job, fault);
}

/* What becomes of a copy that failed. */
static void undo_instance(struct core *core, struct job *job)
{
    struct fault ignored = {0};
    json_t *instance = NULL;
    core_lock(core);
    int rc = object_get(core, &model_instance, job_target(job), &instance, NULL, &ignored);
    core_unlock(core);
    if (rc == 0 && instance_forget(core, job_target(job), job_who(job), &ignored) == 0) {
        core_lock(core);
        copy_forget_volumes(core, obj_text(instance, "id"));
        core_unlock(core);
    }
    json_decref(instance);
}

static int run_clone(struct core *core, struct job *job, struct fault *fault)
{
    struct driver_instance instance;
    const struct driver_ops *ops;
    const char *name = job_target(job);
    core_lock(core);
    int rc = instance_driver(core, name, &instance, &ops, fault);
    core_unlock(core);
    if (rc < 0) {
        return -1;
    }
    rc = make_dirs(instance.dir);
    if (rc < 0) {
        struct err err = {0};
        err_sys(&err, rc, "cannot make '%s'", instance.dir);
        rc = fault_from_err(fault, &err);
    }
    rc = rc ? rc : copy_run(core, job, json_object_get(job_args(job), "work"), fault);
    if (rc == 0 && ops->prepare) {
        rc = ops->prepare(&instance, NULL, fault);
    }
    instance_driver_done(&instance);
    if (rc == 0) {
        core_lock(core);
        rc = instance_set_state(core, name, "stopped", NULL, "instance.created", job_who(job), fault);
        core_unlock(core);
    }
    if (rc < 0) {
        undo_instance(core, job);
    }
    return rc;
}

const struct job_type job_instance_clone = {"instance.clone", run_clone};

/* ---- templates ---- */

int template_create(struct core *core, json_t *in, const struct caller *caller, char *ret_job,
                    struct fault *fault)
{
    struct origin origin = {0};
    json_t *names = NULL, *work = NULL;
    char id[16];
    const char *name = obj_text(in, "name");
    ret_job[0] = '\0';
    if (core_begin(core, fault) < 0) {
        return -1;
    }
    int rc = origin_of_instance(core, obj_text(in, "instance"), NULL, &origin, fault);
    if (rc == 0 && driver_has_room(origin.config)) {
        rc = fault_set(fault, FAULT_UNSUPPORTED, "fonda image commit",
                       "instance '%s' is a container: its template is an image", origin.name);
    }
    if (rc == 0 && json_array_size(origin.disks) == 0) {
        rc = fault_set(fault, FAULT_INVALID, "fonda clone",
                       "instance '%s' has no disks to make a template of", origin.name);
    }
    random_id(id);
    const struct copy_target target = {name, id, caller->name, name, false};
    rc = rc ? rc : copy_volumes(core, &origin, &target, &names, &work, fault);
    if (rc == 0) {
        json_t *config = origin_config(&origin);
        obj_set_text(in, "id", id);
        obj_set_text(in, "owner", caller->name);
        obj_set_now(in, "created_at");
        json_object_set_new(in, "config", config);
        json_object_set(in, "volumes", names);
        field_defaults(&model_template, in);
        rc = object_put(core, &model_template, in, STORE_VERSION_NEW, "template.creating", caller->name,
                        fault);
    }
    size_t i;
    json_t *volume;
    json_array_foreach(names, i, volume)
    {
        struct err err = {0};
        if (rc == 0 &&
            store_link(core->store, "template", name, "volume", json_string_value(volume), &err) < 0) {
            rc = fault_from_err(fault, &err);
        }
    }
    rc = rc ? rc
            : job_add(core, &job_template_create, &model_template, name, caller->name,
                      json_pack("{s:O}", "work", work), ret_job, fault);
    if (rc == 0) {
        job_hold(core, ret_job, origin.id);
    }
    json_decref(names);
    json_decref(work);
    origin_done(&origin);
    return core_end(core, rc, ret_job, fault);
}

/* Rows, within a transaction; the volumes' files are the caller's. */
static int drop_template(struct core *core, const json_t *row, const char *who, struct fault *fault)
{
    struct err err = {0};
    const char *name = obj_text(row, "name");
    size_t i;
    json_t *volume;
    if (store_delete(core->store, "template", name, STORE_VERSION_ANY, &err) < 0) {
        return fault_from_err(fault, &err);
    }
    json_array_foreach(json_object_get(row, "volumes"), i, volume)
    {
        if (volume_not_base(core, json_string_value(volume), fault) < 0) {
            char detail[200];
            snprintf(detail, sizeof(detail), "%.190s", fault->detail);
            return fault_set(fault, FAULT_BUSY, "delete those instances and their volumes first",
                             "template '%s' has linked copies: %s", name, detail);
        }
        if (store_delete(core->store, "volume", json_string_value(volume), STORE_VERSION_ANY, &err) < 0 &&
            err.code != -ENOENT) {
            return fault_from_err(fault, &err);
        }
    }
    return event_add(core, "template.deleted", &model_template, name, who, NULL, fault);
}

int template_delete(struct core *core, const char *name, uint64_t expected, const struct caller *caller,
                    struct fault *fault)
{
    json_t *row = NULL, *volume;
    uint64_t version = 0;
    size_t i;
    if (core_begin(core, fault) < 0) {
        return -1;
    }
    json_t *paths = json_array();
    int rc = object_get(core, &model_template, name, &row, &version, fault);
    const char *job = rc == 0 ? job_holding(core, obj_text(row, "id")) : NULL;
    if (rc == 0 && expected != STORE_VERSION_ANY && expected != version) {
        rc = fault_set(fault, FAULT_CHANGED, "read it again",
                       "template '%s' was changed by somebody else meanwhile", name);
    } else if (rc == 0 && (job || strcmp(obj_text(row, "state"), "creating") == 0)) {
        rc = fault_set(fault, FAULT_BUSY, "wait for its end", "a job works on template '%s'", name);
    }
    json_array_foreach(json_object_get(row, "volumes"), i, volume)
    {
        json_t *one = NULL;
        struct fault ignored = {0};
        char path[DRIVER_PATH_MAX];
        if (object_get(core, &model_volume, json_string_value(volume), &one, NULL, &ignored) == 0) {
            volume_path(core, one, path, sizeof(path));
            json_array_append_new(paths, json_string(path));
            json_decref(one);
        }
    }
    rc = rc ? rc : drop_template(core, row, caller->name, fault);
    rc = core_end(core, rc, "", fault);
    json_array_foreach(paths, i, volume)
    {
        if (rc == 0) {
            unlink(json_string_value(volume)); /* what stays is removed when the daemon starts (recover.c) */
        }
    }
    json_decref(paths);
    json_decref(row);
    return rc;
}

void template_undo(struct core *core, const char *name)
{
    json_t *row = NULL;
    struct fault ignored = {0};
    if (object_get(core, &model_template, name, &row, NULL, &ignored) == 0) {
        if (store_delete(core->store, "template", name, STORE_VERSION_ANY, NULL) == 0) {
            copy_forget_volumes(core, obj_text(row, "id"));
            event_add(core, "template.deleted", &model_template, name, "", NULL, &ignored);
        }
        json_decref(row);
    }
}

static int run_template(struct core *core, struct job *job, struct fault *fault)
{
    const char *name = job_target(job);
    int rc = copy_run(core, job, json_object_get(job_args(job), "work"), fault);
    json_t *row = NULL;
    core_lock(core);
    rc = rc ? rc : object_get(core, &model_template, name, &row, NULL, fault);
    if (rc == 0) {
        obj_set_text(row, "state", "ready");
        rc = object_put(core, &model_template, row, STORE_VERSION_ANY, "template.created", job_who(job),
                        fault);
    }
    if (rc < 0) {
        template_undo(core, name);
    }
    core_unlock(core);
    json_decref(row);
    return rc;
}

const struct job_type job_template_create = {"template.create", run_template};
