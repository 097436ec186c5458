/*
 * The tables of what is made from instances: snapshots, clones, templates, exports, backups, schedules. As
 * model.c, whose neighbour it is.
 */
#include <stddef.h>
#include <stdint.h>

#include "base/util.h"
#include "core/model.h"

#define TYPE(var, kind_, plural_, schema_, fields_, about_)                                                  \
    const struct object_type var = {kind_, plural_, schema_, about_, fields_, ARRAY_SIZE(fields_)}
#define NUMBER_MAX INT64_C(0x1fffffffffffff) /* what JSON's readers can count to */
#define KEEP_MAX_S (INT64_C(100) * 366 * 86400)

static const char *const copy_states[] = {"creating", "ready", "deleting", NULL};
static const char *const modes[] = {"full", "linked", NULL};

static const struct field snapshot_fields[] = {
    {"name", FIELD_NAME, F_RO | F_REQUIRED, .about = "unique among the instance's snapshots"},
    {"id", FIELD_STRING, F_RO | F_REQUIRED, 1, 32, .about = "never changes; names it inside the disks"},
    {"version", FIELD_INT, F_RO, 0, NUMBER_MAX, .about = "counts changes; the ETag"},
    {"instance_id", FIELD_STRING, F_RO | F_REQUIRED, 1, 32, .about = "of the instance"},
    {"description", FIELD_STRING, F_RO, 0, 1024, .def = "\"\"", .about = "free text"},
    {"parent", FIELD_STRING, F_RO, 1, 64,
     .about = "the snapshot that the instance was at before; absent: none"},
    {"state", FIELD_ENUM, F_RO, .values = copy_states, .def = "\"creating\"", .about = "where it is"},
    {"memory", FIELD_BOOL, F_RO, .def = "false", .about = "whether it has the machine's memory"},
    {"size", FIELD_INT, F_RO, 0, NUMBER_MAX, .def = "0",
     .about = "bytes of its memory, and of the disks as they were: what it may come to take"},
    {"owner", FIELD_STRING, F_RO, 0, 64, .def = "\"\"", .about = "the user whose quota it counts against"},
    {"schedule", FIELD_STRING, F_RO, 1, 64, .about = "the schedule that made it"},
    {"created_at", FIELD_TIME, F_RO, .about = "when it was asked for"},
    {"expires_at", FIELD_TIME, F_RO, .about = "when it is deleted"},
    {"config", FIELD_ANY, F_RO, .about = "the instance's members as they were"},
    {"changed_by", FIELD_STRING, F_RO, 0, 64, .about = "who changed it last"},
};
TYPE(model_snapshot, "snapshot", "snapshots", "Snapshot", snapshot_fields,
     "An instance's disks at one moment, and its memory if it ran.");

static const struct field snapshot_request_fields[] = {
    {"name", FIELD_NAME, 0, .about = "its name; made from the time unless said otherwise"},
    {"description", FIELD_STRING, 0, 0, 1024, .about = "free text"},
    {"memory", FIELD_BOOL, 0, .about = "with memory: true unless said otherwise, for an instance that runs"},
    {"keep", FIELD_INT, 0, 1, KEEP_MAX_S, .about = "seconds after which it is deleted"},
};
TYPE(model_snapshot_request, "snapshot request", NULL, "SnapshotRequest", snapshot_request_fields,
     "How to snapshot.");

static const struct field restore_fields[] = {
    {"start", FIELD_BOOL, 0,
     .about = "whether it runs afterwards; unless said otherwise, when the snapshot has memory or it ran"},
};
TYPE(model_restore, "restore request", NULL, "Restore", restore_fields, "How to go back.");

static const struct field clone_fields[] = {
    {"name", FIELD_NAME, F_REQUIRED, .about = "the copy's name"},
    {"mode", FIELD_ENUM, 0, .values = modes,
     .about = "full (unless said otherwise), or linked: the copy's disks have only what differs from the "
              "original's, which can't be started or deleted as long as there are such copies"},
    {"snapshot", FIELD_NAME, 0, .about = "copy this snapshot's disks; then the instance may run"},
};
TYPE(model_clone, "clone request", NULL, "Clone", clone_fields, "A copy of an instance, volumes included.");

