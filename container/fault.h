/*
 * Fault injection, in the test build only (fonda-oci-faults, compiled with OCI_FAULTS); otherwise nothing.
 *
 * Every step that makes something calls fault_step() first. Environment of the test build:
 *   FONDA_OCI_FAIL=n      the n-th step (from 1) of the runtime's process fails with EIO
 *   FONDA_OCI_KILL=n      before the n-th step the runtime is killed with SIGKILL
 *   FONDA_OCI_STEPS=file  the name of each step is appended to file
 *   FONDA_OCI_WITHOUT=a,b named kernel features are taken as missing (openat2, mountapi, clone3, pidfd,
 * cgroupv2) Steps of the container's first process count on from FONDA_OCI_CHILD_FAIL and
 * FONDA_OCI_CHILD_KILL instead.
 */
#ifndef FONDA_CONTAINER_FAULT_H
#define FONDA_CONTAINER_FAULT_H

#include "base/err.h"

#include <stdbool.h>

#ifdef OCI_FAULTS
int fault_step(const char *name, struct err *err);
void fault_enter_child(void);
bool fault_without(const char *feature);
#else
static inline int fault_step(const char *name, struct err *err)
{
    (void)name;
    (void)err;
    return 0;
}

static inline void fault_enter_child(void)
{
}

static inline bool fault_without(const char *feature)
{
    (void)feature;
    return false;
}
#endif

#endif
