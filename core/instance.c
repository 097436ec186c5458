/*
 * Instances: what a request changes at once, and the job that does the rest (instance_jobs.c).
 *
 *                create                 start                  (job)
 *     (nothing) -------> creating -> stopped -------> starting -------> running <--pause/resume--> paused
 *                            |          ^  ^             |                 |                          |
 *                     (undo) |          |  +-------------+                 | stop                     |
 *                            v          |    failed to start               v                          |
 *                        (nothing)      +----- its process ended ------ stopping <--------------------+
 *                                       |                              (supervise.c: instance_ended)
 *                                    deleting -> (nothing)
 *
 *     running, paused -> stopping -- save, its process ends --> saved -- start --> starting
 */
#include <stdio.h>
#include <string.h>

#include "base/util.h"
#include "core/core_int.h"
#include "core/disk.h"

void instance_paths(struct core *core, const char *id, struct driver_instance *instance)
{
    snprintf(instance->dir, sizeof(instance->dir), "%s/instances/%s", core->state_dir, id);
    snprintf(instance->control, sizeof(instance->control), "%s/instances/%s/control", core->state_dir, id);
    snprintf(instance->lock, sizeof(instance->lock), "%s/instances/%s/lock", core->state_dir, id);
    snprintf(instance->log, sizeof(instance->log), "%s/instances/%s/console.log", core->state_dir, id);
    snprintf(instance->saved, sizeof(instance->saved), "%s/instances/%s/saved.fonda", core->state_dir, id);
    snprintf(instance->status, sizeof(instance->status), "%s/instances/%s/status", core->state_dir, id);
}

static int add_volumes(struct core *core, const json_t *spec, json_t *list, struct fault *fault)
{
    size_t i;
    json_t *item, *volume;
    char path[DRIVER_PATH_MAX];
    json_array_foreach(json_object_get(spec, "volumes"), i, item)
    {
        if (object_get(core, &model_volume, json_string_value(item), &volume, NULL, fault) < 0) {
            return -1;
        }
        volume_path(core, volume, path, sizeof(path));
        json_array_append_new(list,
                              json_pack("{s:s, s:s}", "path", path, "format", obj_text(volume, "format")));
        json_decref(volume);
    }
    return 0;
}

static int add_networks(struct core *core, const json_t *spec, json_t *list, struct fault *fault)
{
    size_t i;
    json_t *item, *network;
    json_array_foreach(json_object_get(spec, "networks"), i, item)
    {
        if (strcmp(json_string_value(item), "user") == 0) {
            json_array_append_new(list, json_pack("{s:s}", "mode", "user"));
            continue;
        }
        if (object_get(core, &model_network, json_string_value(item), &network, NULL, fault) < 0) {
            return -1;
        }
        json_array_append_new(list, network);
    }
    return 0;
}

void instance_driver_done(struct driver_instance *instance)
{
    json_decref((json_t *)instance->spec);
    json_decref((json_t *)instance->volumes);
    json_decref((json_t *)instance->networks);
    memset(instance, 0, sizeof(*instance));
}

int instance_driver(struct core *core, const char *name, struct driver_instance *ret_instance,
                    const struct driver_ops **ret_ops, struct fault *fault)
{
    struct driver_instance instance = {0};
    json_t *spec = NULL;
    if (object_get(core, &model_instance, name, &spec, NULL, fault) < 0) {
        return -1;
    }
    instance.spec = spec;
    instance.name = obj_text(spec, "name");
    instance.id = obj_text(spec, "id");
    instance_paths(core, instance.id, &instance);
    if (driver_has_room(spec)) {
        snprintf(instance.log, sizeof(instance.log), "%s/instances/%s/monitor/log", core->state_dir,
                 instance.id);
    }
    json_t *volumes = json_array(), *networks = json_array();
    instance.volumes = volumes;
    instance.networks = networks;
    *ret_ops = driver_of(spec);
    if (!*ret_ops) {
        instance_driver_done(&instance);
        return fault_set(fault, FAULT_UNSUPPORTED, NULL, "this Fonda has no driver for such an instance");
    }
    if (add_volumes(core, spec, volumes, fault) < 0 || add_networks(core, spec, networks, fault) < 0) {
        instance_driver_done(&instance);
        return -1;
    }
    *ret_instance = instance;
    return 0;
}

