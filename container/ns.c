#include "container/ns.h"

#include "base/util.h"
#include "container/caps.h"
#include "container/fault.h"
#include "container/paths.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/magic.h>
#include <linux/sched.h>
#include <net/if.h>
#include <pwd.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <sys/wait.h>

#ifndef NS_GET_NSTYPE
#define NS_GET_NSTYPE _IO(0xb7, 0x3)
#endif

const int ns_flags[NS_KINDS] = {CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET,    CLONE_NEWNS,
                                CLONE_NEWIPC,  CLONE_NEWUTS, CLONE_NEWCGROUP, CLONE_NEWTIME};
const char *const ns_files[NS_KINDS] = {"user", "pid", "net", "mnt", "ipc", "uts", "cgroup", "time"};

uint64_t ns_clone_flags(const struct oci_linux *lnx)
{
    uint64_t flags = 0;
    for (int kind = 0; kind < NS_KINDS; kind++) {
        if (lnx->ns[kind].wanted && !lnx->ns[kind].path && kind != NS_CGROUP && kind != NS_TIME) {
            flags |= (unsigned)ns_flags[kind];
        }
    }
    return flags;
}

static bool same_as_own(int fd, int kind)
{
    char path[64];
    struct stat a;
    struct stat b;
    snprintf(path, sizeof(path), "/proc/self/ns/%s", ns_files[kind]);
    return fstat(fd, &a) == 0 && stat(path, &b) == 0 && a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

int ns_open(const struct oci_linux *lnx, int ret_fds[NS_KINDS], struct err *err)
{
    for (int kind = 0; kind < NS_KINDS; kind++) {
        ret_fds[kind] = -1;
    }
    for (int kind = 0; kind < NS_KINDS; kind++) {
        const char *path = lnx->ns[kind].path;
        if (!path) {
            continue;
        }
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0) {
            return err_sys(err, -errno, "cannot open the %s namespace '%s'", ns_type_names[kind], path);
        }
        if (ioctl(fd, NS_GET_NSTYPE) != ns_flags[kind]) {
            close(fd);
            return err_set(err, -EINVAL, "'%s' is not a %s namespace", path, ns_type_names[kind]);
        }
        if (same_as_own(fd, kind)) {
            close(fd);
            continue;
        }
        ret_fds[kind] = fd;
    }
    return 0;
}

int ns_join(const int fds[NS_KINDS], bool with_user, bool with_pid, struct err *err)
{
    /* The user namespace first, for the rights over the others; the mount namespace last, as it takes /proc
     * away. */
    static const int order[] = {NS_USER, NS_PID, NS_NETWORK, NS_IPC, NS_UTS, NS_CGROUP, NS_TIME, NS_MOUNT};
    for (size_t i = 0; i < ARRAY_SIZE(order); i++) {
        int kind = order[i];
        if (fds[kind] < 0 || (kind == NS_USER && !with_user) || (kind == NS_PID && !with_pid)) {
            continue;
        }
        if (setns(fds[kind], ns_flags[kind]) < 0) {
            return err_sys(err, -errno, "cannot join the %s namespace", ns_type_names[kind]);
        }
    }
    return 0;
}

pid_t ns_clone(uint64_t flags, int cgroup_fd)
{
    struct clone_args args = {
        .flags = flags | (cgroup_fd >= 0 ? CLONE_INTO_CGROUP : 0),
        .exit_signal = flags & CLONE_PARENT ? 0 : SIGCHLD,
        .cgroup = cgroup_fd >= 0 ? (uint64_t)cgroup_fd : 0,
    };
    long pid = fault_without("clone3") ? -1 : syscall(SYS_clone3, &args, sizeof(args));
    if (pid >= 0) {
        return (pid_t)pid;
    }
    if (!fault_without("clone3") && errno != ENOSYS && errno != E2BIG) {
        return -errno;
    }
    if (cgroup_fd >= 0) {
        return -ENOSYS;
    }
    pid = syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0);
    return pid < 0 ? -errno : (pid_t)pid;
}

static void format_maps(const struct oci_idmaps *maps, char *text, size_t room)
{
    size_t used = 0;
    text[0] = '\0';
    for (size_t i = 0; i < maps->count && used < room; i++) {
        used += (size_t)snprintf(text + used, room - used, "%u %u %u\n", maps->v[i].inside,
                                 maps->v[i].outside, maps->v[i].size);
    }
}

