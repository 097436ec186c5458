/*
 * The work behind snapshot.c, on worker threads, as jobs of the instance. Whether the machine's process lives
 * decides who touches the disks; as jobs of one instance run one at a time, none is started meanwhile.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/util.h"
#include "core/disk.h"
#include "core/snapshot.h"

/* An instance, its driver and the snapshot that the job is about. */
struct work {
    struct core *core;
    struct job *job;
    struct driver_instance instance;
    const struct driver_ops *ops;
    json_t *row;
    char memory_path[2 * DRIVER_PATH_MAX];
};

static void work_done(struct work *work)
{
    instance_driver_done(&work->instance);
    json_decref(work->row);
}

static int work_init(struct core *core, struct job *job, struct work *work, struct fault *fault)
{
    *work = (struct work){.core = core, .job = job};
    core_lock(core);
    int rc = instance_driver(core, job_target(job), &work->instance, &work->ops, fault);
    if (rc == 0) {
        rc = snapshot_get(core, work->instance.id, obj_text(job_args(job), "snapshot"), &work->row, NULL,
                          fault);
    }
    core_unlock(core);
    if (rc < 0) {
        work_done(work);
        return -1;
    }
    snapshot_path(&work->instance, work->row, work->memory_path, sizeof(work->memory_path));
    return 0;
}

static bool lives(struct core *core, const struct driver_instance *instance)
{
    core_lock(core);
    bool has = supervise_has(core, instance->id);
    core_unlock(core);
    return has;
}

static json_t *disks_of(struct core *core, const json_t *config)
{
    core_lock(core);
    json_t *disks = instance_disks(core, config);
    core_unlock(core);
    return disks;
}

static void on_bytes(void *opaque, int64_t done, int64_t total)
{
    job_bytes(opaque, (uint64_t)done, (uint64_t)total);
}

static bool on_canceled(void *opaque)
{
    return job_canceled(opaque);
}

/* ---- removing its data ---- */

static int each_disk(struct core *core, const json_t *config, const char *id, enum disk_snapshot_op op,
                     struct fault *fault)
{
    json_t *disks = disks_of(core, config), *disk;
    size_t i;
    int rc = 0;
    json_array_foreach(disks, i, disk)
    {
        const char *format = obj_text(disk, "format");
        rc = rc ? rc : disk_snapshot(obj_text(disk, "path"), format[0] ? format : NULL, id, op, fault);
    }
    json_decref(disks);
    return rc;
}

#define BUSY_TRIES 600
#define BUSY_MS    100

/* A machine that the last daemon had snapshotted may still be at it. */
static int ask_to_delete(struct job *job, const struct driver_instance *instance, const json_t *row,
                         const char *file, struct fault *fault)
{
    for (unsigned tries = 0;; tries++) {
        json_t *params =
            json_pack("{s:s, s:b}", "name", obj_text(row, "id"), "memory", obj_bool(row, "memory"));
        if (obj_bool(row, "memory")) {
            json_object_set_new(params, "file", json_string(file));
        }
        *fault = (struct fault){0};
        int rc = driver_control_call(instance, "snapshot_delete", params, NULL, fault);
        if (rc == 0 || !strstr(fault->detail, "being saved") || tries == BUSY_TRIES || job_canceled(job)) {
            return rc;
        }
        usleep(BUSY_MS * 1000);
    }
}

/* Disks that the machine had at the snapshot and has no more are nobody's: they are changed here. */
static int delete_elsewhere(struct core *core, const struct driver_instance *instance, const json_t *row,
                            bool running, struct fault *fault)
{
    json_t *then = disks_of(core, json_object_get(row, "config"));
    json_t *now = running ? disks_of(core, instance->spec) : json_array();
    json_t *disk, *other;
    size_t i, j;
    int rc = 0;
    json_array_foreach(then, i, disk)
    {
        const char *format = obj_text(disk, "format"), *path = obj_text(disk, "path");
        bool its_own = false;
        json_array_foreach(now, j, other)
        {
            its_own |= strcmp(obj_text(other, "path"), path) == 0;
        }
        if (rc == 0 && !its_own && access(path, F_OK) == 0) {
            rc = disk_snapshot(path, format[0] ? format : NULL, obj_text(row, "id"), DISK_SNAPSHOT_DELETE,
                               fault);
        }
    }
    json_decref(then);
    json_decref(now);
    return rc;
}

