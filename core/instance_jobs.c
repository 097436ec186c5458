/*
 * The work behind instance.c: job functions, on worker threads. Each begins with where the store says the
 * instance is, and leaves it in a state that the store names, whatever fails.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "base/util.h"
#include "core/core_int.h"
#include "core/snapshot.h"

static void sleep_ms(unsigned ms)
{
    struct timespec ts = {ms / 1000, (long)(ms % 1000) * 1000000};
    nanosleep(&ts, NULL);
}

static int canceled(struct fault *fault)
{
    return fault_set(fault, FAULT_CANCELED, NULL, "it was canceled");
}

static int set_state(struct core *core, const char *name, const char *state, const char *reason,
                     const char *event, const char *who, struct fault *fault)
{
    core_lock(core);
    int rc = instance_set_state(core, name, state, reason, event, who, fault);
    core_unlock(core);
    return rc;
}

static int get_driver(struct core *core, const char *name, struct driver_instance *instance,
                      const struct driver_ops **ops, struct fault *fault)
{
    core_lock(core);
    int rc = instance_driver(core, name, instance, ops, fault);
    core_unlock(core);
    return rc;
}

/* Its snapshots: what volumes that stay have of them would be nobody's. */
static int forget_snapshots(struct core *core, struct job *job, const struct driver_instance *instance,
                            const char *who, struct fault *fault)
{
    core_lock(core);
    json_t *rows = snapshot_rows(core, instance->id), *row;
    core_unlock(core);
    size_t i;
    int rc = 0;
    json_array_foreach(rows, i, row)
    {
        rc = rc ? rc : snapshot_remove_data(core, job, instance, row, fault);
        core_lock(core);
        if (rc == 0 && core_begin(core, fault) == 0) {
            rc = core_end(core, snapshot_drop(core, instance->spec, row, who, fault), "", fault);
        }
        core_unlock(core);
    }
    json_decref(rows);
    return rc;
}

int instance_forget(struct core *core, const char *name, const char *who, struct fault *fault)
{
    struct driver_instance instance;
    const struct driver_ops *ops;
    if (get_driver(core, name, &instance, &ops, fault) < 0) {
        return -1;
    }
    int rc = ops->remove(&instance, fault);
    int error = rc == 0 ? tree_remove(instance.dir) : 0;
    if (error < 0) {
        struct err err = {0};
        err_sys(&err, error, "cannot remove '%s'", instance.dir);
        rc = fault_from_err(fault, &err);
    }
    char id[32];
    snprintf(id, sizeof(id), "%s", instance.id);
    instance_driver_done(&instance);
    if (rc == 0) {
        struct err err = {0};
        core_lock(core);
        if (store_delete(core->store, "instance", name, STORE_VERSION_ANY, &err) < 0) {
            rc = fault_from_err(fault, &err);
        } else {
            rc = event_add(core, "instance.deleted", &model_instance, name, who, NULL, fault);
            schedule_forget(core, id);
        }
        core_unlock(core);
    }
    return rc;
}

static int make_instance_dir(const struct driver_instance *instance, struct fault *fault)
{
    int rc = make_dirs(instance->dir);
    if (rc < 0) {
        struct err err = {0};
        err_sys(&err, rc, "cannot make '%s'", instance->dir);
        return fault_from_err(fault, &err);
    }
    return 0;
}

/* ---- create ---- */

struct creating {
    struct core *core;
    struct job *job;
};

static void on_step(void *opaque, const char *what)
{
    struct creating *c = opaque;
    job_step(c->core, c->job, 1, 2, what);
}

static void on_bytes(void *opaque, int64_t done, int64_t total)
{
    struct creating *c = opaque;
    job_bytes(c->job, (uint64_t)done, (uint64_t)total);
}

static bool on_canceled(void *opaque)
{
    struct creating *c = opaque;
    return job_canceled(c->job);
}

static int run_create(struct core *core, struct job *job, struct fault *fault)
{
    struct driver_instance instance;
    const struct driver_ops *ops;
    const char *name = job_target(job);
    job_step(core, job, 0, 1, "making its directory");
    if (get_driver(core, name, &instance, &ops, fault) < 0) {
        return -1;
    }
    int rc = job_canceled(job) ? canceled(fault) : make_instance_dir(&instance, fault);
    if (rc == 0 && ops->prepare) {
        struct creating creating = {core, job};
        const struct driver_progress progress = {on_step, on_bytes, on_canceled, &creating};
        rc = ops->prepare(&instance, &progress, fault);
    }
    instance_driver_done(&instance);
    if (rc == 0) {
        rc = set_state(core, name, "stopped", NULL, "instance.created", job_who(job), fault);
    }
    if (rc < 0) {
        struct fault ignored = {0};
        instance_forget(core, name, job_who(job), &ignored);
        return -1;
    }
    job_step(core, job, 1, 1, "created");
    return 0;
}

