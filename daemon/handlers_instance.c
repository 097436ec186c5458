/* Instances: what needs a job, statistics, the console's log. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <time.h>

#include "base/util.h"
#include "daemon/handlers.h"

int handle_instance_create(struct request *request, struct fault *fault)
{
    char job[24];
    if (instance_create(request->core, request->body, &request->caller, job, fault) < 0) {
        return -1;
    }
    answer_job(request, job);
    return 0;
}

int handle_instance_delete(struct request *request, struct fault *fault)
{
    char job[24];
    uint64_t expected, volumes;
    if (request_expected(request, &expected, fault) < 0 ||
        request_arg_uint(request, "volumes", 0, 1, &volumes, fault) < 0) {
        return -1;
    }
    if (volumes && request->caller.role < ROLE_OPERATOR) { /* a grant is on the instance alone */
        return fault_set(fault, FAULT_FORBIDDEN, "delete the instance alone",
                         "volumes need the role operator");
    }
    if (instance_delete(request->core, request->name, expected, volumes, request->caller.name, job, fault) <
        0) {
        return -1;
    }
    answer_job(request, job);
    return 0;
}

typedef int simple_fn(struct core *core, const char *name, const char *who, char *ret_job,
                      struct fault *fault);
typedef int stop_fn(struct core *core, const char *name, const json_t *how, const char *who, char *ret_job,
                    struct fault *fault);

static int simple(struct request *request, simple_fn *fn, struct fault *fault)
{
    char job[24];
    if (fn(request->core, request->name, request->caller.name, job, fault) < 0) {
        return -1;
    }
    answer_job(request, job);
    return 0;
}

static int stopping(struct request *request, stop_fn *fn, struct fault *fault)
{
    char job[24];
    if (fn(request->core, request->name, request->body, request->caller.name, job, fault) < 0) {
        return -1;
    }
    answer_job(request, job);
    return 0;
}

int handle_instance_start(struct request *request, struct fault *fault)
{
    return simple(request, obj_bool(request->body, "hold") ? instance_start_held : instance_start, fault);
}

/* The instance's driver, for what may block: unlocked. */
static int get_driver(struct request *request, struct driver_instance *instance,
                      const struct driver_ops **ops, struct fault *fault)
{
    core_lock(request->core);
    int rc = instance_driver(request->core, request->name, instance, ops, fault);
    core_unlock(request->core);
    return rc;
}

int handle_instance_kill(struct request *request, struct fault *fault)
{
    struct driver_instance instance;
    const struct driver_ops *ops;
    const char *signal = obj_text(request->body, "signal");
    if (get_driver(request, &instance, &ops, fault) < 0) {
        return -1;
    }
    int rc = ops->signal ? ops->signal(&instance, signal[0] ? signal : "KILL", fault)
                         : fault_set(fault, FAULT_UNSUPPORTED, "fonda stop --force",
                                     "signals are for containers; a machine is stopped");
    instance_driver_done(&instance);
    if (rc == 0) {
        request->status = 204;
    }
    return rc;
}

int handle_instance_top(struct request *request, struct fault *fault)
{
    struct driver_instance instance;
    const struct driver_ops *ops;
    json_t *list = NULL;
    if (get_driver(request, &instance, &ops, fault) < 0) {
        return -1;
    }
    int rc = ops->top ? ops->top(&instance, &list, fault)
                      : fault_set(fault, FAULT_UNSUPPORTED, NULL, "only containers show their processes");
    instance_driver_done(&instance);
    if (rc == 0) {
        answer_json(request, 200, json_pack("{s:o}", "processes", list));
    }
    return rc;
}

#define WAIT_DEFAULT_S 30
#define WAIT_MAX_S     60
#define WAIT_STEP_NS   20000000

