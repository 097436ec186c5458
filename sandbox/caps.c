/*
 * Capabilities, no_new_privs and limits. By system call, as libcap's tables may be older than the kernel.
 */
#include <errno.h>
#include <linux/capability.h>
#include <linux/securebits.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/util.h"
#include "sandbox/jail_int.h"

#define CAPS_MAX  64u
#define FILES_MAX 16384u /* descriptors: connections of user-mode NAT, files of shared directories */

int caps_keep(uint64_t keep)
{
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2];
    if (syscall(SYS_capget, &header, data) < 0) {
        return -errno;
    }
    for (unsigned i = 0; i < 2; i++) {
        uint32_t kept = (uint32_t)(keep >> (32 * i)) & data[i].permitted;
        data[i].permitted = data[i].effective = kept;
        data[i].inheritable = 0;
    }
    return syscall(SYS_capset, &header, data) < 0 ? -errno : 0;
}

int caps_drop(uint64_t keep)
{
    (void)prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    /* Nothing is executed any more, so the bounding set is a second line; EPERM: it is closed to us, as it is
     * to any program without privileges. */
    for (unsigned cap = 0; cap < CAPS_MAX; cap++) {
        if (!(keep & BIT64(cap)) && prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) < 0 && errno == EINVAL) {
            break;
        }
    }
    int rc = caps_keep(keep);
    return rc < 0 ? rc : prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ? -errno : 0;
}

static int lower(__rlimit_resource_t resource, rlim_t max)
{
    struct rlimit limit;
    if (getrlimit(resource, &limit) < 0) {
        return -errno;
    }
    limit.rlim_max = MIN(limit.rlim_max, max);
    limit.rlim_cur = MIN(limit.rlim_cur, limit.rlim_max);
    return setrlimit(resource, &limit) < 0 ? -errno : 0;
}

int limits_set(void)
{
    static const struct {
        __rlimit_resource_t resource;
        rlim_t max;
    } limits[] = {
        {RLIMIT_CORE, 0}, /* guest memory is not for the disk */
        {RLIMIT_NOFILE, FILES_MAX},
        {RLIMIT_MSGQUEUE, 0},
        {RLIMIT_RTPRIO, 0},
    };
    for (size_t i = 0; i < ARRAY_SIZE(limits); i++) {
        int rc = lower(limits[i].resource, limits[i].max);
        if (rc < 0) {
            return rc;
        }
    }
    return 0;
}