int instance_set_state(struct core *core, const char *name, const char *state, const char *reason,
                       const char *event, const char *who, struct fault *fault)
{
    json_t *instance = NULL;
    if (object_get(core, &model_instance, name, &instance, NULL, fault) < 0) {
        return -1;
    }
    obj_set_text(instance, "state", state);
    obj_set_text(instance, "state_reason", reason ? reason : "");
    int rc = object_put(core, &model_instance, instance, STORE_VERSION_ANY, NULL, NULL, fault);
    if (rc == 0 && event) {
        rc = event_add(core, event, &model_instance, name, who, json_pack("{s:s}", "state", state), fault);
    }
    json_decref(instance);
    return rc;
}

/* ---- one transaction for a change and its job ---- */

int core_begin(struct core *core, struct fault *fault)
{
    struct err err = {0};
    return store_begin(core->store, &err) < 0 ? fault_from_err(fault, &err) : 0;
}

int core_end(struct core *core, int rc, const char *job, struct fault *fault)
{
    struct err err = {0};
    if (rc < 0) {
        store_rollback(core->store);
    } else if (store_commit(core->store, &err) < 0) {
        rc = fault_from_err(fault, &err);
    }
    if (rc < 0) {
        job_forget(core, job);
    } else {
        job_kick(core);
    }
    return rc;
}

int instance_in_state(struct core *core, const char *name, const char *verb, const char *allowed,
                      json_t **ret_instance, struct fault *fault)
{
    json_t *instance = NULL;
    if (object_get(core, &model_instance, name, &instance, NULL, fault) < 0) {
        return -1;
    }
    const char *state = obj_text(instance, "state"), *restoring = obj_text(instance, "restoring");
    int rc = 0;
    if (!strstr(allowed, state)) {
        rc = fault_set(fault, FAULT_STATE, "see 'fonda ps'", "instance '%s' is %s: to %s it, it must be %s",
                       name, state, verb, allowed);
    } else if (restoring[0]) {
        rc = fault_set(fault, FAULT_BUSY, "wait for the job that does it",
                       "instance '%s' is going back to snapshot '%s'", name, restoring);
    }
    if (rc < 0) {
        json_decref(instance);
        return -1;
    }
    *ret_instance = instance;
    return 0;
}

int instance_not_held(struct core *core, const json_t *instance, const char *verb, struct fault *fault)
{
    const char *job = job_holding(core, obj_text(instance, "id"));
    return job ? fault_set(fault, FAULT_BUSY, "wait for the job",
                           "instance '%s' is being copied by job %s: it can't %s meanwhile",
                           obj_text(instance, "name"), job, verb)
               : 0;
}

static bool name_of_row(void *arg, const struct store_row *row)
{
    snprintf(arg, FIELD_NAME_MAX + 1, "%s", row->name);
    return false;
}

int volume_not_base(struct core *core, const char *name, struct fault *fault)
{
    struct store_node node = {.op = STORE_OP_EQ, .path = "backing", .type = STORE_TEXT, .text = name};
    struct store_query query = {.nodes = &node, .count = 1, .limit = 1};
    char dependent[FIELD_NAME_MAX + 1] = "";
    store_list(core->store, "volume", &query, name_of_row, dependent, NULL, NULL);
    return dependent[0]
               ? fault_set(fault, FAULT_BUSY, "delete the linked copies first; or clone in mode full",
                           "volume '%s' can't be written to: volume '%s' is a linked copy of it", name,
                           dependent)
               : 0;
}