int snapshot_remove_data(struct core *core, struct job *job, const struct driver_instance *instance,
                         const json_t *row, struct fault *fault)
{
    char file[2 * DRIVER_PATH_MAX];
    snapshot_path(instance, row, file, sizeof(file));
    bool running = lives(core, instance);
    int rc = running ? ask_to_delete(job, instance, row, file, fault) : 0;
    if (rc < 0 && !lives(core, instance)) { /* it ended meanwhile */
        running = false;
        rc = 0;
    }
    if (rc == 0 && unlink(file) < 0 && errno != ENOENT) {
        rc = fault_set(fault, FAULT_INTERNAL, NULL, "cannot remove '%s': %s", file, strerror(errno));
    }
    return rc ? rc : delete_elsewhere(core, instance, row, running, fault);
}

/* ---- create ---- */

static int take(struct work *work, struct fault *fault)
{
    struct job *job = work->job;
    bool memory = obj_bool(work->row, "memory"), running = lives(work->core, &work->instance);
    const struct driver_progress progress = {.bytes = on_bytes, .canceled = on_canceled, .opaque = job};
    if (job_canceled(job)) {
        return fault_set(fault, FAULT_CANCELED, NULL, "it was canceled");
    }
    if (!running) {
        return memory ? fault_set(fault, FAULT_STATE, "start it, or leave memory out",
                                  "instance '%s' has ended meanwhile", work->instance.name)
                      : each_disk(work->core, work->instance.spec, obj_text(work->row, "id"),
                                  DISK_SNAPSHOT_CREATE, fault);
    }
    json_t *params = json_pack("{s:s, s:b}", "name", obj_text(work->row, "id"), "memory", memory);
    if (memory) {
        json_object_set_new(params, "file", json_string(work->memory_path));
    }
    return driver_control_job(&work->instance, "snapshot_save", params, &progress, NULL, fault);
}

/* It is one from here on. */
static int record(struct work *work, struct fault *fault)
{
    struct core *core = work->core;
    json_t *instance = NULL;
    core_lock(core);
    if (obj_bool(work->row, "memory")) { /* what it is, instead of what it could have been */
        obj_set_int(work->row, "size",
                    obj_int(work->row, "size") - obj_int(work->instance.spec, "memory") +
                        disk_used(work->memory_path));
    }
    obj_set_text(work->row, "state", "ready");
    int rc = core_begin(core, fault);
    if (rc == 0) {
        rc = object_get(core, &model_instance, job_target(work->job), &instance, NULL, fault);
        rc = rc ? rc : snapshot_put(core, work->row, STORE_VERSION_ANY, fault);
        if (rc == 0) {
            obj_set_text(instance, "snapshot", obj_text(work->row, "name"));
            rc = object_put(core, &model_instance, instance, STORE_VERSION_ANY, NULL, NULL, fault);
        }
        rc = rc ? rc
                : event_add(core, "instance.snapshot_created", &model_instance, job_target(work->job),
                            job_who(work->job), json_pack("{s:s}", "snapshot", obj_text(work->row, "name")),
                            fault);
        rc = core_end(core, rc, "", fault);
    }
    core_unlock(core);
    json_decref(instance);
    return rc;
}

/* Row and data go; what can't be removed now is "deleting", and can be deleted again. */
static int remove_it(struct work *work, struct fault *fault)
{
    struct core *core = work->core;
    int rc = snapshot_remove_data(core, work->job, &work->instance, work->row, fault);
    struct fault ignored = {0};
    json_t *instance = NULL;
    core_lock(core);
    if (rc == 0 && core_begin(core, fault) == 0) {
        rc = object_get(core, &model_instance, job_target(work->job), &instance, NULL, fault);
        rc = rc ? rc : snapshot_drop(core, instance, work->row, job_who(work->job), fault);
        rc = core_end(core, rc, "", fault);
    } else {
        obj_set_text(work->row, "state", "deleting");
        snapshot_put(core, work->row, STORE_VERSION_ANY, &ignored);
        rc = -1;
    }
    core_unlock(core);
    json_decref(instance);
    return rc;
}