static int write_map(pid_t pid, const char *file, const struct oci_idmaps *maps)
{
    char text[CONFIG_IDMAPS_MAX * 34 + 1];
    char path[64];
    format_maps(maps, text, sizeof(text));
    snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, file);
    return write_file_at(AT_FDCWD, path, text);
}

/* What to do when newuidmap refuses: the line of subuid(5) that is missing or too short. */
static int subid_error(bool gid, const struct oci_idmaps *maps, struct err *err)
{
    const char *file = gid ? "/etc/subgid" : "/etc/subuid";
    uint64_t total = 0;
    uint32_t first = 0;
    for (size_t i = 0; i < maps->count; i++) {
        if (maps->v[i].outside != (gid ? getegid() : geteuid())) {
            total += maps->v[i].size;
            first = first ? first : maps->v[i].outside;
        }
    }
    char name[64];
    char uid_text[16];
    snprintf(uid_text, sizeof(uid_text), "%u", (unsigned)getuid());
    snprintf(name, sizeof(name), "%s", uid_text);
    FILE *passwd = fopen("/etc/passwd", "re");
    char line[512];
    while (passwd && fgets(line, sizeof(line), passwd)) {
        char *save = NULL;
        char *user = strtok_r(line, ":", &save);
        strtok_r(NULL, ":", &save);
        char *id = strtok_r(NULL, ":", &save);
        if (user && id && strcmp(id, uid_text) == 0) {
            snprintf(name, sizeof(name), "%s", user);
            break;
        }
    }
    if (passwd) {
        fclose(passwd);
    }
    return err_set(err, -EPERM,
                   "user '%s' may not map the %llu ids from %u on: %s grants too few or others; add the line "
                   "'%s:%u:%llu' to it",
                   name, (unsigned long long)total, first, file, name, first,
                   (unsigned long long)MAX(total, 65536));
}

static int run_newidmap(pid_t pid, bool gid, const struct oci_idmaps *maps, struct err *err)
{
    const char *tool = gid ? "newgidmap" : "newuidmap";
    size_t words = 2 + maps->count * 3 + 1;
    char(*numbers)[12] = calloc(words, sizeof(*numbers));
    char **argv = calloc(words, sizeof(*argv));
    if (!numbers || !argv) {
        free(numbers);
        free(argv);
        return err_sys(err, -ENOMEM, "cannot start %s", tool);
    }
    argv[0] = (char *)tool;
    snprintf(numbers[1], sizeof(*numbers), "%d", (int)pid);
    for (size_t i = 0; i < maps->count; i++) {
        snprintf(numbers[2 + 3 * i], sizeof(*numbers), "%u", maps->v[i].inside);
        snprintf(numbers[3 + 3 * i], sizeof(*numbers), "%u", maps->v[i].outside);
        snprintf(numbers[4 + 3 * i], sizeof(*numbers), "%u", maps->v[i].size);
    }
    for (size_t i = 1; i + 1 < words; i++) {
        argv[i] = numbers[i];
    }
    int status = -1;
    pid_t child = fork();
    if (child == 0) {
        int null = open("/dev/null", O_RDWR | O_CLOEXEC);
        dup2(null, 2);
        execvp(tool, argv);
        _exit(errno == ENOENT ? 127 : 126);
    }
    while (child > 0 && waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    free(numbers);
    free(argv);
    if (child > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0) {
        return 0;
    }
    if (child > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 127) {
        return err_set(err, -ENOENT,
                       "%s is not installed: a user without privileges needs it to map more than the own id "
                       "(Debian package 'uidmap')",
                       tool);
    }
    return subid_error(gid, maps, err);
}

static bool is_own_id(const struct oci_idmaps *maps, uint32_t own)
{
    return maps->count == 1 && maps->v[0].size == 1 && maps->v[0].outside == own;
}

int ns_write_maps(pid_t pid, const struct oci_idmaps *uids, const struct oci_idmaps *gids, struct err *err)
{
    int rc;
    bool privileged = caps_have(CAP_SETUID) && caps_have(CAP_SETGID);
    if (!privileged && is_own_id(gids, getegid())) {
        char path[64];
        snprintf(path, sizeof(path), "/proc/%d/setgroups", (int)pid);
        rc = write_file_at(AT_FDCWD, path, "deny"); /* user_namespaces(7): asked for before such a gid_map */
        if (rc < 0 && rc != -ENOENT) {
            return err_sys(err, rc, "cannot write '%s'", path);
        }
    }
    if (privileged || is_own_id(gids, getegid())) {
        rc = write_map(pid, "gid_map", gids);
        if (rc < 0) {
            return err_sys(err, rc, "cannot write the gid map of the user namespace");
        }
    } else if ((rc = run_newidmap(pid, true, gids, err)) < 0) {
        return rc;
    }
    if (privileged || is_own_id(uids, geteuid())) {
        rc = write_map(pid, "uid_map", uids);
        return rc < 0 ? err_sys(err, rc, "cannot write the uid map of the user namespace") : 0;
    }
    return run_newidmap(pid, false, uids, err);
}

int ns_user_fd(const struct oci_idmaps *uids, const struct oci_idmaps *gids, struct err *err)
{
    pid_t pid = ns_clone(CLONE_NEWUSER, -1);
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        pause();
        _exit(0);
    }
    if (pid < 0) {
        return err_sys(err, pid, "cannot make a user namespace for an id-mapped mount");
    }
    int rc = ns_write_maps(pid, uids, gids, err);
    if (rc == 0) {
        char path[64];
        snprintf(path, sizeof(path), "/proc/%d/ns/user", (int)pid);
        rc = open(path, O_RDONLY | O_CLOEXEC);
        if (rc < 0) {
            rc = err_sys(err, -errno, "cannot open '%s'", path);
        }
    }
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    return rc;
}

