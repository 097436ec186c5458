#include "container/seccomp_names.h"

#include "base/util.h"
#include "container/seccomp.h"

#include <seccomp.h>
#include <string.h>

#define ARCH(n)                                                                                              \
    {                                                                                                        \
        "SCMP_ARCH_" #n, SCMP_ARCH_##n, SCMP_ARCH_##n                                                        \
    }

/* libseccomp's tokens are the AUDIT_ARCH_* values, but for x32, which the kernel shows as x86-64. */
static const struct seccomp_arch archs[] = {
    ARCH(X86_64),   ARCH(X86),         ARCH(X32),    ARCH(AARCH64),   ARCH(ARM),
    ARCH(RISCV64),  ARCH(S390X),       ARCH(S390),   ARCH(PPC64LE),   ARCH(PPC64),
    ARCH(PPC),      ARCH(MIPS),        ARCH(MIPS64), ARCH(MIPS64N32), ARCH(MIPSEL),
    ARCH(MIPSEL64), ARCH(MIPSEL64N32), ARCH(PARISC), ARCH(PARISC64),
};

/* Calls since 5.1 have one number on all architectures (x32 adds its bit): those newer than libseccomp 2.5.4.
 */
static const struct {
    const char *name;
    int number;
} newer[] = {
    {"set_mempolicy_home_node", 450},
    {"cachestat", 451},
    {"fchmodat2", 452},
    {"map_shadow_stack", 453},
    {"futex_wake", 454},
    {"futex_wait", 455},
    {"futex_requeue", 456},
    {"statmount", 457},
    {"listmount", 458},
    {"lsm_get_self_attr", 459},
    {"lsm_set_self_attr", 460},
    {"lsm_list_modules", 461},
    {"mseal", 462},
    {"setxattrat", 463},
    {"getxattrat", 464},
    {"listxattrat", 465},
    {"removexattrat", 466},
    {"open_tree_attr", 467},
    {"file_getattr", 468},
    {"file_setattr", 469},
};

const struct seccomp_arch *seccomp_arch_by_name(const char *name)
{
    for (size_t i = 0; i < ARRAY_SIZE(archs); i++) {
        if (strcmp(archs[i].name, name) == 0) {
            return &archs[i];
        }
    }
    return NULL;
}

const struct seccomp_arch *seccomp_native_arch(void)
{
    uint32_t native = seccomp_arch_native();
    for (size_t i = 0; i < ARRAY_SIZE(archs); i++) {
        if (archs[i].token == native) {
            return &archs[i];
        }
    }
    return &archs[0];
}

int seccomp_number(const struct seccomp_arch *arch, const char *name)
{
    int number = seccomp_syscall_resolve_name_arch(arch->token, name);
    for (size_t i = 0; number < 0 && i < ARRAY_SIZE(newer); i++) {
        if (strcmp(name, newer[i].name) == 0) {
            number = newer[i].number | (arch->token == SCMP_ARCH_X32 ? 0x40000000 : 0);
        }
    }
    return number < 0 ? -1 : number; /* negative: libseccomp's numbers for calls that only others have */
}

const char *const *seccomp_arch_names(size_t *ret_count)
{
    static const char *names[ARRAY_SIZE(archs)];
    for (size_t i = 0; i < ARRAY_SIZE(archs); i++) {
        names[i] = archs[i].name;
    }
    *ret_count = ARRAY_SIZE(archs);
    return names;
}
