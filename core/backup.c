/* See backup.h. */
#include "core/backup.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/log.h"
#include "base/util.h"
#include "core/disk.h"
#include "core/snapshot.h"

#define READABLE "running or paused or stopped or failed"

const char *backup_dir(const struct core *core)
{
    return core->backup_dir;
}

void backup_path(const struct core *core, const json_t *backup, char *buf, size_t size)
{
    snprintf(buf, size, "%s/%s.tar", core->backup_dir, obj_text(backup, "id"));
}

static int check_path(const char *path, struct fault *fault)
{
    return path[0] == '/' ? 0
                          : fault_set(fault, FAULT_INVALID, "the daemon's directory is not yours",
                                      "'path' must be an absolute path: '%.256s'", path);
}

/* A machine whose disks can be read now, and what they take. */
static int readable(struct core *core, const char *name, const char *verb, json_t **ret_instance,
                    int64_t *ret_bytes, struct fault *fault)
{
    json_t *instance = NULL, *disks, *disk;
    size_t i;
    if (instance_in_state(core, name, verb, READABLE, &instance, fault) < 0) {
        return -1;
    }
    const char *state = obj_text(instance, "state");
    bool runs = strcmp(state, "running") == 0 || strcmp(state, "paused") == 0;
    int rc =
        !driver_has_room(instance)
            ? 0
            : fault_set(fault, FAULT_UNSUPPORTED, "fonda image commit and save keep a container's files",
                        "instance '%s' is a container: only machines can be exported and backed up", name);
    rc = rc ? rc : snapshot_check_fresh(instance, fault);
    *ret_bytes = 0;
    disks = instance_disks(core, instance);
    json_array_foreach(disks, i, disk)
    {
        *ret_bytes += disk_used(obj_text(disk, "path"));
        if (rc == 0 && runs && strcmp(obj_text(disk, "format"), "raw") == 0) {
            const char *volume = obj_text(disk, "volume");
            rc = fault_set(fault, FAULT_UNSUPPORTED, "stop it first; a clone in mode full has qcow2 volumes",
                           "%s '%s' is raw, which can't be read at one moment while instance '%s' runs",
                           volume[0] ? "volume" : "disk", volume[0] ? volume : obj_text(disk, "path"), name);
        }
    }
    json_decref(disks);
    if (rc < 0) {
        json_decref(instance);
        return -1;
    }
    *ret_instance = instance;
    return 0;
}

/* ---- export, import ---- */

int instance_export(struct core *core, const char *name, const json_t *how, const char *who, char *ret_job,
                    struct fault *fault)
{
    json_t *instance = NULL;
    const char *path = obj_text(how, "path");
    int64_t bytes;
    ret_job[0] = '\0';
    if (check_path(path, fault) < 0) {
        return -1;
    }
    if (access(path, F_OK) == 0) {
        return fault_set(fault, FAULT_EXISTS, "choose another name", "'%.256s' exists already", path);
    }
    if (core_begin(core, fault) < 0) {
        return -1;
    }
    int rc = readable(core, name, "export", &instance, &bytes, fault);
    rc = rc ? rc
            : job_add(core, &job_instance_export, &model_instance, name, who,
                      json_pack("{s:s}", "path", path), ret_job, fault);
    json_decref(instance);
    return core_end(core, rc, ret_job, fault);
}

/* An instance that is nothing but a name until its job has read what it is. hold: it is a backup's, whose
 * instance may be there beside it. */
static int import_instance(struct core *core, const char *name, const char *path, bool trust,
                           const char *hold, const struct caller *caller, char *ret_job, struct fault *fault)
{
    char id[16];
    random_id(id);
    json_t *row =
        json_pack("{s:s, s:s, s:s, s:s}", "name", name, "id", id, "kind", "vm", "owner", caller->name);
    field_defaults(&model_instance, row);
    obj_set_now(row, "created_at");
    int rc = core_begin(core, fault);
    if (rc == 0) {
        rc = quota_check(core, caller->name, &model_instance, row, NULL, fault);
        rc = rc ? rc
                : object_put(core, &model_instance, row, STORE_VERSION_NEW, "instance.creating", caller->name,
                             fault);
        rc = rc ? rc
                : job_add(core, &job_instance_import, &model_instance, name, caller->name,
                          json_pack("{s:s, s:b, s:b}", "path", path, "trust", trust, "twin", hold != NULL),
                          ret_job, fault);
        if (rc == 0 && hold) {
            job_hold(core, ret_job, hold);
        }
        rc = core_end(core, rc, ret_job, fault);
    }
    json_decref(row);
    return rc;
}