/* ---- start ---- */

static int record_running(struct core *core, const char *name, pid_t pid, const char *who,
                          struct fault *fault)
{
    json_t *spec = NULL;
    core_lock(core);
    int rc = object_get(core, &model_instance, name, &spec, NULL, fault);
    if (rc == 0) {
        obj_set_text(spec, "state", "running");
        obj_set_text(spec, "state_reason", "");
        obj_set_now(spec, "started_at");
        obj_set_int(spec, "pid", pid);
        obj_set_int(spec, "saved_bytes", 0);
        json_object_set_new(spec, "after_restart", json_false());
        json_object_set_new(spec, "must_restart", json_false());
        json_object_del(spec, "applying");
        if (strcmp(who, "restart-policy") != 0) {
            obj_set_int(spec, "restarts", 0);
        }
        rc = object_put(core, &model_instance, spec, STORE_VERSION_ANY, "instance.started", NULL, fault);
    }
    if (rc == 0) {
        rc = supervise_add(core, obj_text(spec, "id"), pid, fault);
    }
    json_decref(spec);
    core_unlock(core);
    return rc;
}

/* From memory if there is any; the file of a saved instance is used up when its machine runs, as its disks go
 * on from there. */
static int launch(struct job *job, const struct driver_instance *instance, const struct driver_ops *ops,
                  const char *memory, pid_t *ret_pid, struct fault *fault)
{
    bool saved = !memory && access(instance->saved, F_OK) == 0;
    if (saved || memory) {
        int rc = ops->restore(instance, saved ? instance->saved : memory, ret_pid, fault);
        if (rc == 0 && saved) {
            unlink(instance->saved);
        }
        return rc;
    }
    bool hold = obj_bool(job_args(job), "hold") && ops->hold;
    return (hold ? ops->hold : ops->start)(instance, ret_pid, fault);
}

int instance_start_process(struct core *core, struct job *job, const char *memory, struct fault *fault)
{
    struct driver_instance instance;
    const struct driver_ops *ops;
    const char *name = job_target(job);
    if (get_driver(core, name, &instance, &ops, fault) < 0) {
        return -1;
    }
    pid_t pid = 0;
    int rc = make_instance_dir(&instance, fault);
    if (rc == 0) {
        rc = job_canceled(job) ? canceled(fault) : launch(job, &instance, ops, memory, &pid, fault);
    }
    if (rc == 0) {
        rc = record_running(core, name, pid, job_who(job), fault);
        if (rc < 0) {
            struct fault ignored = {0};
            ops->kill(&instance, &ignored);
        }
    }
    bool saved = access(instance.saved, F_OK) == 0;
    instance_driver_done(&instance);
    if (rc < 0) {
        struct fault ignored = {0};
        set_state(core, name,
                  saved                           ? "saved"
                  : fault->code == FAULT_CANCELED ? "stopped"
                                                  : "failed",
                  fault->detail, "instance.failed", job_who(job), &ignored);
    }
    return rc;
}

static int run_start(struct core *core, struct job *job, struct fault *fault)
{
    job_step(core, job, 0, 1, "starting its process");
    int rc = instance_start_process(core, job, NULL, fault);
    if (rc == 0) {
        job_step(core, job, 1, 1, "running");
    }
    return rc;
}

/* ---- stop ---- */

/* Whether the instance's process has ended within the time. */
static bool wait_end(struct core *core, struct job *job, const char *id, uint64_t timeout_ms)
{
    uint64_t until = monotonic_ms() + timeout_ms;
    for (unsigned pause = 2;; pause = MIN(2 * pause, 50u)) {
        core_lock(core);
        bool has = supervise_has(core, id);
        core_unlock(core);
        if (!has) {
            return true;
        }
        if (monotonic_ms() >= until || job_canceled(job)) {
            return false;
        }
        sleep_ms(pause);
    }
}

#define KILL_TIMEOUT_MS 10000