static int run_create(struct core *core, struct job *job, struct fault *fault)
{
    struct work work;
    if (work_init(core, job, &work, fault) < 0) {
        return -1;
    }
    job_step(core, job, 0, 1, obj_bool(work.row, "memory") ? "keeping memory and disks" : "keeping disks");
    int rc = take(&work, fault);
    rc = rc ? rc : record(&work, fault);
    if (rc < 0) {
        struct fault ignored = {0};
        remove_it(&work, &ignored);
    } else {
        job_step(core, job, 1, 1, "kept");
    }
    work_done(&work);
    return rc;
}

static int run_delete(struct core *core, struct job *job, struct fault *fault)
{
    struct work work;
    if (work_init(core, job, &work, fault) < 0) {
        return -1;
    }
    job_step(core, job, 0, 1, "removing it from disks and memory");
    int rc = remove_it(&work, fault);
    if (rc == 0) {
        job_step(core, job, 1, 1, "deleted");
    }
    work_done(&work);
    return rc;
}

/* ---- disks that are read while their machine runs ---- */

int snapshot_hold_disks(struct core *core, struct job *job, const struct driver_instance *instance,
                        json_t **ret_row, struct fault *fault)
{
    char name[32] = "reading-";
    random_id(name + strlen(name));
    json_t *how = json_pack("{s:s, s:s}", "name", name, "description", "held while a job reads the disks");
    json_t *row = snapshot_new_row(instance->spec, how, false, "");
    core_lock(core);
    int rc = core_begin(core, fault);
    if (rc == 0) {
        rc = snapshot_put(core, row, STORE_VERSION_NEW, fault);
        rc = rc ? rc : snapshot_link(core, row, fault);
        rc = core_end(core, rc, "", fault);
    }
    core_unlock(core);
    json_decref(how);
    if (rc == 0) {
        rc = driver_control_job(instance, "snapshot_save",
                                json_pack("{s:s, s:b}", "name", obj_text(row, "id"), "memory", 0), NULL, NULL,
                                fault);
        if (rc < 0) {
            snapshot_release_disks(core, job, instance, row);
            return -1;
        }
    }
    if (rc < 0) {
        json_decref(row);
        return -1;
    }
    *ret_row = row;
    return 0;
}

void snapshot_release_disks(struct core *core, struct job *job, const struct driver_instance *instance,
                            json_t *row)
{
    struct fault fault = {0};
    int rc = snapshot_remove_data(core, job, instance, row, &fault);
    core_lock(core);
    if (rc == 0 && core_begin(core, &fault) == 0) {
        rc = core_end(core, snapshot_drop(core, instance->spec, row, "", &fault), "", &fault);
    }
    if (rc < 0) { /* it can be deleted like any other; the next daemon does so */
        obj_set_text(row, "state", "deleting");
        snapshot_put(core, row, STORE_VERSION_ANY, &fault);
    }
    core_unlock(core);
    if (rc < 0) {
        job_log(core, job, "the snapshot '%s' could not be removed: %s", obj_text(row, "name"), fault.detail);
    }
    json_decref(row);
}

/* ---- restore ---- */

/* The store's side of it: what the machine is made of is what it was; nothing of a saved machine counts any
 * more. */
static int record_restored(struct work *work, bool start, struct fault *fault)
{
    struct core *core = work->core;
    json_t *instance = NULL;
    core_lock(core);
    int rc = core_begin(core, fault);
    if (rc == 0) {
        rc = object_get(core, &model_instance, job_target(work->job), &instance, NULL, fault);
        if (rc == 0) {
            json_object_update(instance, json_object_get(work->row, "config"));
            obj_set_text(instance, "snapshot", obj_text(work->row, "name"));
            obj_set_text(instance, "restoring", NULL);
            json_object_set_new(instance, "after_restart", json_false());
            obj_set_text(instance, "state", start ? "starting" : "stopped");
            obj_set_text(instance, "state_reason", "");
            obj_set_int(instance, "saved_bytes", 0);
            rc = object_put(core, &model_instance, instance, STORE_VERSION_ANY, "instance.restored",
                            job_who(work->job), fault);
        }
        rc = rc ? rc : instance_link(core, instance, fault);
        rc = core_end(core, rc, "", fault);
    }
    core_unlock(core);
    json_decref(instance);
    return rc;
}

