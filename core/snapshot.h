/*
 * Snapshots of instances: what a request changes at once (snapshot.c), and the jobs behind it
 * (snapshot_jobs.c).
 *
 *                 create                   (job)
 *     (nothing) ----------> creating --------------> ready --restore--> (the instance's "restoring", until it
 * is done) | failed, killed       | delete
 *                               +------> deleting <----+     (recover.c begins such jobs anew)
 *                                           | (job)
 *                                           v
 *                                       (nothing)
 *
 * Data: an internal snapshot, named by the snapshot's id, in each qcow2 disk that the machine writes to; its
 * memory in the instance's directory. While the machine's process runs, it alone touches its disks, and is
 * asked to.
 */
#ifndef FONDA_CORE_SNAPSHOT_H
#define FONDA_CORE_SNAPSHOT_H

#include "core/core_int.h"

#define SNAPSHOTS_MAX 200u /* of one instance */

/* Stores it. Locked. */
int snapshot_put(struct core *core, const json_t *row, uint64_t expected, struct fault *fault);
/* All of an instance's, oldest first; instance_id NULL: of all. Locked. */
json_t *snapshot_rows(struct core *core, const char *instance_id);
/* Errors: FAULT_STATE: it runs, and its members say already what it will be after a restart. */
int snapshot_check_fresh(const json_t *instance, struct fault *fault);
/* Forgets the row: its children get its parent. Locked, in a transaction. */
int snapshot_drop(struct core *core, const json_t *instance, const json_t *row, const char *who,
                  struct fault *fault);
/* Where its memory lies. */
void snapshot_path(const struct driver_instance *instance, const json_t *row, char *buf, size_t size);
/* Removes what disks and directory have of it. Unlocked, as the instance's job. */
int snapshot_remove_data(struct core *core, struct job *job, const struct driver_instance *instance,
                         const json_t *row, struct fault *fault);
/* For a job that reads the disks of a machine that runs: a snapshot of them, which no list shows as ready,
 * and its end. ret_row: what disk_source wants is its "id". Unlocked. */
int snapshot_hold_disks(struct core *core, struct job *job, const struct driver_instance *instance,
                        json_t **ret_row, struct fault *fault);
void snapshot_release_disks(struct core *core, struct job *job, const struct driver_instance *instance,
                            json_t *row);
/* A new row, state creating; it isn't stored. memory: with memory. */
json_t *snapshot_new_row(const json_t *instance, const json_t *how, bool memory, const char *owner);
int snapshot_link(struct core *core, const json_t *row, struct fault *fault);
/* For recover.c: deletions and restorations that the last daemon left. Locked. */
void snapshot_recover(struct core *core);

extern const struct job_type job_snapshot_create, job_snapshot_delete, job_snapshot_restore;

#endif
