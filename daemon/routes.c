/* The API. */
#include "base/util.h"
#include "daemon/handlers.h"
#include "daemon/route.h"

#define INSTANCE "/v1/instances/{name}"

/* The five routes that most kinds share. */
#define CRUD(plural, type_, read_role, write_role, One, Many)                                                \
    {"GET",  "/v1/" plural, read_role,   ROUTE_LIST,         &type_, NULL, 0,                                \
     &type_, handle_list,   "list" Many, "Lists " plural "."},                                               \
        {"POST",       "/v1/" plural, write_role,    ROUTE_CREATED, &type_,        &type_,                   \
         FIELD_CREATE, &type_,        handle_create, "create" One,  "Creates one."},                         \
        {"GET",       "/v1/" plural "/{name}", read_role, 0, &type_, NULL, 0, &type_, handle_get, "get" One, \
         "Shows one."},                                                                                      \
        {"PATCH",                                                                                            \
         "/v1/" plural "/{name}",                                                                            \
         write_role,                                                                                         \
         ROUTE_IF_MATCH,                                                                                     \
         &type_,                                                                                             \
         &type_,                                                                                             \
         FIELD_CHANGE,                                                                                       \
         &type_,                                                                                             \
         handle_change,                                                                                      \
         "change" One,                                                                                       \
         "Changes the members that are sent (RFC 7396)."},                                                   \
    {                                                                                                        \
        "DELETE", "/v1/" plural "/{name}", write_role, ROUTE_IF_MATCH | ROUTE_EMPTY, &type_, NULL, 0, NULL,  \
            handle_delete, "delete" One, "Deletes one that nothing uses."                                    \
    }

