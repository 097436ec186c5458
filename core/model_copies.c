/*
 * The tables of what is made from instances: snapshots, clones, templates. As model.c, whose neighbour it is.
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