static const struct field template_fields[] = {
    {"name", FIELD_NAME, F_REQUIRED | F_CREATE, .about = "unique among templates"},
    {"id", FIELD_STRING, F_RO | F_REQUIRED, 1, 32, .about = "never changes"},
    {"version", FIELD_INT, F_RO, 0, NUMBER_MAX, .about = "counts changes; the ETag"},
    {"description", FIELD_STRING, 0, 0, 1024, .def = "\"\"", .about = "free text"},
    {"labels", FIELD_MAP, 0, 0, 64, .def = "{}", .about = "names and texts of your own"},
    {"instance", FIELD_NAME, F_REQUIRED | F_CREATE, .about = "the stopped instance that it is copied from"},
    {"state", FIELD_ENUM, F_RO, .values = copy_states, .def = "\"creating\"", .about = "where it is"},
    {"volumes", FIELD_STRINGS, F_RO, 0, 32, .def = "[]",
     .about = "its disks: volumes that nothing writes to"},
    {"config", FIELD_ANY, F_RO, .about = "the members of what is made from it"},
    {"owner", FIELD_STRING, F_RO, 0, 64, .def = "\"\"", .about = "the user whose quota it counts against"},
    {"created_at", FIELD_TIME, F_RO, .about = "when it was created"},
    {"changed_by", FIELD_STRING, F_RO, 0, 64, .about = "who changed it last"},
};
TYPE(model_template, "template", "templates", "Template", template_fields,
     "What instances are made from: configuration and disks that don't change.");

static const struct field template_use_fields[] = {
    {"name", FIELD_NAME, F_REQUIRED, .about = "the new instance's name"},
    {"mode", FIELD_ENUM, 0, .values = modes,
     .about =
         "linked (unless said otherwise): its disks have only what differs from the template's; or full"},
};
TYPE(model_template_use, "template use", NULL, "TemplateUse", template_use_fields,
     "A new instance from a template.");

static const struct field export_fields[] = {
    {"path", FIELD_STRING, F_REQUIRED | F_HOST, 1, 4095,
     .about = "the file to make, an absolute path on the daemon's host"},
};
TYPE(model_export, "export request", NULL, "Export", export_fields, "Where to export to.");

static const struct field import_fields[] = {
    {"name", FIELD_NAME, F_REQUIRED, .about = "the new instance's name"},
    {"path", FIELD_STRING, F_REQUIRED | F_HOST, 1, 4095,
     .about = "the file that export made, an absolute path on the daemon's host"},
    {"trust", FIELD_BOOL, F_HOST,
     .about = "true: also take members that name the host's files, such as kernel and shares; else they are "
              "left out"},
};
TYPE(model_import, "import request", NULL, "Import", import_fields, "What to import.");

static const struct field backup_fields[] = {
    {"name", FIELD_NAME, F_RO | F_REQUIRED, .about = "unique among backups"},
    {"id", FIELD_STRING, F_RO | F_REQUIRED, 1, 32, .about = "never changes; its file is ID.tar"},
    {"version", FIELD_INT, F_RO, 0, NUMBER_MAX, .about = "counts changes; the ETag"},
    {"instance", FIELD_NAME, F_RO | F_REQUIRED, .about = "the instance's name when it was made"},
    {"instance_id", FIELD_STRING, F_RO | F_REQUIRED, 1, 32, .about = "of the instance"},
    {"description", FIELD_STRING, F_RO, 0, 1024, .def = "\"\"", .about = "free text"},
    {"state", FIELD_ENUM, F_RO, .values = copy_states, .def = "\"creating\"", .about = "where it is"},
    {"size", FIELD_INT, F_RO, 0, NUMBER_MAX, .def = "0", .about = "bytes of its file"},
    {"sha256", FIELD_STRING, F_RO, 64, 64, .about = "of its file"},
    {"verified_at", FIELD_TIME, F_RO,
     .about = "when it was read as a whole the last time, and was as it was written"},
    {"owner", FIELD_STRING, F_RO, 0, 64, .def = "\"\"", .about = "the user whose quota it counts against"},
    {"schedule", FIELD_STRING, F_RO, 1, 64, .about = "the schedule that made it"},
    {"created_at", FIELD_TIME, F_RO, .about = "when it was asked for"},
    {"expires_at", FIELD_TIME, F_RO, .about = "when it is deleted"},
    {"changed_by", FIELD_STRING, F_RO, 0, 64, .about = "who changed it last"},
};
TYPE(model_backup, "backup", "backups", "Backup", backup_fields,
     "An instance's disks and members in a file of their own.");