const struct route routes[] = {
    {"GET", "/openapi.json", ROLE_NONE, ROUTE_OPEN | ROUTE_TEXT, NULL, NULL, 0, NULL, handle_openapi,
     "openapi", "This description."},
    {"GET", "/metrics", ROLE_VIEWER, ROUTE_TEXT, NULL, NULL, 0, NULL, handle_metrics, "metrics",
     "Counters in Prometheus' text format."},
    {"GET", "/v1/host", ROLE_VIEWER, 0, NULL, NULL, 0, &model_host, handle_host, "host",
     "The daemon and its host."},
    {"GET", "/v1/whoami", ROLE_NONE, 0, NULL, NULL, 0, &model_whoami, handle_whoami, "whoami",
     "Who the daemon takes the caller for."},

    {"POST", "/v1/web", ROLE_NONE, ROUTE_CREATED, NULL, NULL, 0, &model_web, handle_web, "webLink",
     "Makes a one-time link to the web page, and serves it on this host."},
    {"POST", "/v1/session", ROLE_NONE, ROUTE_CREATED | ROUTE_OPEN, NULL, &model_signin, FIELD_CREATE,
     &model_token, handle_session, "signIn", "Makes a one-time code a token that lasts 12 hours."},
    {"DELETE", "/v1/session", ROLE_NONE, ROUTE_EMPTY, NULL, NULL, 0, NULL, handle_session_end, "signOut",
     "The token of a one-time code is void from now on."},

    {"GET", "/v1/instances", ROLE_VIEWER, ROUTE_LIST, &model_instance, NULL, 0, &model_instance, handle_list,
     "listInstances", "Lists the instances that the caller may see."},
    {"POST", "/v1/instances", ROLE_OPERATOR, ROUTE_JOB, &model_instance, &model_instance, FIELD_CREATE,
     &model_job, handle_instance_create, "createInstance", "Creates an instance, stopped."},
    {"GET", INSTANCE, ROLE_VIEWER, ROUTE_GRANTS, &model_instance, NULL, 0, &model_instance, handle_get,
     "getInstance", "Shows one."},
    {"PATCH", INSTANCE, ROLE_OPERATOR, ROUTE_GRANTS | ROUTE_IF_MATCH, &model_instance, &model_instance,
     FIELD_CHANGE, &model_instance, handle_change, "changeInstance",
     "Changes the members that are sent (RFC 7396); some take effect after a restart."},
    {"DELETE", INSTANCE, ROLE_OPERATOR, ROUTE_GRANTS | ROUTE_JOB | ROUTE_IF_MATCH, &model_instance, NULL, 0,
     &model_job, handle_instance_delete, "deleteInstance",
     "Deletes one that is stopped. Its volumes stay, unless volumes=1."},
    {"POST", INSTANCE "/start", ROLE_OPERATOR, ROUTE_GRANTS | ROUTE_JOB | ROUTE_OPTIONAL, &model_instance,
     &model_start, FIELD_CREATE, &model_job, handle_instance_start, "startInstance", "Starts it."},
    {"POST", INSTANCE "/stop", ROLE_OPERATOR, ROUTE_GRANTS | ROUTE_JOB | ROUTE_OPTIONAL, &model_instance,
     &model_stop, FIELD_CREATE, &model_job, handle_instance_stop, "stopInstance",
     "Asks the guest to end, and ends it by force after a time."},
    {"POST", INSTANCE "/restart", ROLE_OPERATOR, ROUTE_GRANTS | ROUTE_JOB | ROUTE_OPTIONAL, &model_instance,
     &model_stop, FIELD_CREATE, &model_job, handle_instance_restart, "restartInstance",
     "Stops it and starts it."},
    {"POST", INSTANCE "/pause", ROLE_OPERATOR, ROUTE_GRANTS | ROUTE_JOB, &model_instance, NULL, 0, &model_job,
     handle_instance_pause, "pauseInstance", "Stands it still."},
    {"POST", INSTANCE "/resume", ROLE_OPERATOR, ROUTE_GRANTS | ROUTE_JOB, &model_instance, NULL, 0,
     &model_job, handle_instance_resume, "resumeInstance", "Lets it go on."},
    {"POST", INSTANCE "/clone", ROLE_OPERATOR, ROUTE_JOB, &model_instance, &model_clone, FIELD_CREATE,
     &model_job, handle_instance_clone, "cloneInstance",
     "Copies a stopped instance and its disks; or, from a snapshot, also one that runs."},
    {"POST", INSTANCE "/save", ROLE_OPERATOR, ROUTE_GRANTS | ROUTE_JOB, &model_instance, NULL, 0, &model_job,
     handle_instance_save, "saveInstance",
     "Keeps a machine's memory in a file and ends it; starting goes on there."},
    {"POST", INSTANCE "/rename", ROLE_OPERATOR, ROUTE_IF_MATCH, &model_instance, &model_rename, FIELD_CREATE,
     &model_instance, handle_instance_rename, "renameInstance", "Gives a stopped instance another name."},
    {"GET", INSTANCE "/stats", ROLE_VIEWER, ROUTE_GRANTS | ROUTE_ASIDE, &model_instance, NULL, 0,
     &model_stats, handle_instance_stats, "instanceStats", "What it uses now."},
    {"GET", INSTANCE "/stats/stream", ROLE_VIEWER, ROUTE_GRANTS | ROUTE_WS, &model_instance, NULL, 0, NULL,
     NULL, "streamStats", "{time_ms, stats} each second, one per text message."},
    {"GET", INSTANCE "/history", ROLE_VIEWER, ROUTE_GRANTS, &model_instance, NULL, 0, &model_history,
     handle_instance_history, "instanceHistory", "What it used over time (?span=hour, day or month)."},
    {"GET", INSTANCE "/log", ROLE_VIEWER, ROUTE_GRANTS | ROUTE_TEXT, &model_instance, NULL, 0, NULL,
     handle_instance_log, "instanceLog", "The end of what its console has shown (at most ?bytes=)."},
    {"GET", INSTANCE "/console", ROLE_OPERATOR, ROUTE_GRANTS | ROUTE_WS, &model_instance, NULL, 0, NULL, NULL,
     "instanceConsole", "Its serial console: binary messages are bytes, both ways."},

    {"GET", INSTANCE "/stream", ROLE_OPERATOR, ROUTE_GRANTS | ROUTE_WS, &model_instance, NULL, 0, NULL, NULL,
     "instanceStream",
     "A container's input and output, a program in it, its log, files as tar: the first message says "
     "which; see docs/api.md."},
    {"POST", INSTANCE "/kill", ROLE_OPERATOR, ROUTE_GRANTS | ROUTE_ASIDE | ROUTE_OPTIONAL | ROUTE_EMPTY,
     &model_instance, &model_kill, FIELD_CREATE, NULL, handle_instance_kill, "killInstance",
     "Sends a signal to a container's first process."},
    {"GET", INSTANCE "/wait", ROLE_VIEWER, ROUTE_GRANTS | ROUTE_ASIDE, &model_instance, NULL, 0, &model_wait,
     handle_instance_wait, "waitInstance", "Answers when it has ended, or after ?seconds= (30)."},
    {"GET", INSTANCE "/top", ROLE_VIEWER, ROUTE_GRANTS | ROUTE_ASIDE, &model_instance, NULL, 0, &model_top,
     handle_instance_top, "instanceProcesses", "What runs inside of a container."},

    {"GET", INSTANCE "/snapshots", ROLE_VIEWER, ROUTE_GRANTS | ROUTE_LIST, &model_snapshot, NULL, 0,
     &model_snapshot, handle_list, "listSnapshots", "Lists an instance's snapshots; each names its parent."},
    {"POST", INSTANCE "/snapshots", ROLE_OPERATOR, ROUTE_GRANTS | ROUTE_JOB | ROUTE_OPTIONAL, &model_instance,
     &model_snapshot_request, FIELD_CREATE, &model_job, handle_snapshot_create, "createSnapshot",
     "Keeps its disks, and its memory if it runs; it goes on."},
    {"GET", INSTANCE "/snapshots/{item}", ROLE_VIEWER, ROUTE_GRANTS, &model_snapshot, NULL, 0,
     &model_snapshot, handle_snapshot_get, "getSnapshot", "Shows one."},
    {"DELETE", INSTANCE "/snapshots/{item}", ROLE_OPERATOR, ROUTE_GRANTS | ROUTE_JOB, &model_snapshot, NULL,
     0, &model_job, handle_snapshot_delete, "deleteSnapshot", "Deletes one; the instance stays as it is."},
    {"POST", INSTANCE "/snapshots/{item}/restore", ROLE_OPERATOR, ROUTE_GRANTS | ROUTE_JOB | ROUTE_OPTIONAL,
     &model_instance, &model_restore, FIELD_CREATE, &model_job, handle_snapshot_restore, "restoreSnapshot",
     "Puts the instance back; what it was since then is lost."},

    {"GET", "/v1/templates", ROLE_VIEWER, ROUTE_LIST, &model_template, NULL, 0, &model_template, handle_list,
     "listTemplates", "Lists templates."},
    {"POST", "/v1/templates", ROLE_OPERATOR, ROUTE_JOB, &model_template, &model_template, FIELD_CREATE,
     &model_job, handle_template_create, "createTemplate", "Makes one from a stopped instance."},
    {"GET", "/v1/templates/{name}", ROLE_VIEWER, 0, &model_template, NULL, 0, &model_template, handle_get,
     "getTemplate", "Shows one."},
    {"PATCH", "/v1/templates/{name}", ROLE_OPERATOR, ROUTE_IF_MATCH, &model_template, &model_template,
     FIELD_CHANGE, &model_template, handle_change, "changeTemplate",
     "Changes the members that are sent (RFC 7396)."},
    {"DELETE", "/v1/templates/{name}", ROLE_OPERATOR, ROUTE_IF_MATCH | ROUTE_EMPTY, &model_template, NULL, 0,
     NULL, handle_template_delete, "deleteTemplate", "Deletes one without linked copies."},
    {"POST", "/v1/templates/{name}/use", ROLE_OPERATOR, ROUTE_JOB, &model_template, &model_template_use,
     FIELD_CREATE, &model_job, handle_template_use, "useTemplate", "Makes an instance from it, stopped."},

    {"POST", INSTANCE "/export", ROLE_OPERATOR, ROUTE_GRANTS | ROUTE_JOB, &model_instance, &model_export,
     FIELD_CREATE, &model_job, handle_instance_export, "exportInstance",
     "Writes a machine's disks and members into one file."},
    {"POST", "/v1/import", ROLE_OPERATOR, ROUTE_JOB, &model_instance, &model_import, FIELD_CREATE, &model_job,
     handle_instance_import, "importInstance",
     "Makes an instance from such a file, stopped, when all of it was verified."},

    {"POST", INSTANCE "/backups", ROLE_OPERATOR, ROUTE_GRANTS | ROUTE_JOB | ROUTE_OPTIONAL, &model_instance,
     &model_backup_request, FIELD_CREATE, &model_job, handle_backup_create, "createBackup",
     "Backs a machine up; it goes on."},
    {"GET", "/v1/backups", ROLE_VIEWER, ROUTE_LIST, &model_backup, NULL, 0, &model_backup, handle_list,
     "listBackups", "Lists backups."},
    {"GET", "/v1/backups/{name}", ROLE_VIEWER, 0, &model_backup, NULL, 0, &model_backup, handle_get,
     "getBackup", "Shows one."},
    {"DELETE", "/v1/backups/{name}", ROLE_OPERATOR, ROUTE_IF_MATCH | ROUTE_EMPTY, &model_backup, NULL, 0,
     NULL, handle_backup_delete, "deleteBackup", "Deletes one, and its file."},
    {"POST", "/v1/backups/{name}/restore", ROLE_OPERATOR, ROUTE_JOB | ROUTE_OPTIONAL, &model_backup,
     &model_backup_restore, FIELD_CREATE, &model_job, handle_backup_restore, "restoreBackup",
     "Puts the stopped instance back, or makes a new one."},
    {"POST", "/v1/backups/{name}/verify", ROLE_OPERATOR, ROUTE_JOB, &model_backup, NULL, 0, &model_job,
     handle_backup_verify, "verifyBackup", "Reads all of its file and compares the checksums."},

    CRUD("schedules", model_schedule, ROLE_VIEWER, ROLE_OPERATOR, "Schedule", "Schedules"),
    CRUD("images", model_image, ROLE_VIEWER, ROLE_ADMIN, "Image", "Images"),
    CRUD("volumes", model_volume, ROLE_VIEWER, ROLE_OPERATOR, "Volume", "Volumes"),
    CRUD("networks", model_network, ROLE_VIEWER, ROLE_ADMIN, "Network", "Networks"),
    CRUD("users", model_user, ROLE_ADMIN, ROLE_ADMIN, "User", "Users"),
    {"POST", "/v1/users/{name}/token", ROLE_ADMIN, ROUTE_CREATED, &model_user, NULL, 0, &model_token,
     handle_token, "createToken", "Makes a new token; the old one is void."},

    {"GET", "/v1/jobs", ROLE_VIEWER, ROUTE_LIST, &model_job, NULL, 0, &model_job, handle_list, "listJobs",
     "Lists jobs: open ones, and the newest of those that ended."},
    {"GET", "/v1/jobs/{name}", ROLE_NONE, ROUTE_JOB, &model_job, NULL, 0, &model_job, handle_job, "getJob",
     "Shows one; with ?wait=SECONDS when it has ended."},
    {"POST", "/v1/jobs/{name}/cancel", ROLE_NONE, ROUTE_JOB, &model_job, NULL, 0, &model_job,
     handle_job_cancel, "cancelJob", "Asks it to end early, and to undo what it did."},

    {"GET", "/v1/events", ROLE_VIEWER, ROUTE_AFTER, &model_event, NULL, 0, &model_event, handle_events,
     "listEvents", "Events behind number ?after=."},
    {"GET", "/v1/events/stream", ROLE_VIEWER, ROUTE_WS, &model_event, NULL, 0, NULL, NULL, "streamEvents",
     "Events as they happen, one per text message; ?after= starts behind a number, else with the next one; "
     "with "
     "?jobs=1, {\"type\": \"job.progress\", \"data\": job} of open jobs comes between them, without numbers. "
     "A "
     "listener that is too slow gets {\"type\": \"overflow\"} and is cut."},
    {"GET", "/v1/audit", ROLE_ADMIN, ROUTE_AFTER, &model_audit, NULL, 0, &model_audit, handle_audit,
     "listAudit", "Who changed what, behind number ?after=."},
};

const unsigned route_count = ARRAY_SIZE(routes);
