/* The handlers that routes.c names: objects in handlers.c, instances in handlers_instance.c, what is made
 * from them in handlers_copies.c, the rest in handlers_misc.c. Each answers, or returns -1 with *fault set.
 */
#ifndef FONDA_DAEMON_HANDLERS_H
#define FONDA_DAEMON_HANDLERS_H

#include "daemon/route.h"

route_fn handle_list, handle_create, handle_get, handle_change, handle_delete;
route_fn handle_instance_create, handle_instance_delete, handle_instance_start, handle_instance_stop,
    handle_instance_restart, handle_instance_pause, handle_instance_resume, handle_instance_clone,
    handle_instance_kill, handle_instance_wait, handle_instance_top, handle_instance_rename,
    handle_instance_stats, handle_instance_history, handle_instance_log;
route_fn handle_instance_save, handle_snapshot_create, handle_snapshot_get, handle_snapshot_delete,
    handle_snapshot_restore, handle_template_create, handle_template_use, handle_template_delete,
    handle_instance_export, handle_instance_import, handle_backup_create, handle_backup_delete,
    handle_backup_restore, handle_backup_verify;
route_fn handle_openapi, handle_metrics, handle_host, handle_whoami, handle_token, handle_job,
    handle_job_cancel, handle_events, handle_audit, handle_web, handle_session, handle_session_end;

#endif
