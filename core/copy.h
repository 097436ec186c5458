/*
 * Inside core/: copies of instances. What is copied from (an origin: an instance, one of its snapshots, a
 * template), and the volumes that a copy gets.
 */
#ifndef FONDA_CORE_COPY_H
#define FONDA_CORE_COPY_H

#include "core/core_int.h"

#define COPY_DISKS_MAX 32

struct origin {
    char name[FIELD_NAME_MAX + 1], id[32];
    json_t *config; /* members of an instance */
    json_t *disks;  /* in their order: {"path", "format", "size", "label", "volume" (absent: a file of the
                     * host's),  "snapshot" (absent: as they are)} */
};

void origin_done(struct origin *origin);
/* snapshot NULL: the disks as they are. Locked. */
int origin_of_instance(struct core *core, const char *name, const char *snapshot, struct origin *ret_origin,
                       struct fault *fault);
int origin_of_template(struct core *core, const char *name, struct origin *ret_origin, struct fault *fault);

/* Of an instance's row, whatever its state; snapshot NULL: the disks as they are, else the internal snapshot
 * of that id. Locked. */
void origin_from_spec(struct core *core, const json_t *spec, const char *snapshot_id,
                      struct origin *ret_origin);
/* Formats and sizes of disks that are files of the host's; opens them. */
int origin_look(struct origin *origin, struct fault *fault);

/* The copy's members that aren't its own, and no disks that will be copied: a new object. */
json_t *origin_config(const struct origin *origin);

/* For whom volumes are made. */
struct copy_target {
    const char *name, *id, *owner;
    const char *template_name; /* they are a template's; NULL: an instance's */
    bool linked;
};
/* Rows for the copy's volumes, within the transaction that runs, quota checked; their files are copy_run's.
 * ret_names: for "volumes"; ret_work: for the job. Locked. */
int copy_volumes(struct core *core, const struct origin *origin, const struct copy_target *target,
                 json_t **ret_names, json_t **ret_work, struct fault *fault);
/* Makes the files: a job's part; unlocked. */
int copy_run(struct core *core, struct job *job, const json_t *work, struct fault *fault);
/* Removes the volumes that were made for an instance or template: rows and files. Locked. */
void copy_forget_volumes(struct core *core, const char *made_for);

/* Progress of disk_copy and the like: opaque is the job. */
bool copy_progress(void *opaque, uint64_t done, uint64_t total);

#endif