/* Looks every now and then: the state is in the store, whoever changed it. */
int handle_instance_wait(struct request *request, struct fault *fault)
{
    uint64_t seconds, waited_ns = 0;
    if (request_arg_uint(request, "seconds", WAIT_DEFAULT_S, WAIT_MAX_S, &seconds, fault) < 0) {
        return -1;
    }
    for (;; waited_ns += WAIT_STEP_NS) {
        json_t *instance = NULL;
        core_lock(request->core);
        int rc = object_get(request->core, &model_instance, request->name, &instance, NULL, fault);
        core_unlock(request->core);
        if (rc < 0) {
            return -1;
        }
        const char *state = obj_text(instance, "state");
        bool ended =
            strcmp(state, "stopped") == 0 || strcmp(state, "failed") == 0 || strcmp(state, "deleting") == 0;
        if (ended || waited_ns >= seconds * 1000000000u) {
            json_t *answer = json_pack("{s:s}", "state", state);
            if (ended && json_object_get(instance, "exit_status")) {
                obj_set_int(answer, "exit_status", obj_int(instance, "exit_status"));
            }
            json_decref(instance);
            answer_json(request, 200, answer);
            return 0;
        }
        json_decref(instance);
        struct timespec ts = {0, WAIT_STEP_NS};
        nanosleep(&ts, NULL);
    }
}

int handle_instance_pause(struct request *request, struct fault *fault)
{
    return simple(request, instance_pause, fault);
}

int handle_instance_resume(struct request *request, struct fault *fault)
{
    return simple(request, instance_resume, fault);
}

int handle_instance_save(struct request *request, struct fault *fault)
{
    return simple(request, instance_save, fault);
}

int handle_instance_stop(struct request *request, struct fault *fault)
{
    return stopping(request, instance_stop, fault);
}

int handle_instance_restart(struct request *request, struct fault *fault)
{
    return stopping(request, instance_restart, fault);
}

int handle_instance_clone(struct request *request, struct fault *fault)
{
    char job[24];
    if (instance_clone(request->core, request->name, request->body, &request->caller, job, fault) < 0) {
        return -1;
    }
    answer_job(request, job);
    return 0;
}

int handle_instance_rename(struct request *request, struct fault *fault)
{
    uint64_t expected, version = 0;
    json_t *instance = NULL;
    const char *name = obj_text(request->body, "name");
    if (request_expected(request, &expected, fault) < 0 ||
        instance_rename(request->core, request->name, name, expected, &request->caller, fault) < 0 ||
        object_get(request->core, &model_instance, name, &instance, &version, fault) < 0) {
        return -1;
    }
    answer_object(request, 200, &model_instance, instance, version);
    return 0;
}

int handle_instance_stats(struct request *request, struct fault *fault)
{
    struct driver_instance instance;
    const struct driver_ops *ops;
    json_t *stats = NULL;
    core_lock(request->core);
    int rc = instance_driver(request->core, request->name, &instance, &ops, fault);
    core_unlock(request->core);
    if (rc < 0) {
        return -1;
    }
    rc = instance_stats(&instance, ops, &stats, fault);
    instance_driver_done(&instance);
    if (rc == 0) {
        answer_json(request, 200, stats);
    }
    return rc;
}

int handle_instance_history(struct request *request, struct fault *fault)
{
    const char *span = request_arg(request, "span");
    json_t *history = NULL;
    if (history_read(request->core, request->name, span ? span : "hour", &history, fault) < 0) {
        return -1;
    }
    answer_json(request, 200, history);
    return 0;
}

#define LOG_BYTES     (64u * 1024)
#define LOG_BYTES_MAX (1024u * 1024)

int handle_instance_log(struct request *request, struct fault *fault)
{
    struct driver_instance instance;
    const struct driver_ops *ops;
    uint64_t bytes;
    if (request_arg_uint(request, "bytes", LOG_BYTES, LOG_BYTES_MAX, &bytes, fault) < 0 ||
        instance_driver(request->core, request->name, &instance, &ops, fault) < 0) {
        return -1;
    }
    auto_close int fd = open(instance.log, O_RDONLY | O_CLOEXEC);
    instance_driver_done(&instance);
    off_t end = fd < 0 ? 0 : lseek(fd, 0, SEEK_END);
    char *text = malloc(bytes + 1);
    if (!text) {
        return fault_set(fault, FAULT_INTERNAL, NULL, "no memory");
    }
    ssize_t n = fd < 0 ? 0 : pread(fd, text, bytes, MAX(end - (off_t)bytes, (off_t)0));
    answer_text(request, "text/plain; charset=utf-8", text, n > 0 ? (size_t)n : 0);
    return 0;
}
