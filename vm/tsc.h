/*
 * The rate of the host's time stamp counter, which is the guest's too.
 */
#ifndef FONDA_VM_TSC_H
#define FONDA_VM_TSC_H

#include <stdint.h>

/* In Hz: what the kernel has calibrated, where it tells; else measured for about 20 ms. */
uint64_t tsc_host_hz(void);

/* The same within 100 ppm, in about 2 ms: to compare with. */
uint64_t tsc_host_hz_roughly(void);

#endif