static int stop_process(struct core *core, struct job *job, const struct driver_instance *instance,
                        const struct driver_ops *ops, struct fault *fault)
{
    const json_t *how = job_args(job);
    const json_t *timeout = json_object_get(how, "timeout");
    uint64_t seconds =
        (uint64_t)(timeout ? json_integer_value(timeout) : obj_int(instance->spec, "stop_timeout"));
    if (!obj_bool(how, "force") && seconds) {
        struct fault refused = {0};
        job_step(core, job, 0, 2, "asking the guest to end");
        if (ops->stop(instance, &refused) == 0) {
            if (wait_end(core, job, instance->id, seconds * 1000)) {
                return 0;
            }
            if (job_canceled(job)) {
                return canceled(fault);
            }
        } else {
            job_log(core, job, "%s", refused.detail);
        }
    }
    job_step(core, job, 1, 2, "ending it by force");
    if (ops->kill(instance, fault) < 0) {
        return -1;
    }
    return wait_end(core, job, instance->id, KILL_TIMEOUT_MS)
               ? 0
               : fault_set(fault, FAULT_TIMEOUT, "the host's kernel may be holding it: see dmesg",
                           "the process of '%s' does not end", instance->name);
}

/* What stopping a saved instance means: its memory is given up, as if its power had been cut. */
static int drop_saved(struct core *core, struct job *job, const struct driver_instance *instance,
                      struct fault *fault)
{
    json_t *spec = NULL;
    if (job_canceled(job)) {
        return canceled(fault);
    }
    if (unlink(instance->saved) < 0 && errno != ENOENT) {
        return fault_set(fault, FAULT_INTERNAL, NULL, "cannot remove '%s': %s", instance->saved,
                         strerror(errno));
    }
    core_lock(core);
    int rc = object_get(core, &model_instance, job_target(job), &spec, NULL, fault);
    if (rc == 0) {
        obj_set_text(spec, "state", "stopped");
        obj_set_text(spec, "state_reason", "");
        obj_set_int(spec, "saved_bytes", 0);
        rc = object_put(core, &model_instance, spec, STORE_VERSION_ANY, "instance.stopped", job_who(job),
                        fault);
    }
    core_unlock(core);
    json_decref(spec);
    return rc;
}

/* By force, for what comes instead: no restart policy applies. */
int instance_end_process(struct core *core, struct job *job, const struct driver_instance *instance,
                         const struct driver_ops *ops, struct fault *fault)
{
    if (set_state(core, job_target(job), "stopping", NULL, "instance.stopping", job_who(job), fault) < 0 ||
        ops->kill(instance, fault) < 0) {
        return -1;
    }
    return wait_end(core, job, instance->id, KILL_TIMEOUT_MS)
               ? 0
               : fault_set(fault, FAULT_TIMEOUT, "the host's kernel may be holding it: see dmesg",
                           "the process of '%s' does not end", instance->name);
}

static int stop(struct core *core, struct job *job, struct fault *fault)
{
    struct driver_instance instance;
    const struct driver_ops *ops;
    const char *name = job_target(job);
    if (get_driver(core, name, &instance, &ops, fault) < 0) {
        return -1;
    }
    char was[16];
    snprintf(was, sizeof(was), "%s", obj_text(instance.spec, "state"));
    int rc = 0;
    if (strcmp(was, "saved") == 0) {
        rc = drop_saved(core, job, &instance, fault);
    } else if (strcmp(was, "stopped") != 0 && strcmp(was, "failed") != 0) {
        rc = job_canceled(job)
                 ? canceled(fault)
                 : set_state(core, name, "stopping", NULL, "instance.stopping", job_who(job), fault);
        if (rc == 0) {
            rc = stop_process(core, job, &instance, ops, fault);
        }
        if (rc < 0) {
            core_lock(core);
            struct fault ignored = {0};
            if (supervise_has(core, instance.id)) {
                instance_set_state(core, name, strcmp(was, "paused") == 0 ? "paused" : "running",
                                   fault->detail, NULL, job_who(job), &ignored);
            }
            core_unlock(core);
        }
    }
    instance_driver_done(&instance);
    return rc;
}

static int run_stop(struct core *core, struct job *job, struct fault *fault)
{
    int rc = stop(core, job, fault);
    if (rc == 0) {
        job_step(core, job, 2, 2, "stopped");
    }
    return rc;
}

static int run_restart(struct core *core, struct job *job, struct fault *fault)
{
    if (stop(core, job, fault) < 0 ||
        set_state(core, job_target(job), "starting", NULL, NULL, job_who(job), fault) < 0) {
        return -1;
    }
    return run_start(core, job, fault);
}

/* ---- pause, resume ---- */

