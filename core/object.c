/*
 * Objects in general: read, write with version and event, and create, change and delete for those kinds that
 * need no job (images, volumes, networks, users; changes of instances).
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/util.h"
#include "core/core_int.h"
#include "core/disk.h"

int object_get(struct core *core, const struct object_type *type, const char *name, json_t **ret_object,
               uint64_t *ret_version, struct fault *fault)
{
    auto_free char *text = NULL;
    struct err err = {0};
    if (store_get(core->store, type->kind, name, &text, ret_version, &err) < 0) {
        return fault_from_err(fault, &err);
    }
    json_t *object = json_loads(text, 0, NULL);
    if (!object) {
        return fault_set(fault, FAULT_INTERNAL, NULL, "%s '%s' is damaged in the state", type->kind, name);
    }
    *ret_object = object;
    return 0;
}

int object_put(struct core *core, const struct object_type *type, json_t *object, uint64_t expected,
               const char *event, const char *who, struct fault *fault)
{
    struct err err = {0};
    const char *name = obj_text(object, "name");
    if (who) {
        obj_set_text(object, "changed_by", who);
    }
    auto_free char *text = json_dumps(object, JSON_COMPACT);
    if (!text) {
        return fault_set(fault, FAULT_INTERNAL, NULL, "no memory");
    }
    if (store_put(core->store, type->kind, name, text, expected, NULL, &err) < 0) {
        return fault_from_err(fault, &err);
    }
    return event ? event_add(core, event, type, name, who, NULL, fault) : 0;
}

static int begin(struct core *core, struct fault *fault)
{
    struct err err = {0};
    return store_begin(core->store, &err) < 0 ? fault_from_err(fault, &err) : 0;
}

static int end(struct core *core, int rc, struct fault *fault)
{
    struct err err = {0};
    if (rc < 0) {
        store_rollback(core->store);
    } else if (store_commit(core->store, &err) < 0) {
        rc = fault_from_err(fault, &err);
    }
    return rc;
}

/* ---- volumes and images: their files ---- */

void volume_path(struct core *core, const json_t *volume, char *buf, size_t size)
{
    snprintf(buf, size, "%s/volumes/%s", core->state_dir, obj_text(volume, "id"));
}

int volume_make(struct core *core, const json_t *volume, struct fault *fault)
{
    char path[DRIVER_PATH_MAX];
    volume_path(core, volume, path, sizeof(path));
    if (strcmp(obj_text(volume, "format"), "qcow2") == 0) {
        return disk_make(path, "qcow2", align_up((uint64_t)obj_int(volume, "size"), 512), NULL, NULL, fault);
    }
    auto_close int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0 || ftruncate(fd, (off_t)obj_int(volume, "size")) < 0) {
        struct err err = {0};
        err_sys(&err, -errno, "cannot make the file of volume '%s'", obj_text(volume, "name"));
        unlink(path);
        return fault_from_err(fault, &err);
    }
    return 0;
}

static int create_volume(struct core *core, json_t *volume, const struct caller *caller, struct fault *fault)
{
    if (quota_check(core, caller->name, &model_volume, volume, NULL, fault) < 0) {
        return -1;
    }
    char id[16];
    random_id(id);
    obj_set_text(volume, "id", id);
    obj_set_text(volume, "owner", caller->name);
    return 0;
}

static int create_image(json_t *image, struct fault *fault)
{
    const char *path = obj_text(image, "path");
    struct stat st;
    if (path[0] != '/') {
        return fault_set(fault, FAULT_INVALID, "give an absolute path", "'path' is not absolute: '%.128s'",
                         path);
    }
    if (stat(path, &st) < 0 || !S_ISREG(st.st_mode)) {
        return fault_set(fault, FAULT_INVALID, "give the path of a file on the daemon's host",
                         "'path': '%.256s' %s", path,
                         errno == ENOENT ? "does not exist" : "is not a file that can be read");
    }
    obj_set_int(image, "size", st.st_size);
    return 0;
}