int instance_not_base(struct core *core, const json_t *instance, struct fault *fault)
{
    size_t i;
    json_t *item;
    json_array_foreach(json_object_get(instance, "volumes"), i, item)
    {
        if (volume_not_base(core, json_string_value(item), fault) < 0) {
            return -1;
        }
    }
    return 0;
}

/* What would write to disks that must stay as they are. */
static int check_start(struct core *core, const json_t *instance, struct fault *fault)
{
    return instance_not_held(core, instance, "start", fault) < 0 ? -1
                                                                 : instance_not_base(core, instance, fault);
}

static int change_state_with_job(struct core *core, const char *name, const char *verb, const char *allowed,
                                 const char *state, const struct job_type *type, json_t *args,
                                 const char *who, char *ret_job, struct fault *fault)
{
    json_t *instance = NULL;
    ret_job[0] = '\0';
    if (core_begin(core, fault) < 0) {
        json_decref(args);
        return -1;
    }
    int rc = instance_in_state(core, name, verb, allowed, &instance, fault);
    if (rc == 0 && type == &job_instance_start) {
        rc = check_start(core, instance, fault);
    } else if (rc == 0 && type == &job_instance_delete) {
        rc = instance_not_held(core, instance, "be deleted", fault);
    }
    if (rc == 0 && state) {
        rc = instance_set_state(core, name, state, NULL, NULL, who, fault);
    }
    if (rc == 0) {
        rc = job_add(core, type, &model_instance, name, who, args, ret_job, fault);
    } else {
        json_decref(args);
    }
    json_decref(instance);
    return core_end(core, rc, ret_job, fault);
}

void instance_kind_defaults(json_t *in)
{
    if (strcmp(obj_text(in, "kind"), "vm") == 0) {
        if (!json_object_get(in, "cpus")) {
            obj_set_int(in, "cpus", 1);
        }
        if (!json_object_get(in, "memory")) {
            obj_set_int(in, "memory", 256 * (int64_t)MiB);
        }
        if (!json_object_get(in, "engine")) {
            obj_set_text(in, "engine", "bt");
        }
        return;
    }
    json_object_del(in, "rng");
    json_object_del(in, "reboot");
    const char *cpus = obj_text(in, "cpu_limit");
    if (cpus[0] && !json_object_get(in, "cpus")) { /* whole ones count against quotas */
        double value = atof(cpus);
        obj_set_int(in, "cpus", value > 31 ? 32 : (int64_t)value + (value > (double)(int64_t)value));
    }
}

int instance_create(struct core *core, json_t *in, const struct caller *caller, char *ret_job,
                    struct fault *fault)
{
    ret_job[0] = '\0';
    const struct driver_ops *ops = driver_of(in);
    if (!ops) {
        return fault_set(fault, FAULT_UNSUPPORTED, NULL, "this Fonda has no driver for such an instance");
    }
    char id[16];
    random_id(id);
    obj_set_text(in, "id", id);
    obj_set_text(in, "owner", caller->name);
    obj_set_now(in, "created_at");
    field_defaults(&model_instance, in);
    instance_kind_defaults(in);
    if (ops->check(in, fault) < 0 || quota_check(core, caller->name, &model_instance, in, NULL, fault) < 0 ||
        core_begin(core, fault) < 0) {
        return -1;
    }
    const char *name = obj_text(in, "name");
    int rc =
        object_put(core, &model_instance, in, STORE_VERSION_NEW, "instance.creating", caller->name, fault);
    if (rc == 0) {
        rc = instance_link(core, in, fault);
    }
    if (rc == 0) {
        rc = job_add(core, &job_instance_create, &model_instance, name, caller->name, NULL, ret_job, fault);
    }
    return core_end(core, rc, ret_job, fault);
}

int instance_start_held(struct core *core, const char *name, const char *who, char *ret_job,
                        struct fault *fault)
{
    return change_state_with_job(core, name, "start", "stopped or failed or saved", "starting",
                                 &job_instance_start, json_pack("{s:b}", "hold", 1), who, ret_job, fault);
}

