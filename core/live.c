/*
 * Changes of what runs: a machine's disks, volumes, networks and memory, brought in line with what the store
 * says by a job behind the change (object.c).
 *
 *     object_change: after_restart := true, "applying" := the job
 *     job: driver_ops.apply --+--> all of it is as the store says: after_restart := false, unless
 * must_restart
 *                             `--> the job fails with the reason; what is left waits for the next start
 *
 * Nothing is remembered of what the instance was started with: its process is asked what it has.
 *
 * Threads: live_apply_machine on a worker, unlocked.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/options.h"
#include "base/util.h"
#include "control/client.h"
#include "core/core_int.h"

#define CALL_MS   10000
#define DETACH_MS 45000 /* the machine gives its guest 30 s */

struct applying {
    const struct driver_instance *instance;
    struct control_client *client;
    struct fault *fault;
};

/* params is taken over. */
static int call_fds(struct applying *a, const char *method, json_t *params, const int *fds, unsigned count,
                    json_t **ret_result)
{
    struct err err = {0};
    json_t *result = NULL, *end = NULL;
    int rc = control_client_call_fds(a->client, method, params, fds, count, CALL_MS, &result, &err);
    if (rc == 0 && json_object_get(result, "job")) {
        rc = control_client_job(a->client, result, DETACH_MS, &end, &err);
        json_decref(result);
        result = end;
    }
    if (rc < 0) {
        return fault_set(a->fault, rc == -EREMOTEIO ? FAULT_STATE : FAULT_UNAVAILABLE,
                         "it takes effect at the next start", "instance '%s': %s", a->instance->name,
                         err.text);
    }
    if (ret_result) {
        *ret_result = result;
    } else {
        json_decref(result);
    }
    return 0;
}

static int call(struct applying *a, const char *method, json_t *params, json_t **ret_result)
{
    return call_fds(a, method, params, NULL, 0, ret_result);
}

/* --- disks: a text is "FILE,option,..." --------------------------------------------------------------------
 */

static bool is_limit(const char *part)
{
    static const char *const keys[] = {"iops=", "iops-burst=", "bps=", "bps-burst="};
    for (size_t i = 0; i < ARRAY_SIZE(keys); i++) {
        if (strncmp(part, keys[i], strlen(keys[i])) == 0) {
            return true;
        }
    }
    return false;
}

/* What says which device it is: a disk's text without its limits, which are put into *ret_limits (NULL: not
 * wanted), a NIC's without its address, which goes by its place. free() it. */
static char *meaning(const char *text, bool disk, json_t **ret_limits)
{
    char *copy = strdup(text), *out = calloc(1, strlen(text) + 1), *rest = copy, *part;
    json_t *limits = json_object();
    while (copy && out && (part = strsep(&rest, ",")) != NULL) {
        if (!disk && strncmp(part, "mac=", 4) == 0) {
            continue;
        }
        if (!disk || !is_limit(part)) {
            strcat(strcat(out, out[0] ? "," : ""), part);
            continue;
        }
        char *value = strchr(part, '=');
        uint64_t number = 0;
        *value++ = '\0';
        bool size = part[0] == 'b';
        (void)(size ? parse_size(value, &number, NULL) : parse_uint(value, &number, NULL));
        char *dash = strchr(part, '-');
        if (dash) {
            *dash = '_';
        }
        json_object_set_new(limits, part, json_integer((json_int_t)number));
    }
    free(copy);
    if (ret_limits) {
        *ret_limits = limits;
    } else {
        json_decref(limits);
    }
    return out;
}

static int attach_disk(struct applying *a, const char *text)
{
    char path[DRIVER_PATH_MAX];
    snprintf(path, sizeof(path), "%.*s", (int)MIN(strcspn(text, ","), sizeof(path) - 1), text);
    bool read_only = strstr(text, ",readonly") != NULL;
    auto_close int fd = open(path, O_CLOEXEC | O_NONBLOCK | (read_only ? O_RDONLY : O_RDWR));
    if (fd < 0) {
        return fault_set(a->fault, FAULT_INVALID, "give the absolute path of a file on the daemon's host",
                         "cannot open disk '%s': %s", path, strerror(errno));
    }
    return call_fds(a, "disk_attach", json_pack("{s:s, s:[s]}", "disk", text, "files", path), &fd, 1, NULL);
}

static int set_limits(struct applying *a, const char *id, json_t *limits)
{
    json_object_set_new(limits, "id", json_string(id));
    return call(a, "throttle", json_incref(limits), NULL);
}

/* --- what there is, and what there should be ---------------------------------------------------------------
 */