int object_create(struct core *core, const struct object_type *type, json_t *in, const struct caller *caller,
                  struct fault *fault)
{
    if (type == &model_schedule) {
        return schedule_create(core, in, caller, fault);
    }
    field_defaults(type, in);
    obj_set_now(in, "created_at");
    if ((type == &model_volume && create_volume(core, in, caller, fault) < 0) ||
        (type == &model_image && create_image(in, fault) < 0)) {
        return -1;
    }
    char event[64];
    snprintf(event, sizeof(event), "%s.created", type->kind);
    if (begin(core, fault) < 0) {
        return -1;
    }
    int rc = object_put(core, type, in, STORE_VERSION_NEW, event, caller->name, fault);
    if (rc == 0 && type == &model_volume) {
        rc = volume_make(core, in, fault);
    }
    return end(core, rc, fault);
}

/* ---- change ---- */

static int not_of_template(struct core *core, const char *name, struct fault *fault)
{
    json_t *volume = NULL;
    struct fault ignored = {0};
    if (object_get(core, &model_volume, name, &volume, NULL, &ignored) < 0) {
        return 0; /* linking says so */
    }
    const char *of = obj_text(volume, "template");
    int rc = of[0] ? fault_set(fault, FAULT_BUSY, "fonda template use makes a copy",
                               "volume '%s' belongs to template '%s': nothing may write to it", name, of)
                   : 0;
    json_decref(volume);
    return rc;
}

/* What instances refer to is kept from being deleted. */
static int link_all(struct core *core, const json_t *instance, const char *list, const struct object_type *to,
                    struct fault *fault)
{
    size_t i;
    json_t *item;
    struct err err = {0};
    json_array_foreach(json_object_get(instance, list), i, item)
    {
        const char *name = json_string_value(item);
        if (to == &model_network && strcmp(name, "user") == 0) {
            continue;
        }
        if (to == &model_volume && not_of_template(core, name, fault) < 0) {
            return -1;
        }
        if (store_link(core->store, "instance", obj_text(instance, "name"), to->kind, name, &err) < 0) {
            fault_from_err(fault, &err);
            return err.code == -ENOENT ? fault_set(fault, FAULT_INVALID, "create it first",
                                                   "'%s': there is no %s '%.64s'", list, to->kind, name)
                                       : -1;
        }
    }
    return 0;
}

int instance_link(struct core *core, const json_t *instance, struct fault *fault)
{
    struct err err = {0};
    if (store_unlink_all(core->store, "instance", obj_text(instance, "name"), &err) < 0) {
        return fault_from_err(fault, &err);
    }
    return link_all(core, instance, "volumes", &model_volume, fault) < 0 ||
                   link_all(core, instance, "networks", &model_network, fault) < 0
               ? -1
               : 0;
}

/* Applies a merge patch (RFC 7396) of one level; says what needs a restart (CHANGES_RESTART), or may be had
 * without (CHANGES_LIVE). */
enum { CHANGES_RESTART = 1, CHANGES_LIVE = 2 };
static unsigned apply(const struct object_type *type, json_t *object, const json_t *patch)
{
    unsigned restart = 0;
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)patch, key, value)
    {
        const struct field *field = field_find(type, key, strlen(key));
        bool same = json_equal(value, json_object_get(object, key));
        if (field && (field->flags & F_RESTART) && !same) {
            restart |= field->flags & F_LIVE ? CHANGES_LIVE : CHANGES_RESTART;
        }
        if (json_is_null(value) && field && field->def) { /* absence is the default */
            json_object_set_new(object, key, json_loads(field->def, JSON_DECODE_ANY, NULL));
        } else if (json_is_null(value)) {
            json_object_del(object, key);
        } else {
            json_object_set(object, key, value);
        }
    }
    return restart;
}

