/* Devices, their symlinks, and the paths that are hidden or made read-only: config-linux.md. */
#include "base/log.h"
#include "base/util.h"
#include "container/container.h"
#include "container/fault.h"
#include "container/mnt.h"
#include "container/paths.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

/* config-linux.md "Default Devices"; numbers from the kernel's admin-guide/devices.txt. */
static const struct oci_device default_devices[] = {
    {'c', "/dev/null", 1, 3, 0666, 0, 0, true},    {'c', "/dev/zero", 1, 5, 0666, 0, 0, true},
    {'c', "/dev/full", 1, 7, 0666, 0, 0, true},    {'c', "/dev/random", 1, 8, 0666, 0, 0, true},
    {'c', "/dev/urandom", 1, 9, 0666, 0, 0, true}, {'c', "/dev/tty", 5, 0, 0666, 0, 0, true},
};

/* config-linux.md "Default Devices" (ptmx) and runtime-linux.md "Dev symbolic links" */
static const struct {
    const char *path;
    const char *target;
} default_links[] = {
    {"/dev/fd", "/proc/self/fd"},       {"/dev/stdin", "/proc/self/fd/0"}, {"/dev/stdout", "/proc/self/fd/1"},
    {"/dev/stderr", "/proc/self/fd/2"}, {"/dev/ptmx", "pts/ptmx"},
};

static bool is_device(const struct stat *st, const struct oci_device *dev)
{
    mode_t type = dev->type == 'b' ? S_IFBLK : dev->type == 'p' ? S_IFIFO : S_IFCHR;
    return (st->st_mode & S_IFMT) == type &&
           (dev->type == 'p' || st->st_rdev == makedev(dev->major, dev->minor));
}

/* Where mknod is refused (user namespaces), the host's node of that name is bound, if it is the same device.
 */