/* Takes the wanted text that means the device out of the list. False: it is not wanted. */
static bool take_wanted(json_t *wanted, const char *option, bool disk, json_t **ret_limits)
{
    auto_free char *is = meaning(option, disk, NULL);
    size_t i;
    json_t *item;
    json_array_foreach(wanted, i, item)
    {
        json_t *limits = NULL;
        auto_free char *should = meaning(json_string_value(item), disk, &limits);
        if (is && should && strcmp(is, should) == 0) {
            *ret_limits = limits;
            json_array_remove(wanted, i);
            return true;
        }
        json_decref(limits);
    }
    return false;
}

/* What goes makes room for what comes. */
static int reconcile(struct applying *a, const json_t *devices, json_t *wanted, bool disk)
{
    size_t i;
    json_t *device;
    int rc = 0;
    json_array_foreach((json_t *)devices, i, device)
    {
        const char *id = obj_text(device, "id"), *option = obj_text(device, "option");
        json_t *limits = NULL;
        if (rc < 0 || strcmp(obj_text(device, "kind"), disk ? "disk" : "nic") != 0 || !option[0]) {
            continue;
        }
        if (!take_wanted(wanted, option, disk, &limits)) {
            rc = call(a, disk ? "disk_detach" : "nic_detach", json_pack("{s:s}", "id", id), NULL);
        } else if (disk) {
            rc = set_limits(a, id, limits);
        }
        json_decref(limits);
    }
    json_array_foreach(wanted, i, device)
    {
        const char *text = json_string_value(device);
        if (rc == 0) {
            rc = disk ? attach_disk(a, text) : call(a, "nic_attach", json_pack("{s:s}", "nic", text), NULL);
        }
    }
    return rc;
}

/* The balloon takes what is not wanted any more; more than it started with can't be had. */
static int apply_memory(struct applying *a)
{
    json_t *status = NULL;
    int64_t wanted = obj_int(a->instance->spec, "memory");
    if (call(a, "status", NULL, &status) < 0) {
        return -1;
    }
    int64_t has = obj_int(status, "memory_bytes");
    json_decref(status);
    if (wanted > has) {
        return fault_set(a->fault, FAULT_STATE, "restart it",
                         "instance '%s': memory beyond what it was started with comes at the next start",
                         a->instance->name);
    }
    return call(a, "balloon", json_pack("{s:I}", "bytes", (json_int_t)(has - wanted)), NULL);
}

int live_apply_machine(const struct driver_instance *instance, json_t *disks, json_t *nics,
                       struct fault *fault)
{
    struct applying a = {instance, NULL, fault};
    struct err err = {0};
    json_t *devices = NULL;
    if (control_connect(instance->control, &a.client, &err) < 0) {
        return fault_set(fault, FAULT_UNAVAILABLE, NULL, "instance '%s': %s", instance->name, err.text);
    }
    int rc = call(&a, "devices", NULL, &devices);
    const json_t *list = json_object_get(devices, "devices");
    rc = rc < 0 ? rc : reconcile(&a, list, disks, true);
    rc = rc < 0 ? rc : reconcile(&a, list, nics, false);
    rc = rc < 0 ? rc : apply_memory(&a);
    json_decref(devices);
    control_client_free(a.client);
    return rc;
}

/* --- the job ----------------------------------------------------------------------------------------------
 */

/* A change meanwhile has a job of its own, which then says what is left. */
static int record(struct core *core, struct job *job, bool all, struct fault *fault)
{
    json_t *instance = NULL;
    const char *name = job_target(job);
    core_lock(core);
    int rc = object_get(core, &model_instance, name, &instance, NULL, fault);
    if (rc == 0 && obj_int(instance, "changes") == obj_int(job_args(job), "changes")) {
        json_object_del(instance, "applying");
        json_object_set_new(instance, "after_restart",
                            json_boolean(!all || obj_bool(instance, "must_restart")));
        rc = object_put(core, &model_instance, instance, STORE_VERSION_ANY, "instance.changed", job_who(job),
                        fault);
    }
    json_decref(instance);
    core_unlock(core);
    return rc;
}

static int run_apply(struct core *core, struct job *job, struct fault *fault)
{
    struct driver_instance instance;
    const struct driver_ops *ops;
    core_lock(core);
    int rc = instance_driver(core, job_target(job), &instance, &ops, fault);
    core_unlock(core);
    if (rc < 0) {
        return -1;
    }
    job_step(core, job, 0, 1, "changing what runs");
    rc = ops->apply(&instance, fault);
    instance_driver_done(&instance);
    struct fault ignored = {0};
    int recorded = record(core, job, rc == 0, &ignored);
    return rc < 0 ? rc : recorded;
}

const struct job_type job_instance_apply = {"instance.apply", run_apply};