int instance_import(struct core *core, const json_t *how, const struct caller *caller, char *ret_job,
                    struct fault *fault)
{
    const char *path = obj_text(how, "path");
    ret_job[0] = '\0';
    if (check_path(path, fault) < 0) {
        return -1;
    }
    if (access(path, R_OK) < 0) {
        return fault_set(fault, FAULT_INVALID, "give the path of a file on the daemon's host",
                         "'path': cannot read '%.256s': %s", path, strerror(errno));
    }
    return import_instance(core, obj_text(how, "name"), path, obj_bool(how, "trust"), NULL, caller, ret_job,
                           fault);
}

/* ---- backups ---- */

static json_t *new_backup(const json_t *instance, const json_t *how)
{
    char id[16], name[80], when[32];
    time_t now = time(NULL);
    struct tm tm;
    gmtime_r(&now, &tm);
    strftime(when, sizeof(when), "%Y%m%d-%H%M%S", &tm);
    snprintf(name, sizeof(name), "%.40s-%s", obj_text(instance, "name"), when);
    random_id(id);
    const char *given = obj_text(how, "name"), *schedule = obj_text(how, "schedule");
    json_t *row =
        json_pack("{s:s, s:s, s:s, s:s, s:s, s:s}", "name", given[0] ? given : name, "id", id, "instance",
                  obj_text(instance, "name"), "instance_id", obj_text(instance, "id"), "description",
                  obj_text(how, "description"), "owner", obj_text(instance, "owner"));
    field_defaults(&model_backup, row);
    obj_set_now(row, "created_at");
    obj_set_text(row, "schedule", schedule[0] ? schedule : NULL);
    if (obj_int(how, "keep")) {
        obj_set_time(row, "expires_at", now + (time_t)obj_int(how, "keep"));
    }
    return row;
}

int backup_create(struct core *core, const char *name, const json_t *how, const char *who, char *ret_job,
                  struct fault *fault)
{
    json_t *instance = NULL, *row = NULL;
    int64_t bytes = 0;
    ret_job[0] = '\0';
    if (core_begin(core, fault) < 0) {
        return -1;
    }
    int rc = readable(core, name, "back up", &instance, &bytes, fault);
    if (rc == 0) {
        row = new_backup(instance, how);
        obj_set_int(row, "size", bytes); /* what it may take; the job says what it does */
        rc = quota_check(core, obj_text(row, "owner"), &model_backup, row, NULL, fault);
    }
    rc = rc ? rc : object_put(core, &model_backup, row, STORE_VERSION_NEW, "backup.creating", who, fault);
    rc = rc ? rc
            : job_add(core, &job_backup_create, &model_instance, name, who,
                      json_pack("{s:s}", "backup", obj_text(row, "name")), ret_job, fault);
    json_decref(row);
    json_decref(instance);
    return core_end(core, rc, ret_job, fault);
}

/* A backup that is complete. */
static int ready_backup(struct core *core, const char *name, json_t **ret_row, struct fault *fault)
{
    json_t *row = NULL;
    if (object_get(core, &model_backup, name, &row, NULL, fault) < 0) {
        return -1;
    }
    if (strcmp(obj_text(row, "state"), "ready") != 0) {
        fault_set(fault, FAULT_STATE, "wait for its job", "backup '%s' is %s", name, obj_text(row, "state"));
        json_decref(row);
        return -1;
    }
    *ret_row = row;
    return 0;
}

int backup_drop(struct core *core, const json_t *backup, const char *who, struct fault *fault)
{
    char path[2 * DRIVER_PATH_MAX];
    struct err err = {0};
    backup_path(core, backup, path, sizeof(path));
    if (store_delete(core->store, "backup", obj_text(backup, "name"), STORE_VERSION_ANY, &err) < 0) {
        return fault_from_err(fault, &err);
    }
    if (unlink(path) < 0 && errno != ENOENT) {
        log_warning("cannot remove '%s', which nothing refers to any more: %s", path, strerror(errno));
    }
    return event_add(core, "backup.deleted", &model_backup, obj_text(backup, "name"), who, NULL, fault);
}

int backup_delete(struct core *core, const char *name, uint64_t expected, const char *who,
                  struct fault *fault)
{
    json_t *row = NULL;
    uint64_t version = 0;
    if (object_get(core, &model_backup, name, &row, &version, fault) < 0) {
        return -1;
    }
    const char *job = job_holding(core, obj_text(row, "id"));
    int rc = 0;
    if (expected != STORE_VERSION_ANY && expected != version) {
        rc = fault_set(fault, FAULT_CHANGED, "read it again", "backup '%s' was changed meanwhile", name);
    } else if (strcmp(obj_text(row, "state"), "creating") == 0) {
        rc = fault_set(fault, FAULT_STATE, "cancel the job that makes it", "backup '%s' is being made", name);
    } else if (job) {
        rc = fault_set(fault, FAULT_BUSY, "wait for its end", "job %s reads backup '%s'", job, name);
    }
    rc = rc ? rc : backup_drop(core, row, who, fault);
    json_decref(row);
    return rc;
}