int instance_start(struct core *core, const char *name, const char *who, char *ret_job, struct fault *fault)
{
    return change_state_with_job(core, name, "start", "stopped or failed or saved", "starting",
                                 &job_instance_start, NULL, who, ret_job, fault);
}

int instance_stop(struct core *core, const char *name, const json_t *how, const char *who, char *ret_job,
                  struct fault *fault)
{
    return change_state_with_job(core, name, "stop", "running or paused or starting or stopping or saved",
                                 NULL, &job_instance_stop, json_deep_copy(how), who, ret_job, fault);
}

int instance_restart(struct core *core, const char *name, const json_t *how, const char *who, char *ret_job,
                     struct fault *fault)
{
    return change_state_with_job(core, name, "restart", "running or paused", NULL, &job_instance_restart,
                                 json_deep_copy(how), who, ret_job, fault);
}

int instance_pause(struct core *core, const char *name, const char *who, char *ret_job, struct fault *fault)
{
    return change_state_with_job(core, name, "pause", "running", NULL, &job_instance_pause, NULL, who,
                                 ret_job, fault);
}

int instance_resume(struct core *core, const char *name, const char *who, char *ret_job, struct fault *fault)
{
    return change_state_with_job(core, name, "resume", "paused", NULL, &job_instance_resume, NULL, who,
                                 ret_job, fault);
}

int instance_save(struct core *core, const char *name, const char *who, char *ret_job, struct fault *fault)
{
    json_t *instance = NULL;
    if (object_get(core, &model_instance, name, &instance, NULL, fault) < 0) {
        return -1;
    }
    json_t *more = json_pack("{s:I}", "size", (json_int_t)obj_int(instance, "memory"));
    int rc = driver_of(instance)->restore
                 ? quota_check(core, obj_text(instance, "owner"), &model_volume, more, NULL, fault)
                 : fault_set(fault, FAULT_UNSUPPORTED, "fonda pause, or fonda stop",
                             "instance '%s' is a container: only machines can be saved", name);
    json_decref(more);
    json_decref(instance);
    return rc < 0 ? rc
                  : change_state_with_job(core, name, "save", "running or paused", NULL, &job_instance_save,
                                          NULL, who, ret_job, fault);
}

int instance_delete(struct core *core, const char *name, uint64_t expected, bool volumes, const char *who,
                    char *ret_job, struct fault *fault)
{
    json_t *instance = NULL;
    uint64_t version = 0;
    if (object_get(core, &model_instance, name, &instance, &version, fault) < 0) {
        return -1;
    }
    json_decref(instance);
    if (expected != STORE_VERSION_ANY && expected != version) {
        return fault_set(fault, FAULT_CHANGED, "read it again",
                         "instance '%s' was changed by somebody else meanwhile", name);
    }
    return change_state_with_job(core, name, "delete", "stopped or failed or saved", "deleting",
                                 &job_instance_delete, json_pack("{s:b}", "volumes", volumes), who, ret_job,
                                 fault);
}

int instance_rename(struct core *core, const char *name, const char *new_name, uint64_t expected,
                    const struct caller *caller, struct fault *fault)
{
    json_t *instance = NULL;
    struct err err = {0};
    if (core_begin(core, fault) < 0) {
        return -1;
    }
    int rc = instance_in_state(core, name, "rename", "stopped or failed or saved", &instance, fault);
    if (rc == 0 && job_open_for(core, &model_instance, name)) {
        rc = fault_set(fault, FAULT_BUSY, "wait for its end", "a job works on instance '%s'", name);
    }
    if (rc == 0 && store_rename(core->store, "instance", name, new_name, expected, &err) < 0) {
        rc = fault_from_err(fault, &err);
    }
    if (rc == 0) {
        obj_set_text(instance, "name", new_name);
        rc = object_put(core, &model_instance, instance, STORE_VERSION_ANY, NULL, caller->name, fault);
    }
    rc = rc ? rc : schedule_rename(core, obj_text(instance, "id"), new_name, fault);
    if (rc == 0) {
        rc = event_add(core, "instance.renamed", &model_instance, new_name, caller->name,
                       json_pack("{s:s}", "old_name", name), fault);
    }
    json_decref(instance);
    return core_end(core, rc, "", fault);
}

