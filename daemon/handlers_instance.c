/* Instances: what needs a job, statistics, the console's log. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>

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
    uint64_t expected;
    if (request_expected(request, &expected, fault) < 0 ||
        instance_delete(request->core, request->name, expected, request->caller.name, job, fault) < 0) {
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
    return simple(request, instance_start, fault);
}

int handle_instance_pause(struct request *request, struct fault *fault)
{
    return simple(request, instance_pause, fault);
}

int handle_instance_resume(struct request *request, struct fault *fault)
{
    return simple(request, instance_resume, fault);
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
    if (instance_clone(request->core, request->name, obj_text(request->body, "name"), &request->caller, job,
                       fault) < 0) {
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