/* touched: its disks may be half at the snapshot. */
static void give_up(struct core *core, struct job *job, bool touched, const struct fault *why)
{
    struct fault ignored = {0};
    json_t *instance = NULL;
    core_lock(core);
    if (object_get(core, &model_instance, job_target(job), &instance, NULL, &ignored) == 0) {
        obj_set_text(instance, "restoring", NULL);
        if (touched) {
            obj_set_text(instance, "state", "failed");
        }
        obj_set_text(instance, "state_reason", why->detail);
        object_put(core, &model_instance, instance, STORE_VERSION_ANY, touched ? "instance.failed" : NULL,
                   job_who(job), &ignored);
    }
    core_unlock(core);
    json_decref(instance);
}

/* What can be known to fail is known before the machine is given up for it. */
static int check_restore(struct work *work, struct fault *fault)
{
    const json_t *config = json_object_get(work->row, "config");
    json_t *disks = disks_of(work->core, config), *disk;
    size_t i;
    int rc = 0;
    if (job_canceled(work->job)) {
        rc = fault_set(fault, FAULT_CANCELED, NULL, "it was canceled");
    } else if (obj_bool(work->row, "memory") && access(work->memory_path, R_OK) < 0) {
        rc = fault_set(fault, FAULT_INVALID, "delete the snapshot", "its memory '%s' is gone: %s",
                       work->memory_path, strerror(errno));
    }
    json_array_foreach(disks, i, disk)
    {
        if (rc == 0 && access(obj_text(disk, "path"), R_OK | W_OK) < 0) {
            rc = fault_set(fault, FAULT_INVALID, "bring it back, or delete the snapshot",
                           "its disk '%s' can't be written to: %s", obj_text(disk, "path"), strerror(errno));
        }
    }
    json_decref(disks);
    return rc;
}

static int restore(struct work *work, struct fault *fault)
{
    struct core *core = work->core;
    struct job *job = work->job;
    bool memory = obj_bool(work->row, "memory");
    const json_t *wish = json_object_get(job_args(job), "start");
    bool start = wish ? json_is_true(wish) : memory;
    int rc = check_restore(work, fault);
    if (rc == 0 && lives(core, &work->instance)) {
        job_step(core, job, 0, 3, "ending its process");
        rc = instance_end_process(core, job, &work->instance, work->ops, fault);
    }
    bool touched = rc == 0;
    if (rc == 0) {
        job_step(core, job, 1, 3, "putting its disks back");
        rc = each_disk(core, json_object_get(work->row, "config"), obj_text(work->row, "id"),
                       DISK_SNAPSHOT_APPLY, fault);
    }
    if (rc == 0) {
        unlink(work->instance.saved);
        rc = record_restored(work, start, fault);
    }
    if (rc < 0) {
        give_up(core, job, touched, fault);
        return -1;
    }
    if (start) {
        job_step(core, job, 2, 3, "starting its process");
        rc = instance_start_process(core, job, memory ? work->memory_path : NULL, fault);
    }
    if (rc == 0) {
        job_step(core, job, 3, 3, "restored");
    }
    return rc;
}

static int run_restore(struct core *core, struct job *job, struct fault *fault)
{
    struct work work;
    if (work_init(core, job, &work, fault) < 0) {
        give_up(core, job, false, fault);
        return -1;
    }
    int rc = restore(&work, fault);
    work_done(&work);
    return rc;
}

const struct job_type job_snapshot_create = {"instance.snapshot", run_create};
const struct job_type job_snapshot_delete = {"instance.snapshot_delete", run_delete};
const struct job_type job_snapshot_restore = {"instance.snapshot_restore", run_restore};
