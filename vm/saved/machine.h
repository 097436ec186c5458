/*
 * What a machine's parts save and load: vCPUs, clock, chips, devices, as sections of base/state.h. RAM is not
 * among them.
 *
 * Time. machine_freeze holds the machine's clock and its TSC, machine_thaw lets both go on from there, in
 * this process or in another one that has loaded the state: the guest's monotonic time does not see the gap.
 * Its real-time clock chip shows the world's time at once; what the guest's kernel has made of it before
 * stays behind by the gap until the guest sets its time (NTP, hwclock).
 *
 * Threads: main loop, not under mem_lock().
 */
#ifndef FONDA_VM_SAVED_MACHINE_H
#define FONDA_VM_SAVED_MACHINE_H

#include <stdint.h>

#include "base/err.h"

struct machine;
struct state;

/* Behind machine_pause and machine_pause_wait, or before the vCPUs start. Calls don't nest. */
void machine_freeze(struct machine *machine);
/* Lets time go on; the vCPUs still stand still. Errors: the engine's. */
int machine_thaw(struct machine *machine, struct err *err);

/* Saves into a writer: behind machine_freeze, with the devices settled. Or loads from a reader: the machine
 * was made, reset and frozen; machine_thaw and machine_resume_start come next. Mistakes are latched in s. */
void machine_state(struct machine *machine, struct state *s);

#endif
