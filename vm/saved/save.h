/*
 * Saving a running machine into a file, snapshots with its disks, and going on from such a file.
 *
 *     host_save        pause -> settle devices, hold time -> sections -> [disks' snapshots] -> memory
 *                                                          |                            |
 *                      the engine is part of the process:  memory is frozen (mem/guard.h), a thread writes
 * it; a snapshot's machine goes on at once otherwise:                          memory is written while the
 * machine stands
 *
 * Threads: main loop.
 */
#ifndef FONDA_VM_SAVED_SAVE_H
#define FONDA_VM_SAVED_SAVE_H

#include <stdbool.h>

#include "base/err.h"

struct control_call;
struct host;
struct saved_reader;
struct vm_config;

/* Saves the machine into path (copied) as a job, which answers call; the machine ends once it is saved. */
void host_save(struct host *host, const char *path, struct control_call *call);
/* file: where the memory lies, NULL: beside the first disk. With memory off there is none, and the snapshot
 * is in no list: whoever asked for it, or named a file, remembers it. */
struct snapshot_request {
    const char *name, *file;
    bool memory;
};
/* The same together with a snapshot of each writable disk, and the machine goes on. Copies what it needs. */
void host_snapshot_save(struct host *host, const struct snapshot_request *request, struct control_call *call);
void host_snapshot_list(struct host *host, struct control_call *call);
void host_snapshot_delete(struct host *host, const struct snapshot_request *request,
                          struct control_call *call);
/* Ends the machine; the process then goes back to the snapshot (snapshot_start_again). */
void host_snapshot_load(struct host *host, const char *name, struct control_call *call);
/* The machine ends or resets: what is being saved is given up, unless it is complete. */
void host_save_cancel(struct host *host);

/* Instead of machine_start: loads the state, brings memory in as it is touched, starts the vCPUs. saved must
 * stay until host_restore_done. Errors: -EBADMSG and -EINVAL with section and field, those of the engine. */
int host_restore(struct host *host, struct saved_reader *saved, struct err *err);
/* No more memory is brought in; the machine has ended. */
void host_restore_done(struct host *host);
/* All memory is there from then on. */
void host_restore_finish(struct host *host);
/* Behind the end of everything: becomes the machine of host->again. Returns only on failure. */
int snapshot_start_again(const struct vm_config *config, const char *path, struct err *err);

#endif