/* ---- when a process ends ---- */

struct by_id {
    char *name;
};

static bool name_row(void *arg, const struct store_row *row)
{
    ((struct by_id *)arg)->name = strdup(row->name);
    return false;
}

char *instance_name_of(struct core *core, const char *id)
{
    struct store_node node = {.op = STORE_OP_EQ, .path = "id", .type = STORE_TEXT, .text = id};
    struct store_query query = {.nodes = &node, .count = 1, .limit = 1};
    struct by_id found = {0};
    store_list(core->store, "instance", &query, name_row, &found, NULL, NULL);
    return found.name;
}

#define RESTARTS_MAX 5 /* in a row, until somebody starts it by hand */

/* Whether the restart policy wants it to run again. Exit status 0: the guest powered off. */
static bool wants_restart(const json_t *instance, int status)
{
    const char *policy = obj_text(instance, "restart_policy");
    /* A container's monitor restarts it; only one that is gone with it (the host went down) is started here.
     */
    if ((driver_has_room(instance) && status >= 0) || strcmp(obj_text(instance, "state"), "stopping") == 0 ||
        obj_text(instance, "restoring")[0] || obj_int(instance, "restarts") >= RESTARTS_MAX) {
        return false;
    }
    return strcmp(policy, "always") == 0 || (strcmp(policy, "on-failure") == 0 && status != 0);
}

void instance_ended(struct core *core, const char *id, int status)
{
    auto_free char *name = instance_name_of(core, id);
    json_t *instance = NULL;
    struct fault fault = {0};
    if (!name || object_get(core, &model_instance, name, &instance, NULL, &fault) < 0) {
        return;
    }
    struct driver_instance paths;
    instance_paths(core, id, &paths);
    limit_clear_aside(paths.dir);
    bool saved = access(paths.saved, F_OK) == 0; /* there as soon as it is complete, and not while it runs */
    bool again = !saved && wants_restart(instance, status);
    bool remove = obj_bool(instance, "auto_remove") && !saved && !obj_text(instance, "restoring")[0] &&
                  strcmp(obj_text(instance, "state"), "deleting") != 0;
    char reason[128] = "";
    if (strcmp(obj_text(instance, "state"), "deleting") != 0) {
        if (strcmp(obj_text(instance, "state"), "stopping") != 0 && !saved) {
            snprintf(reason, sizeof(reason),
                     status < 0 ? "it ended while nobody watched" : "it ended with status %d", status);
        }
        obj_set_text(instance, "state", saved ? "saved" : "stopped");
    }
    obj_set_int(instance, "saved_bytes", saved ? disk_used(paths.saved) : 0);
    obj_set_text(instance, "state_reason", reason);
    obj_set_int(instance, "exit_status", status);
    json_object_del(instance, "pid");
    if (again) {
        obj_set_int(instance, "restarts", obj_int(instance, "restarts") + 1);
    }
    if (core_begin(core, &fault) == 0) {
        int rc = object_put(core, &model_instance, instance, STORE_VERSION_ANY, NULL, NULL, &fault);
        if (rc == 0) {
            event_add(core, saved ? "instance.saved" : "instance.stopped", &model_instance, name, "",
                      json_pack("{s:i}", "exit_status", status), &fault);
        }
        core_end(core, rc, "", &fault);
    }
    json_decref(instance);
    char job[24];
    if (again) {
        instance_start(core, name, "restart-policy", job, &fault);
    } else if (remove) {
        instance_delete(core, name, STORE_VERSION_ANY, false, "auto-remove", job, &fault);
    }
}
