/*
 * The mount of a writable layer whose owners are shifted: for containers that root starts in a user
 * namespace. The store is bound over itself with an id map, in the caller's mount namespace; overlayfs then
 * works on what it sees there, with the file system ids of the namespace's root, as nobody else could make
 * files behind that map.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/mount.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "base/util.h"
#include "image/fs.h"
#include "image/image_int.h"

static int write_map(pid_t pid, const char *file, uint32_t first, uint32_t count)
{
    char path[64], map[64];
    snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, file);
    snprintf(map, sizeof(map), "0 %u %u", first, count);
    auto_close int fd = open(path, O_WRONLY | O_CLOEXEC);
    return fd < 0 ? -errno : fs_write_all(fd, map, strlen(map));
}

/* A user namespace with the map; a child lives in it while it is opened. */
static int make_user_namespace(uint32_t first, uint32_t count)
{
    int ready[2], done[2];
    char c = 0, path[64];
    if (pipe2(ready, O_CLOEXEC) < 0) {
        return -errno;
    }
    if (pipe2(done, O_CLOEXEC) < 0) {
        int rc = -errno;
        close(ready[0]);
        close(ready[1]);
        return rc;
    }
    pid_t pid = fork();
    if (pid == 0) {
        close(done[1]);
        bool good = unshare(CLONE_NEWUSER) == 0;
        if (write(ready[1], good ? "y" : "n", 1) == 1) {
            (void)!read(done[0], &c, 1);
        }
        _exit(0);
    }
    close(ready[1]);
    close(done[0]);
    int rc = pid < 0 ? -errno : read(ready[0], &c, 1) == 1 && c == 'y' ? 0 : -EOPNOTSUPP;
    rc = rc < 0 ? rc : write_map(pid, "uid_map", first, count);
    rc = rc < 0 ? rc : write_map(pid, "gid_map", first, count);
    if (rc == 0) {
        snprintf(path, sizeof(path), "/proc/%d/ns/user", (int)pid);
        rc = open(path, O_RDONLY | O_CLOEXEC);
        rc = rc < 0 ? -errno : rc;
    }
    close(done[1]);
    close(ready[0]);
    while (pid > 0 && waitpid(pid, NULL, 0) < 0 && errno == EINTR) {
    }
    return rc;
}

static int bind_mapped(const char *path, int user_ns)
{
    auto_close int tree = (int)syscall(SYS_open_tree, AT_FDCWD, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
    struct mount_attr attr = {.attr_set = MOUNT_ATTR_IDMAP, .userns_fd = (uint64_t)user_ns};
    return tree < 0 || syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH, &attr, sizeof(attr)) < 0 ||
                   syscall(SYS_move_mount, tree, "", AT_FDCWD, path, MOVE_MOUNT_F_EMPTY_PATH) < 0
               ? -errno
               : 0;
}

/* capabilities(7) "Effect of user ID changes": another fsuid than 0 takes some out of the effective set. */
static int raise_capabilities(void)
{
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2] = {0};
    if (syscall(SYS_capget, &head, data) < 0) {
        return -errno;
    }
    data[0].effective = data[0].permitted;
    data[1].effective = data[1].permitted;
    return syscall(SYS_capset, &head, data) < 0 ? -errno : 0;
}

int image_rootfs_mount_mapped(struct image_rootfs *rootfs, uint32_t first, uint32_t count, struct err *err)
{
    const char *store = rootfs->store->path;
    auto_close int user_ns = make_user_namespace(first, count);
    if (user_ns < 0) {
        return err_sys(err, user_ns, "cannot make a user namespace");
    }
    int rc = bind_mapped(store, user_ns);
    if (rc < 0) {
        return err_set(err, -EOPNOTSUPP,
                       "cannot shift the owners of files in '%s' (%s): an id-mapped mount needs ext4, xfs, "
                       "btrfs or tmpfs",
                       store, strerror(-rc));
    }
    (void)setfsgid(first);
    (void)setfsuid(first);
    rc = raise_capabilities();
    rc = rc < 0 ? err_sys(err, rc, "cannot keep capabilities") : image_rootfs_mount(rootfs, NULL, err);
    (void)setfsuid(0);
    (void)setfsgid(0);
    int again = raise_capabilities();
    return rc < 0 || again == 0 ? rc : err_sys(err, again, "cannot keep capabilities");
}