int ns_time(const struct oci_linux *lnx, struct err *err)
{
    static const char *const clocks[] = {"monotonic", "boottime"};
    /* proc(5): files of a process that is not dumpable belong to the first user namespace's root. It may be
     * for a moment, as nobody else is in a new pid namespace who could look. */
    bool open_up = lnx->ns[NS_USER].wanted && lnx->ns[NS_PID].wanted && !lnx->ns[NS_PID].path;
    if (unshare(CLONE_NEWTIME) < 0) {
        return err_sys(err, -errno, "cannot make a time namespace");
    }
    prctl(PR_SET_DUMPABLE, open_up, 0, 0, 0);
    for (size_t i = 0; i < ARRAY_SIZE(clocks); i++) {
        char line[96];
        if (!lnx->has_time_offset[i]) {
            continue;
        }
        snprintf(line, sizeof(line), "%s %lld %u\n", clocks[i], (long long)lnx->time_offset_s[i],
                 lnx->time_offset_ns[i]);
        int rc = write_file_at(AT_FDCWD, "/proc/self/timens_offsets", line);
        if (rc < 0) {
            return err_sys(err, rc, "cannot set the %s clock's offset", clocks[i]);
        }
    }
    prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
    auto_close int fd = open("/proc/self/ns/time_for_children", O_RDONLY | O_CLOEXEC);
    if (fd < 0 || setns(fd, CLONE_NEWTIME) < 0) {
        return err_sys(err, -errno, "cannot enter the time namespace");
    }
    return 0;
}

int ns_loopback_up(struct err *err)
{
    auto_close int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct ifreq req = {.ifr_name = "lo"};
    if (fd < 0) {
        return errno == EAFNOSUPPORT ? 0 : err_sys(err, -errno, "cannot bring up the loopback device");
    }
    if (ioctl(fd, SIOCGIFFLAGS, &req) < 0) {
        return err_sys(err, -errno, "cannot bring up the loopback device");
    }
    req.ifr_flags = (short)(req.ifr_flags | IFF_UP);
    if (ioctl(fd, SIOCSIFFLAGS, &req) < 0) {
        return err_sys(err, -errno, "cannot bring up the loopback device");
    }
    return 0;
}

bool ns_is_own_user(const char *path)
{
    auto_close int fd = open(path, O_RDONLY | O_CLOEXEC);
    return fd >= 0 && same_as_own(fd, NS_USER);
}

bool ns_in_initial_user(void)
{
    struct stat st;
    /* PROC_USER_INIT_INO of the kernel's include/linux/proc_ns.h, fixed since Linux 3.8 */
    return stat("/proc/self/ns/user", &st) < 0 || st.st_ino == 0xEFFFFFFDu;
}

bool ns_maps_have(const struct oci_idmaps *maps, uint32_t inside)
{
    for (size_t i = 0; i < maps->count; i++) {
        if (inside >= maps->v[i].inside && inside - maps->v[i].inside < maps->v[i].size) {
            return true;
        }
    }
    return false;
}
