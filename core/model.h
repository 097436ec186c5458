/*
 * The kinds of objects: tables of members (core/field.h). Where each is stored, and what is done with them,
 * is in core.h.
 */
#ifndef FONDA_CORE_MODEL_H
#define FONDA_CORE_MODEL_H

#include "core/field.h"

extern const struct object_type model_instance, model_image, model_volume, model_network, model_user,
    model_job, model_event, model_audit, model_snapshot, model_template, model_backup, model_schedule;
/* Parts of requests and answers. */
extern const struct object_type model_error, model_stop, model_rename, model_token, model_stats, model_host,
    model_problem, model_clone, model_whoami, model_start, model_kill, model_wait, model_top, model_history,
    model_web, model_signin, model_snapshot_request, model_restore, model_template_use, model_export,
    model_import, model_backup_request, model_backup_restore;

/* All of them; ends with NULL. */
extern const struct object_type *const model_types[];

#endif
