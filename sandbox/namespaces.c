/*
 * Namespaces. Who has CAP_SYS_ADMIN takes them one by one; who has not needs a user namespace first, which is
 * then the one that makes the others possible.
 *
 *                     privileged                          not privileged
 *     before the fork   pid                                user (maps its own ids), pid
 *     early, inside     user (mapped by the supervisor),   mount, ipc, uts, cgroup, net
 *                       mount, ipc, uts, cgroup, net
 *     late, inside      with a tap device: user, net       with a tap device: net
 *
 * "net" only where nothing needs the host's network. A tap device is opened with the privileges of the host's
 * user namespace, in the host's network; that is why both wait for it.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/syscall.h>

#include "base/util.h"
#include "sandbox/jail_int.h"

#define MAP_BYTES_MAX 4096

bool ns_is_privileged(void)
{
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2];
    return syscall(SYS_capget, &header, data) == 0 && (data[0].effective & BIT(CAP_SYS_ADMIN)) &&
           (data[0].effective & BIT(CAP_SETUID)) && (data[0].effective & BIT(CAP_SETGID));
}

static int take(int flag)
{
    return unshare(flag) < 0 ? -errno : 0;
}

static int write_file(const char *path, const char *text)
{
    auto_close int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0) {
        return -errno;
    }
    ssize_t n = write(fd, text, strlen(text));
    return n < 0 ? -errno : n == (ssize_t)strlen(text) ? 0 : -EIO;
}

/* Lines of "inside outside count" (user_namespaces(7)): what is inside for us becomes the same for the new
 * namespace. */
static int whole_map(const char *path, char *out, size_t size)
{
    FILE *file = fopen(path, "re");
    unsigned inside, outside, count;
    size_t used = 0;
    if (!file) {
        return -errno;
    }
    while (fscanf(file, "%u %u %u", &inside, &outside, &count) == 3 && used < size) {
        used += (size_t)snprintf(out + used, size - used, "%u %u %u\n", inside, inside, count);
    }
    fclose(file);
    return used > 0 && used < size ? 0 : -EINVAL;
}

static int write_map(pid_t pid, const char *which, bool whole, unsigned own_id)
{
    char path[64], source[64], map[MAP_BYTES_MAX];
    int rc = 0;
    snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, which);
    snprintf(source, sizeof(source), "/proc/self/%s", which);
    if (whole) {
        rc = whole_map(source, map, sizeof(map));
    } else {
        snprintf(map, sizeof(map), "%u %u 1\n", own_id, own_id);
    }
    return rc < 0 ? rc : write_file(path, map);
}

/* Who maps its own group alone has to give setgroups(2) up first (user_namespaces(7)). The ids are passed, as
 * those of an unmapped process read as nobody's. */
static int write_own_maps(uid_t uid, gid_t gid)
{
    int rc = write_file("/proc/self/setgroups", "deny");
    if (rc < 0 && rc != -ENOENT) {
        return rc;
    }
    rc = write_map(getpid(), "gid_map", false, gid);
    return rc < 0 ? rc : write_map(getpid(), "uid_map", false, uid);
}

int ns_write_maps(pid_t pid, bool whole)
{
    int rc = write_map(pid, "gid_map", whole, getegid());
    return rc < 0 ? rc : write_map(pid, "uid_map", whole, geteuid());
}

void ns_unshare_before_fork(struct jail *jail)
{
    if (!jail->privileged) {
        uid_t uid = geteuid();
        gid_t gid = getegid();
        int rc = take(CLONE_NEWUSER);
        jail->errors[JAIL_LAYER_USER] = rc < 0 ? rc : write_own_maps(uid, gid);
    }
    jail->errors[JAIL_LAYER_PID] = take(CLONE_NEWPID);
}

static void take_user_mapped(struct jail *jail)
{
    int rc = take(CLONE_NEWUSER);
    jail->errors[JAIL_LAYER_USER] = rc < 0 ? rc : split_ask_map(jail);
}

/* The host's network stays with user-mode NAT: its sockets are the host's. */
static bool wants_net(const struct jail *jail)
{
    return !(jail->config.needs & JAIL_NEED_INTERNET);
}

void ns_unshare_early(struct jail *jail)
{
    bool tap = jail->config.needs & JAIL_NEED_TAP;
    if (!tap && jail->errors[JAIL_LAYER_USER] == -EAGAIN) {
        take_user_mapped(jail);
    }
    jail->errors[JAIL_LAYER_MOUNT] = take(CLONE_NEWNS);
    if (jail->errors[JAIL_LAYER_MOUNT] == 0 && mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0) {
        jail->errors[JAIL_LAYER_MOUNT] = -errno;
    }
    int rc = take(CLONE_NEWIPC | CLONE_NEWUTS), cgroup_rc = take(CLONE_NEWCGROUP);
    jail->errors[JAIL_LAYER_IPC] = rc < 0 ? rc : cgroup_rc;
    if (wants_net(jail) && !tap) {
        jail->errors[JAIL_LAYER_NET] = take(CLONE_NEWNET);
    }
    /* Who was nobody special opens files as nobody special: of what the new user namespace gave, only
     * mounting and taking away is left. */
    if (!jail->privileged) {
        (void)caps_keep(BIT64(CAP_SYS_ADMIN) | BIT64(CAP_SETPCAP));
    }
}

void ns_unshare_late(struct jail *jail)
{
    if (!(jail->config.needs & JAIL_NEED_TAP)) {
        return;
    }
    if (wants_net(jail)) {
        jail->errors[JAIL_LAYER_NET] = take(CLONE_NEWNET);
    }
    if (jail->errors[JAIL_LAYER_USER] == -EAGAIN) {
        take_user_mapped(jail);
    }
}
