/* Architectures and syscall numbers by name: libseccomp's tables, and what is newer than them. */
#ifndef FONDA_CONTAINER_SECCOMP_NAMES_H
#define FONDA_CONTAINER_SECCOMP_NAMES_H

#include <stdint.h>

#define SECCOMP_ARCHS_MAX 24

struct seccomp_arch {
    const char *name; /* SCMP_ARCH_* as config.json spells it */
    uint32_t audit;   /* AUDIT_ARCH_*, as the filter sees it */
    uint32_t token;   /* libseccomp's */
};

const struct seccomp_arch *seccomp_arch_by_name(const char *name); /* NULL: unknown */
const struct seccomp_arch *seccomp_native_arch(void);
int seccomp_number(const struct seccomp_arch *arch,
                   const char *name); /* -1: not a call of that architecture */

#endif
