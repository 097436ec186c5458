/*
 * Snapshots of a machine with its disks: an internal snapshot in each writable qcow2 image, and the saved
 * machine beside the first of them, as IMAGE.NAME.state. The latter is what makes it one: it comes last, and
 * goes first.
 *
 * Going back takes another snapshot of each disk first, so that all of them go back or none: the first disk's
 * is the sign that it has begun and not ended, and goes last into force and first away.
 *
 * Threads: main loop; the machine stands still where disks change.
 */
#ifndef FONDA_VM_SAVED_SNAPSHOT_H
#define FONDA_VM_SAVED_SNAPSHOT_H

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"

#define SNAPSHOT_NAME_MAX 64u

struct devices;

/* Whether the disks can have a snapshot of this name. Errors: -EINVAL (a bad name), -ENOTSUP (a writable disk
 * that has no snapshots; none at all, and disks_needed). */
int snapshot_check(struct devices *devices, const char *name, bool disks_needed, struct err *err);
/* Where the saved machine lies. Errors: -EINVAL (a bad name), -ENOTSUP (no writable disk, or one that has no
 * snapshots). */
int snapshot_path(struct devices *devices, const char *name, char *buf, size_t size, struct err *err);
/* All disks, or none. Errors: those of the images. */
int snapshot_save_disks(struct devices *devices, const char *name, struct err *err);
/* Each disk that has it; goes on after errors and returns the first. err may be NULL. */
int snapshot_delete_disks(struct devices *devices, const char *name, struct err *err);
/* All disks become what the snapshot has, or stay as they are. Errors: those of the images; -EUCLEAN when
 * they are neither: the machine must not go on, and its next start (snapshot_recover_disks) puts them back.
 */
int snapshot_load_disks(struct devices *devices, const char *name, struct err *err);
/* At a machine's start: disks of a machine that ended in the middle of snapshot_load_disks are as they were
 * before. Errors: those of the images. */
int snapshot_recover_disks(struct devices *devices, struct err *err);

#endif