static int bind_device(const struct oci_device *dev, int root_fd, struct err *err)
{
    struct stat st;
    auto_close int source = open(dev->path, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (source < 0 || fstat(source, &st) < 0) {
        return err_sys(err, -errno, "cannot make the device, and the host has no '%s' to bind", dev->path);
    }
    if (!is_device(&st, dev)) {
        return err_set(err, -EPERM, "cannot make the device, and the host's '%s' is another one", dev->path);
    }
    struct mnt_target t = {.root_fd = root_fd, .path = dev->path};
    t.fd = path_make(root_fd, dev->path, true, PATH_NO_FOLLOW);
    if (t.fd < 0) {
        return err_sys(err, t.fd, "cannot make the mount point");
    }
    struct mnt_attrs attrs = {.set = 0};
    int rc = mnt_bind(source, false, false, &attrs, &t, err);
    mnt_target_done(&t);
    return rc;
}

static int make_device(struct container *c, const struct oci_device *dev, int root_fd, struct err *err)
{
    const char *leaf;
    auto_close int dir = path_parent(root_fd, dev->path, &leaf);
    if (dir < 0) {
        return err_sys(err, dir, "cannot make its directory");
    }
    mode_t type = dev->type == 'b' ? S_IFBLK : dev->type == 'p' ? S_IFIFO : S_IFCHR;
    if (c->new_user && dev->type != 'p') {
        return bind_device(dev, root_fd, err);
    }
    if (mknodat(dir, leaf, type | dev->mode, makedev(dev->major, dev->minor)) < 0) {
        if (errno == EPERM) {
            return bind_device(dev, root_fd, err);
        }
        struct stat st;
        if (errno != EEXIST) {
            return err_sys(err, -errno, "cannot make the device");
        }
        if (fstatat(dir, leaf, &st, AT_SYMLINK_NOFOLLOW) < 0 || !is_device(&st, dev)) {
            return err_set(err, -EEXIST, "the root file system has another file of that name");
        }
        if (dev->is_default) {
            return 0;
        }
    }
    struct fd_path path;
    auto_close int fd = openat(dir, leaf, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 || chmod(fd_path(fd, &path), dev->mode) < 0 ||
        fchownat(fd, "", dev->uid, dev->gid, AT_EMPTY_PATH) < 0) {
        return err_sys(err, -errno, "cannot set the device's owner and mode");
    }
    return 0;
}

static bool dev_is_bound(const struct oci_config *config)
{
    for (size_t i = 0; i < config->mount_count; i++) {
        const char *path = config->mounts[i].destination + strspn(config->mounts[i].destination, "/");
        if (config->mounts[i].bind && strncmp(path, "dev", 3) == 0 &&
            path[3 + strspn(path + 3, "/")] == '\0') {
            return true;
        }
    }
    return false;
}

static int make_links(int root_fd, struct err *err)
{
    for (size_t i = 0; i < ARRAY_SIZE(default_links); i++) {
        const char *leaf;
        auto_close int dir = path_parent(root_fd, default_links[i].path, &leaf);
        if (dir < 0) {
            return err_sys(err, dir, "cannot make '%s'", default_links[i].path);
        }
        if (symlinkat(default_links[i].target, dir, leaf) < 0 && errno != EEXIST && errno != EROFS) {
            return err_sys(err, -errno, "cannot make '%s'", default_links[i].path);
        }
    }
    return 0;
}

int rootfs_devices(struct container *c, int root_fd, struct err *err)
{
    const struct oci_config *config = &c->config;
    int rc = fault_step("devices", err);
    if (rc < 0) {
        return rc;
    }
    mode_t mask = umask(0);
    bool bound = dev_is_bound(config);
    for (size_t i = 0; rc == 0 && !bound && i < ARRAY_SIZE(default_devices); i++) {
        rc = make_device(c, &default_devices[i], root_fd, err);
        if (rc < 0) {
            err_prefix(err, "device '%s'", default_devices[i].path);
        }
    }
    for (size_t i = 0; rc == 0 && i < config->lnx.device_count; i++) {
        rc = make_device(c, &config->lnx.devices[i], root_fd, err);
        if (rc < 0) {
            err_prefix(err, "device '%s'", config->lnx.devices[i].path);
        }
    }
    if (rc == 0 && !bound) {
        rc = make_links(root_fd, err);
    }
    umask(mask);
    return rc;
}

/* What hides paths: the host's /dev/null over files, one empty read-only tmpfs over all directories. */
struct mask {
    int null_fd;
    int tmpfs_fd; /* detached, -1 until needed; -ENOSYS: mount(2) makes one each time */
};

static int mask_directory(struct mask *mask, struct mnt_target *t, struct err *err)
{
    struct mnt_fs fs = {.type = "tmpfs",
                        .data = "size=4k,nr_inodes=2,mode=755",
                        .attrs =
                            MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC};
    struct mnt_attrs attrs = {.set = 0};
    if (mask->tmpfs_fd == -1) {
        struct err ignored = {.code = 0};
        mask->tmpfs_fd = mnt_fs_detached(&fs, &ignored);
        if (mask->tmpfs_fd < 0) {
            mask->tmpfs_fd = -ENOSYS;
        } else {
            return mnt_bind(mask->tmpfs_fd, true, false, &attrs, t, err);
        }
    }
    /* The first one is attached by now, so that copies can be taken of it; a copy keeps being read-only. */
    return mask->tmpfs_fd >= 0 ? mnt_bind(mask->tmpfs_fd, false, false, &attrs, t, err) : mnt_fs(&fs, t, err);
}

int rootfs_masked(struct container *c, int root_fd, struct err *err)
{
    struct mask mask = {.null_fd = -1, .tmpfs_fd = -1};
    struct stat st;
    int rc = fault_step("masked paths", err);
    for (size_t i = 0; rc == 0 && c->config.lnx.masked_paths && c->config.lnx.masked_paths[i]; i++) {
        const char *path = c->config.lnx.masked_paths[i];
        struct mnt_target t = {.root_fd = root_fd, .path = path};
        t.fd = path_open(root_fd, path, 0);
        if (t.fd == -ENOENT || t.fd == -ENOTDIR) {
            continue;
        }
        if (t.fd < 0 || fstat(t.fd, &st) < 0) {
            rc = err_sys(err, t.fd < 0 ? t.fd : -errno, "cannot open");
        } else if (S_ISDIR(st.st_mode)) {
            rc = mask_directory(&mask, &t, err);
        } else {
            if (mask.null_fd < 0) {
                mask.null_fd = open("/dev/null", O_PATH | O_NOFOLLOW | O_CLOEXEC);
                if (mask.null_fd < 0 || fstat(mask.null_fd, &st) < 0 ||
                    !is_device(&st, &default_devices[0])) {
                    rc = err_set(err, -ENODEV, "the host's /dev/null is not the null device");
                }
            }
            struct mnt_attrs attrs = {.set = 0};
            rc = rc < 0 ? rc : mnt_bind(mask.null_fd, false, false, &attrs, &t, err);
        }
        mnt_target_done(&t);
        if (rc < 0) {
            err_prefix(err, "masked path '%s'", path);
        }
    }
    if (mask.null_fd >= 0) {
        close(mask.null_fd);
    }
    if (mask.tmpfs_fd >= 0) {
        close(mask.tmpfs_fd);
    }
    return rc;
}

int rootfs_readonly(struct container *c, int root_fd, struct err *err)
{
    int rc = fault_step("read-only paths", err);
    for (size_t i = 0; rc == 0 && i < c->config.mount_count; i++) { /* see mount_fs() */
        const struct oci_mount *m = &c->config.mounts[i];
        if (c->mount_fds[i] >= 0 && strcmp(m->type, "tmpfs") == 0 && (m->attr_set & MOUNT_ATTR_RDONLY)) {
            struct mnt_attrs attrs = {.set = MOUNT_ATTR_RDONLY};
            rc = mnt_change(c->mount_fds[i], &attrs, err);
            if (rc < 0) {
                err_prefix(err, "mount '%s'", m->destination);
            }
        }
    }
    for (size_t i = 0; rc == 0 && c->config.lnx.readonly_paths && c->config.lnx.readonly_paths[i]; i++) {
        const char *path = c->config.lnx.readonly_paths[i];
        struct mnt_target t = {.root_fd = root_fd, .path = path};
        struct mnt_attrs attrs = {.set = MOUNT_ATTR_RDONLY};
        t.fd = path_open(root_fd, path, 0);
        if (t.fd == -ENOENT || t.fd == -ENOTDIR) {
            continue;
        }
        auto_close int source = t.fd < 0 ? -1 : fcntl(t.fd, F_DUPFD_CLOEXEC, 3);
        rc = source < 0 ? err_sys(err, t.fd < 0 ? t.fd : -errno, "cannot open")
                        : mnt_bind(source, false, true, &attrs, &t, err);
        mnt_target_done(&t);
        if (rc < 0) {
            err_prefix(err, "read-only path '%s'", path);
        }
    }
    return rc;
}
