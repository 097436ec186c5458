/*
 * Landlock (landlock(7)): what may be reached by path, by TCP, by abstract sockets and by signals, whatever
 * the mounts are. By system call, as C libraries have no wrappers. Rights that the header of the build's host
 * does not know are spelled here, so that a newer kernel gives what it has.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/landlock.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "base/util.h"
#include "sandbox/jail_int.h"

/* include/uapi/linux/landlock.h: in ABI 2, 3, 5; ABI 4; ABI 6. */
#define FS_V1         ((1ull << 13) - 1)
#define FS_REFER      (1ull << 13)
#define FS_TRUNCATE   (1ull << 14)
#define FS_IOCTL_DEV  (1ull << 15)
#define NET_BIND_TCP  (1ull << 0)
#define NET_CONNECT   (1ull << 1)
#define SCOPE_SOCKETS (1ull << 0)
#define SCOPE_SIGNALS (1ull << 1)

#define FS_READ       (LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_READ_DIR)
#define FS_FILE_WRITE (LANDLOCK_ACCESS_FS_WRITE_FILE | FS_TRUNCATE)

/* struct landlock_ruleset_attr as of ABI 6; a shorter one is what older kernels know. */
struct ruleset_attr {
    uint64_t handled_access_fs, handled_access_net, scoped;
};

int landlock_abi(void)
{
    long abi = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);
    return abi < 0 ? -errno : (int)abi;
}

static uint64_t fs_rights(int abi)
{
    return FS_V1 | (abi >= 2 ? FS_REFER : 0) | (abi >= 3 ? FS_TRUNCATE : 0) | (abi >= 5 ? FS_IOCTL_DEV : 0);
}

static uint64_t rights_of(enum jail_rights rights)
{
    switch (rights) {
    case JAIL_GRANT_FILE: return LANDLOCK_ACCESS_FS_READ_FILE;
    case JAIL_GRANT_SOCKETS: return LANDLOCK_ACCESS_FS_MAKE_SOCK | LANDLOCK_ACCESS_FS_REMOVE_FILE;
    case JAIL_GRANT_DIR:
        return FS_READ | FS_FILE_WRITE | LANDLOCK_ACCESS_FS_MAKE_REG | LANDLOCK_ACCESS_FS_REMOVE_FILE |
               LANDLOCK_ACCESS_FS_MAKE_SOCK;
    case JAIL_GRANT_TREE: return (FS_V1 & ~(uint64_t)LANDLOCK_ACCESS_FS_EXECUTE) | FS_REFER | FS_TRUNCATE;
    case JAIL_GRANT_TREE_READ: return FS_READ;
    }
    return 0;
}

static int add_grant(int ruleset, uint64_t handled, const struct grant *grant)
{
    struct stat st;
    if (grant->fd < 0) {
        return 0;
    }
    uint64_t rights = rights_of(grant->rights) & handled;
    if (fstat(grant->fd, &st) == 0 && !S_ISDIR(st.st_mode)) {
        rights &= LANDLOCK_ACCESS_FS_READ_FILE | FS_FILE_WRITE;
    }
    const struct landlock_path_beneath_attr attr = {.allowed_access = rights, .parent_fd = grant->fd};
    return syscall(SYS_landlock_add_rule, ruleset, LANDLOCK_RULE_PATH_BENEATH, &attr, 0) < 0 ? -errno : 0;
}

/* ABI 1 forbids every move between directories, which guests do in their shares. */
static bool too_old(const struct jail *jail, int abi)
{
    for (unsigned i = 0; i < jail->grant_count; i++) {
        if (jail->grants[i].rights == JAIL_GRANT_TREE && abi < 2) {
            return true;
        }
    }
    return false;
}

int landlock_enter(struct jail *jail)
{
    int abi = landlock_abi();
    if (abi < 0 || too_old(jail, abi)) {
        return abi < 0 ? abi : -EOPNOTSUPP;
    }
    const struct ruleset_attr attr = {
        .handled_access_fs = fs_rights(abi),
        .handled_access_net = NET_BIND_TCP | (jail->config.needs & JAIL_NEED_INTERNET ? 0 : NET_CONNECT),
        .scoped = SCOPE_SOCKETS | SCOPE_SIGNALS,
    };
    size_t size = abi >= 6 ? sizeof(attr) : abi >= 4 ? 16 : 8;
    auto_close int ruleset = (int)syscall(SYS_landlock_create_ruleset, &attr, size, 0);
    if (ruleset < 0) {
        return -errno;
    }
    for (unsigned i = 0; i < jail->grant_count; i++) {
        int rc = add_grant(ruleset, attr.handled_access_fs, &jail->grants[i]);
        if (rc < 0) {
            return rc;
        }
    }
    return syscall(SYS_landlock_restrict_self, ruleset, 0) < 0 ? -errno : 0;
}
