/*
 * Instances as files: exports, imports and backups. Requests are in backup.c, their jobs in backup_jobs.c.
 *
 *     instance --export--> a file of the host's --import--> instance
 *     instance --backup--> ID.tar in the backup directory --restore--> instance, new or the same
 *
 * Invariants
 *   1. A file gets its name when it is complete and on the disk.
 *   2. What is imported lies in the new instance's directory until all of it was verified; then one
 * transaction makes volumes of it. Restored in place, the old disks go when the new ones have taken their
 * names.
 *   3. A machine that runs is read from a snapshot of its disks, which goes afterwards.
 */
#ifndef FONDA_CORE_BACKUP_H
#define FONDA_CORE_BACKUP_H

#include "core/core_int.h"

const char *backup_dir(const struct core *core);
void backup_path(const struct core *core, const json_t *backup, char *buf, size_t size);
/* Row and file. Locked. */
int backup_drop(struct core *core, const json_t *backup, const char *who, struct fault *fault);
/* For recover.c: removes what was half made. Locked. */
void backup_recover(struct core *core, const json_t *instances);

extern const struct job_type job_instance_export, job_instance_import, job_backup_create, job_backup_restore,
    job_backup_verify;

#endif
