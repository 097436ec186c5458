#include "container/caps.h"

#include "base/log.h"
#include "base/util.h"

#include <errno.h>
#include <linux/capability.h>
#include <stdio.h>
#include <strings.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

const char *const caps_names[CAPS_COUNT] = {
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
};

int caps_number(const char *name)
{
    bool prefixed = strncasecmp(name, "CAP_", 4) == 0;
    for (int i = 0; i < CAPS_COUNT; i++) {
        if (strcasecmp(name, caps_names[i] + (prefixed ? 0 : 4)) == 0) {
            return i;
        }
    }
    return -1;
}

static uint64_t caps_get(uint64_t *ret_effective)
{
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2] = {0};
    if (syscall(SYS_capget, &head, data) < 0) {
        return 0;
    }
    *ret_effective = data[0].effective | ((uint64_t)data[1].effective << 32);
    return data[0].permitted | ((uint64_t)data[1].permitted << 32);
}

uint64_t caps_permitted(void)
{
    uint64_t effective = 0;
    return caps_get(&effective);
}

uint64_t caps_bounding(void)
{
    uint64_t set = 0;
    for (unsigned i = 0; i < 64; i++) {
        int rc = prctl(PR_CAPBSET_READ, i, 0, 0, 0);
        if (rc < 0) {
            break; /* past the last one that the kernel knows */
        }
        if (rc == 1) {
            set |= BIT64(i);
        }
    }
    return set;
}

bool caps_have(unsigned cap)
{
    uint64_t effective = 0;
    caps_get(&effective);
    return effective & BIT64(cap);
}

void caps_limit(struct caps_sets *sets)
{
    uint64_t wanted = sets->bounding | sets->effective | sets->inheritable | sets->permitted | sets->ambient;
    uint64_t can = caps_permitted();
    uint64_t lost = wanted & ~can;
    for (unsigned i = 0; i < CAPS_COUNT; i++) {
        if (lost & BIT64(i)) {
            log_warning("%s can't be granted here and is dropped", caps_names[i]);
        }
    }
    sets->bounding &= can;
    sets->permitted &= can;
    sets->effective &= sets->permitted;
    sets->inheritable &= can;
    sets->ambient &= sets->permitted & sets->inheritable;
}

int caps_drop_bounding(const struct caps_sets *sets, struct err *err)
{
    uint64_t drop = caps_bounding() & ~sets->bounding;
    for (unsigned i = 0; i < 64; i++) {
        if ((drop & BIT64(i)) && prctl(PR_CAPBSET_DROP, i, 0, 0, 0) < 0) {
            return err_sys(err, -errno, "cannot drop capability %u from the bounding set", i);
        }
    }
    return 0;
}

int caps_apply(const struct caps_sets *sets, struct err *err)
{
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2];
    for (unsigned i = 0; i < 2; i++) {
        data[i].effective = (uint32_t)(sets->effective >> (32 * i));
        data[i].permitted = (uint32_t)(sets->permitted >> (32 * i));
        data[i].inheritable = (uint32_t)(sets->inheritable >> (32 * i));
    }
    if (syscall(SYS_capset, &head, data) < 0) {
        return err_sys(err, -errno, "cannot set capabilities");
    }
    if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0 && sets->ambient) {
        return err_sys(err, -errno, "cannot clear ambient capabilities");
    }
    for (unsigned i = 0; i < CAPS_COUNT; i++) {
        if ((sets->ambient & BIT64(i)) && prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, i, 0, 0) < 0) {
            return err_sys(err, -errno, "cannot raise ambient %s", caps_names[i]);
        }
    }
    return 0;
}