static int pause_or_resume(struct core *core, struct job *job, bool pausing, struct fault *fault)
{
    struct driver_instance instance;
    const struct driver_ops *ops;
    const char *name = job_target(job);
    if (get_driver(core, name, &instance, &ops, fault) < 0) {
        return -1;
    }
    const char *now = obj_text(instance.spec, "state");
    int rc = 0;
    if (strcmp(now, pausing ? "running" : "paused") != 0) {
        rc = fault_set(fault, FAULT_STATE, "see 'fonda ps'", "instance '%s' is %s", name, now);
    } else if (job_canceled(job)) {
        rc = canceled(fault);
    } else {
        rc = pausing ? ops->pause(&instance, fault) : ops->resume(&instance, fault);
    }
    core_lock(core);
    if (rc == 0 && supervise_has(core, instance.id)) {
        rc = instance_set_state(core, name, pausing ? "paused" : "running", NULL,
                                pausing ? "instance.paused" : "instance.resumed", job_who(job), fault);
    }
    core_unlock(core);
    instance_driver_done(&instance);
    return rc;
}

static int run_pause(struct core *core, struct job *job, struct fault *fault)
{
    return pause_or_resume(core, job, true, fault);
}

static int run_resume(struct core *core, struct job *job, struct fault *fault)
{
    return pause_or_resume(core, job, false, fault);
}

/* What else uses a volume keeps it. */
static void forget_volumes(struct core *core, struct job *job, const json_t *names)
{
    size_t i;
    json_t *item, *volume;
    json_array_foreach((json_t *)names, i, item)
    {
        const char *name = json_string_value(item);
        char path[DRIVER_PATH_MAX];
        struct fault ignored = {0};
        struct err err = {0};
        core_lock(core);
        if (object_get(core, &model_volume, name, &volume, NULL, &ignored) == 0) {
            volume_path(core, volume, path, sizeof(path));
            if (store_delete(core->store, "volume", name, STORE_VERSION_ANY, &err) == 0) {
                unlink(path);
                event_add(core, "volume.deleted", &model_volume, name, job_who(job), NULL, &ignored);
            }
            json_decref(volume);
        }
        core_unlock(core);
        if (err.code) {
            job_log(core, job, "volume '%s' stays: %s", name, err.text);
        }
    }
}

static int run_delete(struct core *core, struct job *job, struct fault *fault)
{
    struct driver_instance instance;
    const struct driver_ops *ops;
    json_t *volumes = NULL;
    job_step(core, job, 0, 1, "removing what it has");
    int rc = get_driver(core, job_target(job), &instance, &ops, fault);
    if (rc == 0) {
        volumes = json_incref(json_object_get(instance.spec, "volumes"));
        rc = forget_snapshots(core, job, &instance, job_who(job), fault);
        instance_driver_done(&instance);
    }
    rc = rc ? rc : instance_forget(core, job_target(job), job_who(job), fault);
    if (rc < 0) {
        struct fault ignored = {0};
        set_state(core, job_target(job), "failed", fault->detail, "instance.failed", job_who(job), &ignored);
    } else if (obj_bool(job_args(job), "volumes")) {
        forget_volumes(core, job, volumes);
    }
    json_decref(volumes);
    return rc;
}

/* ---- save ---- */

static void on_save_bytes(void *opaque, int64_t done, int64_t total)
{
    job_bytes(opaque, (uint64_t)done, (uint64_t)total);
}

static bool on_save_canceled(void *opaque)
{
    return job_canceled(opaque);
}

static int save(struct core *core, struct job *job, const struct driver_instance *instance,
                struct fault *fault)
{
    const struct driver_progress progress = {
        .bytes = on_save_bytes, .canceled = on_save_canceled, .opaque = job};
    struct fault why = {0};
    if (driver_control_job(instance, "save", json_pack("{s:s}", "file", instance->saved), &progress, NULL,
                           &why) == 0) {
        return wait_end(core, job, instance->id, KILL_TIMEOUT_MS)
                   ? 0
                   : fault_set(fault, FAULT_TIMEOUT, "fonda stop --force", "the process of '%s' does not end",
                               instance->name);
    }
    /* It ends once it is saved, maybe before it could say so. */
    if (why.code == FAULT_UNAVAILABLE && wait_end(core, job, instance->id, KILL_TIMEOUT_MS) &&
        access(instance->saved, F_OK) == 0) {
        return 0;
    }
    *fault = why;
    return -1;
}