static int restore_in_place(struct core *core, const json_t *row, const char *who, char *ret_job,
                            struct fault *fault)
{
    const char *backup = obj_text(row, "name");
    auto_free char *name = instance_name_of(core, obj_text(row, "instance_id"));
    json_t *instance = NULL;
    if (!name) {
        return fault_set(fault, FAULT_NOT_FOUND, "restore it as a new instance: give a name",
                         "the instance of backup '%s', '%s', is not there any more", backup,
                         obj_text(row, "instance"));
    }
    if (core_begin(core, fault) < 0) {
        return -1;
    }
    int rc = instance_in_state(core, name, "restore", "stopped or failed", &instance, fault);
    rc = rc ? rc : instance_not_held(core, instance, "be restored", fault);
    rc = rc ? rc : instance_not_base(core, instance, fault);
    if (rc == 0) {
        json_t *snapshots = snapshot_rows(core, obj_text(instance, "id"));
        rc = json_array_size(snapshots) == 0
                 ? 0
                 : fault_set(fault, FAULT_BUSY, "delete them, or restore it as a new instance",
                             "instance '%s' has snapshots, which its disks would lose", name);
        json_decref(snapshots);
    }
    rc = rc ? rc
            : job_add(core, &job_backup_restore, &model_instance, name, who,
                      json_pack("{s:s}", "backup", backup), ret_job, fault);
    if (rc == 0) {
        job_hold(core, ret_job, obj_text(row, "id"));
    }
    json_decref(instance);
    return core_end(core, rc, ret_job, fault);
}

int backup_restore(struct core *core, const char *name, const json_t *how, const struct caller *caller,
                   char *ret_job, struct fault *fault)
{
    json_t *row = NULL;
    char path[2 * DRIVER_PATH_MAX];
    ret_job[0] = '\0';
    if (ready_backup(core, name, &row, fault) < 0) {
        return -1;
    }
    backup_path(core, row, path, sizeof(path));
    /* What lies in the backup directory is this daemon's own: its members are believed. */
    const char *new_name = obj_text(how, "name");
    int rc = new_name[0]
                 ? import_instance(core, new_name, path, true, obj_text(row, "id"), caller, ret_job, fault)
                 : restore_in_place(core, row, caller->name, ret_job, fault);
    json_decref(row);
    return rc;
}

int backup_verify(struct core *core, const char *name, const char *who, char *ret_job, struct fault *fault)
{
    json_t *row = NULL;
    ret_job[0] = '\0';
    if (ready_backup(core, name, &row, fault) < 0) {
        return -1;
    }
    int rc = core_begin(core, fault);
    if (rc == 0) {
        rc = job_add(core, &job_backup_verify, &model_backup, name, who, NULL, ret_job, fault);
        if (rc == 0) {
            job_hold(core, ret_job, obj_text(row, "id"));
        }
        rc = core_end(core, rc, ret_job, fault);
    }
    json_decref(row);
    return rc;
}

/* ---- what the last daemon left ---- */

static bool collect_row(void *arg, const struct store_row *row)
{
    json_array_append_new(arg, json_loads(row->json, 0, NULL));
    return true;
}

static void remove_matching(const char *dir, const char *start, const char *end)
{
    DIR *d = opendir(dir);
    const struct dirent *entry;
    while (d && (entry = readdir(d))) {
        size_t len = strlen(entry->d_name), tail = strlen(end);
        if (strncmp(entry->d_name, start, strlen(start)) == 0 && len > tail &&
            strcmp(entry->d_name + len - tail, end) == 0) {
            unlinkat(dirfd(d), entry->d_name, 0);
        }
    }
    if (d) {
        closedir(d);
    }
}

void backup_recover(struct core *core, const json_t *instances)
{
    struct store_query all = {.limit = UINT32_MAX};
    json_t *rows = json_array(), *row;
    size_t i;
    store_list(core->store, "backup", &all, collect_row, rows, NULL, NULL);
    json_array_foreach(rows, i, row)
    {
        struct fault ignored = {0};
        if (strcmp(obj_text(row, "state"), "ready") != 0) {
            backup_drop(core, row, "recovery", &ignored);
        }
    }
    json_decref(rows);
    remove_matching(core->backup_dir, "", ".tar.partial");
    json_array_foreach((json_t *)instances, i, row)
    {
        struct driver_instance paths;
        instance_paths(core, obj_text(row, "id"), &paths);
        remove_matching(paths.dir, "import-", ".qcow2");
    }
}