/* Part of the change's transaction. */
static int add_apply_job(struct core *core, json_t *object, const char *who, char *ret_job,
                         struct fault *fault)
{
    json_t *args = json_pack("{s:I}", "changes", (json_int_t)obj_int(object, "changes"));
    int rc = job_add(core, &job_instance_apply, &model_instance, obj_text(object, "name"), who, args, ret_job,
                     fault);
    if (rc == 0) {
        obj_set_text(object, "applying", ret_job);
    }
    return rc;
}

static int change_instance(struct core *core, json_t *object, unsigned restart, const char *who,
                           char *ret_job, struct fault *fault)
{
    const char *state = obj_text(object, "state");
    if (strcmp(state, "creating") == 0 || strcmp(state, "deleting") == 0) {
        return fault_set(fault, FAULT_STATE, "wait for the job that does it", "instance '%s' is %s",
                         obj_text(object, "name"), state);
    }
    if (restart && strcmp(state, "stopped") != 0 && strcmp(state, "failed") != 0) {
        json_object_set_new(object, "after_restart", json_true());
        if (restart & CHANGES_RESTART) {
            json_object_set_new(object, "must_restart", json_true());
        }
    }
    const struct driver_ops *ops = driver_of(object);
    instance_kind_defaults(object);
    if (ops->check(object, fault) < 0 || quota_check(core, obj_text(object, "owner"), &model_instance, object,
                                                     obj_text(object, "name"), fault) < 0) {
        return -1;
    }
    if (instance_link(core, object, fault) < 0) {
        return -1;
    }
    if (restart) {
        obj_set_int(object, "changes", obj_int(object, "changes") + 1);
    }
    bool live = (restart & CHANGES_LIVE) && ops->apply && strcmp(state, "running") == 0;
    return live ? add_apply_job(core, object, who, ret_job, fault) : 0;
}

int object_change(struct core *core, const struct object_type *type, const char *name, const json_t *patch,
                  uint64_t expected, const struct caller *caller, json_t **ret_object, struct fault *fault)
{
    json_t *object = NULL;
    char job[24] = "";
    if (begin(core, fault) < 0) {
        return -1;
    }
    int rc = object_get(core, type, name, &object, NULL, fault);
    if (rc == 0) {
        unsigned restart = apply(type, object, patch);
        if (type == &model_instance) {
            rc = change_instance(core, object, restart, caller->name, job, fault);
        } else if (type == &model_schedule) {
            rc = schedule_changed(core, object, fault);
        }
    }
    char event[64];
    snprintf(event, sizeof(event), "%s.changed", type->kind);
    if (rc == 0) {
        rc = object_put(core, type, object, expected, event, caller->name, fault);
    }
    rc = end(core, rc, fault);
    if (job[0] && rc < 0) {
        job_forget(core, job);
    } else if (job[0]) {
        job_kick(core);
    }
    if (rc == 0 && ret_object) {
        *ret_object = object;
    } else {
        json_decref(object);
    }
    return rc;
}

int object_delete(struct core *core, const struct object_type *type, const char *name, uint64_t expected,
                  const struct caller *caller, struct fault *fault)
{
    json_t *object = NULL;
    struct err err = {0};
    if (begin(core, fault) < 0) {
        return -1;
    }
    int rc = object_get(core, type, name, &object, NULL, fault);
    if (rc == 0 && store_delete(core->store, type->kind, name, expected, &err) < 0) {
        rc = fault_from_err(fault, &err);
    }
    char event[64];
    snprintf(event, sizeof(event), "%s.deleted", type->kind);
    if (rc == 0) {
        rc = event_add(core, event, type, name, caller->name, NULL, fault);
    }
    rc = end(core, rc, fault);
    if (rc == 0 && type == &model_volume) {
        char path[DRIVER_PATH_MAX];
        volume_path(core, object, path, sizeof(path));
        unlink(path); /* what stays is removed when the daemon starts (recover.c) */
    }
    json_decref(object);
    return rc;
}
