/*
 * Stopping a machine's vCPUs for a while, and letting them go on.
 *
 * Several parties may want a machine to stand still at the same time (a person, a disk without room, whoever
 * saves its state): each has a reason of its own, each reason counts, and the vCPUs run only while no reason
 * is left. Devices and timers go on; what they raise is delivered when the vCPUs run again. A guest that
 * knows the paravirtual clock is told that it stood still, so that its watchdogs don't complain.
 *
 * A stop or a reset request ends the vCPU threads of a paused machine too; after a reset it is still paused.
 */
#ifndef FONDA_VM_PAUSE_H
#define FONDA_VM_PAUSE_H

#include <stdbool.h>
#include <stddef.h>

struct machine;

enum pause_reason {
    PAUSE_USER,  /* somebody asked for it */
    PAUSE_DISK,  /* a disk's request waits for the host: no room, or an error that was to stop the machine */
    PAUSE_STATE, /* the state is being saved, loaded or sent */
    PAUSE_DEBUG, /* a debugger holds it (debug.h) */
    PAUSE_REASONS,
};

/* Asks the vCPUs to stand still, once more for this reason; returns at once. Any thread, with mem_lock() or
 * without. */
void machine_pause(struct machine *machine, enum pause_reason reason);

/* Takes back one machine_pause() of that reason; without one before it does nothing. When it was the last,
 * the vCPUs run. Any thread but a vCPU's, without mem_lock(). */
void machine_unpause(struct machine *machine, enum pause_reason reason);

/* Waits until no vCPU of a paused machine executes anything: from then on until machine_unpause their state
 * is still. Not on a vCPU's thread; without mem_lock(), which a vCPU may need to get there. 0; -ETIMEDOUT: a
 * vCPU does not come back; -EINVAL: the machine is not paused. A machine that is stopped meanwhile counts as
 * still. */
int machine_pause_wait(struct machine *machine, unsigned timeout_ms);

/* One bit, 1 << enum pause_reason, for each reason that there is. 0: the vCPUs run. Any thread. */
unsigned machine_pause_reasons(const struct machine *machine);

/* "user", "disk", "state" or "debug". */
const char *pause_reason_name(enum pause_reason reason);

#endif