static const struct field backup_request_fields[] = {
    {"name", FIELD_NAME, 0, .about = "its name; made from the instance's and the time unless said otherwise"},
    {"description", FIELD_STRING, 0, 0, 1024, .about = "free text"},
    {"keep", FIELD_INT, 0, 1, KEEP_MAX_S, .about = "seconds after which it is deleted"},
};
TYPE(model_backup_request, "backup request", NULL, "BackupRequest", backup_request_fields, "How to back up.");

static const struct field backup_restore_fields[] = {
    {"name", FIELD_NAME, 0,
     .about =
         "a new instance of this name; unless it is given, the instance itself, which has to be stopped"},
};
TYPE(model_backup_restore, "backup restore request", NULL, "BackupRestore", backup_restore_fields,
     "What becomes of a backup.");

static const char *const schedule_actions[] = {"snapshot", "backup", NULL};
static const struct field schedule_fields[] = {
    {"name", FIELD_NAME, F_REQUIRED | F_CREATE, .about = "unique among schedules"},
    {"id", FIELD_STRING, F_RO | F_REQUIRED, 1, 32, .about = "never changes"},
    {"version", FIELD_INT, F_RO, 0, NUMBER_MAX, .about = "counts changes; the ETag"},
    {"description", FIELD_STRING, 0, 0, 1024, .def = "\"\"", .about = "free text"},
    {"instance", FIELD_NAME, F_REQUIRED | F_CREATE,
     .about = "the instance; the schedule follows its new names, and goes with it"},
    {"instance_id", FIELD_STRING, F_RO, 1, 32, .about = "of the instance"},
    {"action", FIELD_ENUM, F_CREATE, .values = schedule_actions, .def = "\"snapshot\"",
     .about = "what is made"},
    {"memory", FIELD_BOOL, 0, .def = "false", .about = "snapshots: with memory, if it runs"},
    {"every", FIELD_INT, 0, 60, KEEP_MAX_S, .about = "seconds between two; or cron"},
    {"cron", FIELD_STRING, 0, 9, 128,
     .about = "when, in the daemon's local time: minute, hour, day of the month, month, day of the week, "
              "such as \"30 3 * * 1-5\""},
    {"keep_last", FIELD_INT, 0, 1, 1000, .about = "at most so many of its own; older ones are deleted"},
    {"keep_for", FIELD_INT, 0, 60, KEEP_MAX_S,
     .about = "seconds after which its own are deleted, but the newest"},
    {"enabled", FIELD_BOOL, 0, .def = "true", .about = "false: nothing is made or deleted"},
    {"next_at", FIELD_TIME, F_RO, .about = "when the next one is made"},
    {"last_at", FIELD_TIME, F_RO, .about = "when the last one was asked for"},
    {"last_job", FIELD_STRING, F_RO, 0, 24, .about = "its job"},
    {"last_error", FIELD_STRING, F_RO, 0, 512, .about = "why the last one could not be asked for"},
    {"owner", FIELD_STRING, F_RO, 0, 64, .def = "\"\"", .about = "who made the schedule"},
    {"created_at", FIELD_TIME, F_RO, .about = "when it was created"},
    {"changed_by", FIELD_STRING, F_RO, 0, 64, .about = "who changed it last"},
};
TYPE(model_schedule, "schedule", "schedules", "Schedule", schedule_fields,
     "Snapshots or backups of an instance at certain times, and how long they are kept.");
