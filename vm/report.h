/*
 * What a person gets to read when a guest died, and the counters of --stats.
 *
 * Threads: main loop; report_guest behind machine_join, report_stats any time.
 */
#ifndef FONDA_VM_REPORT_H
#define FONDA_VM_REPORT_H

#include <stdio.h>

struct machine;

/* How it ended, and for each vCPU the registers and last exits; then the chips. */
void report_guest(FILE *out, struct machine *machine, int status);
void report_stats(FILE *out, struct machine *machine);

#endif
