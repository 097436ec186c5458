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

/* Removes everything of an instance that is not wanted any more. */
static int forget(struct core *core, const char *name, const char *who, struct fault *fault)
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
    instance_driver_done(&instance);
    if (rc == 0) {
        struct err err = {0};
        core_lock(core);
        if (store_delete(core->store, "instance", name, STORE_VERSION_ANY, &err) < 0) {
            rc = fault_from_err(fault, &err);
        } else {
            rc = event_add(core, "instance.deleted", &model_instance, name, who, NULL, fault);
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
        forget(core, name, job_who(job), &ignored);
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
        json_object_set_new(spec, "after_restart", json_false());
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

static int start(struct core *core, struct job *job, struct fault *fault)
{
    struct driver_instance instance;
    const struct driver_ops *ops;
    const char *name = job_target(job);
    if (get_driver(core, name, &instance, &ops, fault) < 0) {
        return -1;
    }
    job_step(core, job, 0, 1, "starting its process");
    pid_t pid = 0;
    int rc = make_instance_dir(&instance, fault);
    if (rc == 0) {
        bool hold = obj_bool(job_args(job), "hold") && ops->hold;
        rc = job_canceled(job) ? canceled(fault) : (hold ? ops->hold : ops->start)(&instance, &pid, fault);
    }
    if (rc == 0) {
        rc = record_running(core, name, pid, job_who(job), fault);
        if (rc < 0) {
            struct fault ignored = {0};
            ops->kill(&instance, &ignored);
        }
    }
    instance_driver_done(&instance);
    if (rc < 0) {
        struct fault ignored = {0};
        set_state(core, name, fault->code == FAULT_CANCELED ? "stopped" : "failed", fault->detail,
                  "instance.failed", job_who(job), &ignored);
    }
    return rc;
}

static int run_start(struct core *core, struct job *job, struct fault *fault)
{
    int rc = start(core, job, fault);
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
    if (strcmp(was, "stopped") != 0 && strcmp(was, "failed") != 0) {
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

static int run_delete(struct core *core, struct job *job, struct fault *fault)
{
    job_step(core, job, 0, 1, "removing what it has");
    int rc = forget(core, job_target(job), job_who(job), fault);
    if (rc < 0) {
        struct fault ignored = {0};
        set_state(core, job_target(job), "failed", fault->detail, "instance.failed", job_who(job), &ignored);
    }
    return rc;
}

/* ---- clone ---- */

static int copy_file(struct job *job, const char *from, const char *to, struct fault *fault)
{
    struct err err = {0};
    auto_close int in = open(from, O_RDONLY | O_CLOEXEC);
    auto_close int out = open(to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    struct stat st;
    if (in < 0 || out < 0 || fstat(in, &st) < 0 || ftruncate(out, st.st_size) < 0) {
        err_sys(&err, -errno, "cannot copy '%s'", from);
        return fault_from_err(fault, &err);
    }
    /* Holes stay holes; copy_file_range shares blocks where the file system can. */
    for (off_t at = 0; at < st.st_size;) {
        off_t data = lseek(in, at, SEEK_DATA);
        off_t end = data < 0 ? st.st_size : lseek(in, data, SEEK_HOLE);
        if (data < 0) {
            break;
        }
        for (at = data; at < end;) {
            loff_t source = at, target = at;
            ssize_t n =
                copy_file_range(in, &source, out, &target, (size_t)MIN(end - at, (off_t)(16 * MiB)), 0);
            if (n < 0) {
                err_sys(&err, -errno, "cannot copy '%s'", from);
                return fault_from_err(fault, &err);
            }
            if (n == 0) {
                break;
            }
            at += n;
            job_bytes(job, (uint64_t)at, (uint64_t)st.st_size);
            if (job_canceled(job)) {
                return canceled(fault);
            }
        }
    }
    return fsync(out) < 0
               ? fault_set(fault, FAULT_INTERNAL, NULL, "cannot save '%s': %s", to, strerror(errno))
               : 0;
}

static void volume_paths(struct core *core, const json_t *names, char paths[][DRIVER_PATH_MAX], size_t max)
{
    size_t i;
    json_t *item, *volume;
    core_lock(core);
    json_array_foreach(names, i, item)
    {
        struct fault ignored = {0};
        paths[i][0] = '\0';
        if (i < max &&
            object_get(core, &model_volume, json_string_value(item), &volume, NULL, &ignored) == 0) {
            volume_path(core, volume, paths[i], DRIVER_PATH_MAX);
            json_decref(volume);
        }
    }
    core_unlock(core);
}

#define CLONE_VOLUMES_MAX 16

static int clone_files(struct core *core, struct job *job, const struct driver_instance *instance,
                       struct fault *fault)
{
    static const unsigned max = CLONE_VOLUMES_MAX;
    char(*from)[DRIVER_PATH_MAX] = calloc(max, DRIVER_PATH_MAX);
    char(*to)[DRIVER_PATH_MAX] = calloc(max, DRIVER_PATH_MAX);
    const json_t *sources = json_object_get(job_args(job), "from_volumes");
    const json_t *targets = json_object_get(instance->spec, "volumes");
    unsigned count = (unsigned)json_array_size(sources);
    int rc = from && to ? 0 : fault_set(fault, FAULT_INTERNAL, NULL, "no memory");
    if (rc == 0) {
        volume_paths(core, sources, from, max);
        volume_paths(core, targets, to, max);
    }
    for (unsigned i = 0; rc == 0 && i < count; i++) {
        char step[160];
        snprintf(step, sizeof(step), "copying volume %s", json_string_value(json_array_get(sources, i)));
        job_step(core, job, i, count, step);
        rc = copy_file(job, from[i], to[i], fault);
    }
    free(from);
    free(to);
    return rc;
}

/* Volumes that a failed clone leaves behind. */
static void forget_volumes(struct core *core, const json_t *names)
{
    size_t i;
    json_t *item, *volume;
    core_lock(core);
    json_array_foreach(names, i, item)
    {
        struct fault ignored = {0};
        char path[DRIVER_PATH_MAX];
        if (object_get(core, &model_volume, json_string_value(item), &volume, NULL, &ignored) == 0) {
            volume_path(core, volume, path, sizeof(path));
            if (store_delete(core->store, "volume", json_string_value(item), STORE_VERSION_ANY, NULL) == 0) {
                unlink(path);
                event_add(core, "volume.deleted", &model_volume, json_string_value(item), "", NULL, &ignored);
            }
            json_decref(volume);
        }
    }
    core_unlock(core);
}

static int run_clone(struct core *core, struct job *job, struct fault *fault)
{
    struct driver_instance instance;
    const struct driver_ops *ops;
    const char *name = job_target(job);
    if (get_driver(core, name, &instance, &ops, fault) < 0) {
        return -1;
    }
    int rc = job_canceled(job) ? canceled(fault) : make_instance_dir(&instance, fault);
    if (rc == 0) {
        rc = clone_files(core, job, &instance, fault);
    }
    if (rc == 0 && ops->prepare) {
        rc = ops->prepare(&instance, NULL, fault);
    }
    if (rc == 0) {
        rc = set_state(core, name, "stopped", NULL, "instance.created", job_who(job), fault);
    }
    if (rc < 0) {
        struct fault ignored = {0};
        forget(core, name, job_who(job), &ignored);
        forget_volumes(core, json_object_get(instance.spec, "volumes"));
    }
    instance_driver_done(&instance);
    return rc;
}

const struct job_type job_instance_create = {"instance.create", run_create};
const struct job_type job_instance_start = {"instance.start", run_start};
const struct job_type job_instance_stop = {"instance.stop", run_stop};
const struct job_type job_instance_restart = {"instance.restart", run_restart};
const struct job_type job_instance_pause = {"instance.pause", run_pause};
const struct job_type job_instance_resume = {"instance.resume", run_resume};
const struct job_type job_instance_delete = {"instance.delete", run_delete};
const struct job_type job_instance_clone = {"instance.clone", run_clone};

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
    pid_t pid = (pid_t)obj_int(instance->spec, "pid");
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