static int run_save(struct core *core, struct job *job, struct fault *fault)
{
    struct driver_instance instance;
    const struct driver_ops *ops;
    const char *name = job_target(job);
    if (get_driver(core, name, &instance, &ops, fault) < 0) {
        return -1;
    }
    char was[16];
    snprintf(was, sizeof(was), "%s", obj_text(instance.spec, "state"));
    int rc = job_canceled(job) ? canceled(fault) : 0;
    if (rc == 0 && strcmp(was, "running") != 0 && strcmp(was, "paused") != 0) {
        rc = fault_set(fault, FAULT_STATE, "see 'fonda ps'", "instance '%s' is %s", name, was);
    }
    if (rc == 0) {
        job_step(core, job, 0, 1, "writing its memory");
        rc = set_state(core, name, "stopping", NULL, "instance.stopping", job_who(job), fault);
        rc = rc ? rc : save(core, job, &instance, fault);
        core_lock(core);
        struct fault ignored = {0};
        if (rc < 0 && supervise_has(core, instance.id)) {
            instance_set_state(core, name, was, fault->detail, NULL, job_who(job), &ignored);
        }
        core_unlock(core);
    }
    instance_driver_done(&instance);
    if (rc == 0) {
        job_step(core, job, 1, 1, "saved");
    }
    return rc;
}

const struct job_type job_instance_create = {"instance.create", run_create};
const struct job_type job_instance_start = {"instance.start", run_start};
const struct job_type job_instance_stop = {"instance.stop", run_stop};
const struct job_type job_instance_restart = {"instance.restart", run_restart};
const struct job_type job_instance_pause = {"instance.pause", run_pause};
const struct job_type job_instance_resume = {"instance.resume", run_resume};
const struct job_type job_instance_delete = {"instance.delete", run_delete};
const struct job_type job_instance_save = {"instance.save", run_save};

/* ---- stats: what the host says of the process, and the instance of itself ---- */

static int read_proc(pid_t pid, const char *file, char *buf, size_t size)
{
    char path[64];
    snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, file);
    auto_close int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, buf, size - 1);
    buf[n > 0 ? n : 0] = '\0';
    return n > 0 ? 0 : -1;
}

int instance_stats(const struct driver_instance *instance, const struct driver_ops *ops, json_t **ret_stats,
                   struct fault *fault)
{
    char stat[1024], statm[128];
    pid_t pid = (pid_t)obj_int(instance->spec, "pid"), server = pid ? driver_server(instance) : 0;
    pid = server ? server : pid;
    if (!pid || read_proc(pid, "stat", stat, sizeof(stat)) < 0 ||
        read_proc(pid, "statm", statm, sizeof(statm)) < 0) {
        return fault_set(fault, FAULT_STATE, "start it first", "instance '%s' does not run", instance->name);
    }
    /* proc(5): fields 14, 15 (CPU time) and 22 (start time) of stat, in clock ticks; the name may hold
     * spaces. */
    unsigned long long user = 0, system = 0, started = 0, pages = 0;
    const char *rest = strrchr(stat, ')');
    if (!rest ||
        sscanf(rest + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %llu %llu %*d %*d %*d %*d %*d %*d %llu",
               &user, &system, &started) != 3 ||
        sscanf(statm, "%*u %llu", &pages) != 1) {
        return fault_set(fault, FAULT_INTERNAL, NULL, "cannot read /proc/%d/stat", (int)pid);
    }
    long long ticks = sysconf(_SC_CLK_TCK);
    struct timespec boot;
    clock_gettime(CLOCK_BOOTTIME, &boot);
    long long up_ms =
        (long long)boot.tv_sec * 1000 + boot.tv_nsec / 1000000 - (long long)started * 1000 / ticks;
    json_t *stats =
        json_pack("{s:I, s:I, s:I}", "cpu_ns", (json_int_t)(user + system) * (1000000000 / ticks), "rss",
                  (json_int_t)pages * sysconf(_SC_PAGESIZE), "uptime_ms", (json_int_t)MAX(up_ms, 0ll));
    json_t *own = NULL;
    struct fault ignored = {0};
    if (ops->stats(instance, &own, &ignored) == 0) {
        /* A container's are those of its cgroup, not of its monitor. */
        const json_t *data = json_object_get(own, "data");
        const json_t *total =
            json_object_get(json_object_get(json_object_get(data, "cpu"), "usage"), "total");
        const json_t *usage =
            json_object_get(json_object_get(json_object_get(data, "memory"), "usage"), "usage");
        if (json_is_integer(total)) {
            obj_set_int(stats, "cpu_ns", json_integer_value(total));
        }
        if (json_is_integer(usage)) {
            obj_set_int(stats, "rss", json_integer_value(usage));
        }
        json_object_set_new(stats, "engine", own);
    }
    *ret_stats = stats;
    return 0;
}
