/* What is made from instances: snapshots, templates, exports, backups. */
#include <string.h>

#include "base/util.h"
#include "daemon/handlers.h"

int handle_snapshot_create(struct request *request, struct fault *fault)
{
    char job[24];
    if (snapshot_create(request->core, request->name, request->body, request->caller.name, job, fault) < 0) {
        return -1;
    }
    answer_job(request, job);
    return 0;
}

int handle_snapshot_get(struct request *request, struct fault *fault)
{
    json_t *instance = NULL, *snapshot = NULL;
    uint64_t version = 0;
    if (object_get(request->core, &model_instance, request->name, &instance, NULL, fault) < 0) {
        return -1;
    }
    int rc = snapshot_get(request->core, obj_text(instance, "id"), request->item, &snapshot, &version, fault);
    json_decref(instance);
    if (rc == 0) {
        answer_object(request, 200, &model_snapshot, snapshot, version);
    }
    return rc;
}

int handle_snapshot_delete(struct request *request, struct fault *fault)
{
    char job[24];
    if (snapshot_delete(request->core, request->name, request->item, request->caller.name, job, fault) < 0) {
        return -1;
    }
    answer_job(request, job);
    return 0;
}

int handle_snapshot_restore(struct request *request, struct fault *fault)
{
    char job[24];
    if (snapshot_restore(request->core, request->name, request->item, request->body, request->caller.name,
                         job, fault) < 0) {
        return -1;
    }
    answer_job(request, job);
    return 0;
}

int handle_template_create(struct request *request, struct fault *fault)
{
    char job[24];
    if (template_create(request->core, request->body, &request->caller, job, fault) < 0) {
        return -1;
    }
    answer_job(request, job);
    return 0;
}

int handle_template_use(struct request *request, struct fault *fault)
{
    char job[24];
    if (template_use(request->core, request->name, request->body, &request->caller, job, fault) < 0) {
        return -1;
    }
    answer_job(request, job);
    return 0;
}

int handle_template_delete(struct request *request, struct fault *fault)
{
    uint64_t expected;
    if (request_expected(request, &expected, fault) < 0 ||
        template_delete(request->core, request->name, expected, &request->caller, fault) < 0) {
        return -1;
    }
    request->status = 204;
    return 0;
}

int handle_instance_export(struct request *request, struct fault *fault)
{
    char job[24];
    if (instance_export(request->core, request->name, request->body, request->caller.name, job, fault) < 0) {
        return -1;
    }
    answer_job(request, job);
    return 0;
}

int handle_instance_import(struct request *request, struct fault *fault)
{
    char job[24];
    if (instance_import(request->core, request->body, &request->caller, job, fault) < 0) {
        return -1;
    }
    answer_job(request, job);
    return 0;
}

int handle_backup_create(struct request *request, struct fault *fault)
{
    char job[24];
    if (backup_create(request->core, request->name, request->body, request->caller.name, job, fault) < 0) {
        return -1;
    }
    answer_job(request, job);
    return 0;
}

int handle_backup_delete(struct request *request, struct fault *fault)
{
    uint64_t expected;
    if (request_expected(request, &expected, fault) < 0 ||
        backup_delete(request->core, request->name, expected, request->caller.name, fault) < 0) {
        return -1;
    }
    request->status = 204;
    return 0;
}

int handle_backup_restore(struct request *request, struct fault *fault)
{
    char job[24];
    if (backup_restore(request->core, request->name, request->body, &request->caller, job, fault) < 0) {
        return -1;
    }
    answer_job(request, job);
    return 0;
}

int handle_backup_verify(struct request *request, struct fault *fault)
{
    char job[24];
    if (backup_verify(request->core, request->name, request->caller.name, job, fault) < 0) {
        return -1;
    }
    answer_job(request, job);
    return 0;
}
