#include "container/mnt.h"

#include "base/util.h"
#include "container/fault.h"
#include "container/paths.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>

#ifndef MOUNT_ATTR_NOSYMFOLLOW
#define MOUNT_ATTR_NOSYMFOLLOW 0x00200000
#endif
#define MNT_VALUE_MAX 255 /* fsconfig(2): longest string value */

void mnt_target_done(struct mnt_target *target)
{
    if (target->fd >= 0) {
        close(target->fd);
    }
    target->fd = -1;
}

static bool api_missing(int code)
{
    return code == -ENOSYS || code == -EOPNOTSUPP;
}

/* MOUNT_ATTR_* as mount(2) spells them. */
static unsigned long legacy_flags(uint64_t attrs)
{
    static const struct {
        uint64_t attr;
        unsigned long flag;
    } map[] = {
        {MOUNT_ATTR_RDONLY, MS_RDONLY}, {MOUNT_ATTR_NOSUID, MS_NOSUID},         {MOUNT_ATTR_NODEV, MS_NODEV},
        {MOUNT_ATTR_NOEXEC, MS_NOEXEC}, {MOUNT_ATTR_NODIRATIME, MS_NODIRATIME}, {MOUNT_ATTR_NOSYMFOLLOW, 256},
    };
    unsigned long flags = 0;
    for (size_t i = 0; i < ARRAY_SIZE(map); i++) {
        flags |= attrs & map[i].attr ? map[i].flag : 0;
    }
    switch (attrs & MOUNT_ATTR__ATIME) {
    case MOUNT_ATTR_NOATIME: flags |= MS_NOATIME; break;
    case MOUNT_ATTR_STRICTATIME: flags |= MS_STRICTATIME; break;
    default: break;
    }
    return flags;
}

static int fs_configure(int ctx, const struct mnt_fs *fs)
{
    static const struct {
        unsigned long flag;
        const char *name;
    } sb[] = {
        {MS_SYNCHRONOUS, "sync"}, {MS_DIRSYNC, "dirsync"}, {MS_MANDLOCK, "mand"}, {MS_LAZYTIME, "lazytime"}};
    if (fsconfig(ctx, FSCONFIG_SET_STRING, "source", fs->source ? fs->source : fs->type, 0) < 0) {
        return -errno;
    }
    for (size_t i = 0; i < ARRAY_SIZE(sb); i++) {
        if ((fs->sb_flags & sb[i].flag) && fsconfig(ctx, FSCONFIG_SET_FLAG, sb[i].name, NULL, 0) < 0) {
            return -errno;
        }
    }
    for (const char *p = fs->data; p && *p;) {
        char option[MNT_VALUE_MAX * 2];
        size_t n = strcspn(p, ",");
        if (n >= sizeof(option)) {
            return -EOPNOTSUPP; /* too long for this call, mount(2) takes it */
        }
        memcpy(option, p, n);
        option[n] = '\0';
        char *value = strchr(option, '=');
        if (value) {
            *value++ = '\0';
            if (strlen(value) > MNT_VALUE_MAX) {
                return -EOPNOTSUPP;
            }
        }
        if (*option && fsconfig(ctx, value ? FSCONFIG_SET_STRING : FSCONFIG_SET_FLAG, option, value, 0) < 0) {
            return -errno;
        }
        p += n + (p[n] == ',');
    }
    return fsconfig(ctx, FSCONFIG_CMD_CREATE, NULL, NULL, 0) < 0 ? -errno : 0;
}

int mnt_fs_detached(const struct mnt_fs *fs, struct err *err)
{
    if (fault_without("mountapi") ||
        (fs->sb_flags & ~(unsigned long)(MS_SYNCHRONOUS | MS_DIRSYNC | MS_LAZYTIME))) {
        return err_sys(err, -ENOSYS, "cannot mount %s", fs->type);
    }
    auto_close int ctx = fsopen(fs->type, FSOPEN_CLOEXEC);
    if (ctx < 0) {
        return err_sys(err, -errno, errno == ENODEV ? "file system type '%s' is unknown" : "cannot mount %s",
                       fs->type);
    }
    int rc = fs_configure(ctx, fs);
    if (rc < 0) {
        char why[256];
        ssize_t n = read(ctx, why, sizeof(why) - 1); /* the kernel's own words, if it has any */
        why[n > 2 ? n : 2] = '\0';
        if (n > 2) {
            why[strcspn(why, "\n")] = '\0';
        }
        return n > 2 ? err_sys(err, rc, "cannot mount %s (%s)", fs->type, why + 2)
                     : err_sys(err, rc, "cannot mount %s", fs->type);
    }
    int fd = fsmount(ctx, FSMOUNT_CLOEXEC, (unsigned)fs->attrs);
    return fd < 0 ? err_sys(err, -errno, "cannot mount %s", fs->type) : fd;
}

static int target_attach(int mount_fd, struct mnt_target *target)
{
    if (move_mount(mount_fd, "", target->fd, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH) < 0) {
        return -errno;
    }
    close(target->fd);
    target->fd = mount_fd;
    return 0;
}

/* After mount(2): the descriptor still stands for what is now covered. */
static int target_reopen(struct mnt_target *target, struct err *err)
{
    int fd = path_open(target->root_fd, target->path, 0);
    if (fd < 0) {
        return err_sys(err, fd, "cannot open '%s' after mounting on it", target->path);
    }
    close(target->fd);
    target->fd = fd;
    return 0;
}

int mnt_fs(const struct mnt_fs *fs, struct mnt_target *target, struct err *err)
{
    int fd = mnt_fs_detached(fs, err);
    if (fd >= 0) {
        int rc = target_attach(fd, target);
        if (rc < 0) {
            close(fd);
            return err_sys(err, rc, "cannot attach %s", fs->type);
        }
        return 0;
    }
    /* EINVAL: a file system that hasn't learned the new calls may take the same option from mount(2). */
    if (!api_missing(fd) && fd != -EINVAL) {
        return fd;
    }
    struct fd_path path;
    if (mount(fs->source ? fs->source : fs->type, fd_path(target->fd, &path), fs->type,
              legacy_flags(fs->attrs) | fs->sb_flags, fs->data) < 0) {
        return err_sys(err, -errno, "cannot mount %s", fs->type);
    }
    return target_reopen(target, err);
}

int mnt_clone(int dirfd, const char *path, bool recursive, bool no_follow)
{
    if (fault_without("mountapi")) {
        return -ENOSYS;
    }
    int fd = open_tree(dirfd, path,
                       OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH | (recursive ? AT_RECURSIVE : 0u) |
                           (no_follow ? AT_SYMLINK_NOFOLLOW : 0u));
    return fd < 0 ? -errno : fd;
}

static int setattr(int fd, bool recursive, uint64_t set, uint64_t clear)
{
    struct mount_attr attr = {.attr_set = set, .attr_clr = clear};
    if (fault_without("mountapi")) {
        return -ENOSYS;
    }
    int rc = mount_setattr(fd, "", AT_EMPTY_PATH | (recursive ? AT_RECURSIVE : 0u), &attr, sizeof(attr));
    return rc < 0 ? -errno : 0;
}

static int legacy_remount(int fd, uint64_t set, uint64_t clear)
{
    struct statvfs st;
    struct fd_path path;
    if (fstatvfs(fd, &st) < 0) {
        return -errno;
    }
    /* ST_* and MS_* agree for these; what is set and not to be cleared has to be given again. */
    unsigned long keep = st.f_flag & (MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC);
    keep |= st.f_flag & ST_NOATIME ? MS_NOATIME : 0u;
    keep |= st.f_flag & ST_NODIRATIME ? MS_NODIRATIME : 0u;
    unsigned long flags = (keep & ~legacy_flags(clear & ~(uint64_t)MOUNT_ATTR__ATIME)) | legacy_flags(set);
    return mount(NULL, fd_path(fd, &path), NULL, MS_REMOUNT | MS_BIND | flags, NULL) < 0 ? -errno : 0;
}

int mnt_change(int fd, const struct mnt_attrs *attrs, struct err *err)
{
    int rc = 0;
    if (attrs->set || attrs->clear) {
        rc = setattr(fd, false, attrs->set, attrs->clear);
        if (rc == -EPERM && attrs->clear) {
            rc = setattr(fd, false, attrs->set, 0); /* flags that the owner of the mount has locked stay */
        }
        if (api_missing(rc)) {
            rc = legacy_remount(fd, attrs->set, attrs->clear);
        }
        if (rc < 0) {
            return err_sys(err, rc, "cannot change mount flags");
        }
    }
    if (attrs->rec_set || attrs->rec_clear) {
        rc = setattr(fd, true, attrs->rec_set, attrs->rec_clear);
        if (rc < 0) {
            return err_sys(err, rc, "cannot change mount flags recursively%s",
                           rc == -ENOSYS ? " (needs Linux 5.12)" : "");
        }
    }
    return 0;
}

int mnt_propagation(int fd, unsigned long flags)
{
    struct fd_path path;
    struct mount_attr attr = {.propagation = flags & ~(unsigned long)MS_REC};
    if (!fault_without("mountapi")) {
        if (mount_setattr(fd, "", AT_EMPTY_PATH | (flags & MS_REC ? AT_RECURSIVE : 0u), &attr,
                          sizeof(attr)) == 0) {
            return 0;
        }
        if (errno != ENOSYS) {
            return -errno;
        }
    }
    return mount(NULL, fd_path(fd, &path), NULL, flags, NULL) < 0 ? -errno : 0;
}

int mnt_bind(int source_fd, bool is_tree, bool recursive, const struct mnt_attrs *attrs,
             struct mnt_target *target, struct err *err)
{
    int rc;
    int tree = is_tree ? fcntl(source_fd, F_DUPFD_CLOEXEC, 3) : mnt_clone(source_fd, "", recursive, false);
    if (is_tree && tree < 0) {
        return err_sys(err, -errno, "cannot bind");
    }
    if (api_missing(tree)) {
        struct fd_path from;
        struct fd_path to;
        if (mount(fd_path(source_fd, &from), fd_path(target->fd, &to), NULL,
                  MS_BIND | (recursive ? MS_REC : 0u), NULL) < 0) {
            return err_sys(err, -errno, "cannot bind");
        }
        rc = target_reopen(target, err);
        if (rc == 0) {
            rc = mnt_change(target->fd, attrs, err);
        }
    } else if (tree < 0) {
        return err_sys(err, tree, "cannot bind");
    } else {
        rc = mnt_change(tree, attrs, err); /* before anybody can see the mount */
        if (rc == 0 && (rc = target_attach(tree, target)) < 0) {
            err_sys(err, rc, "cannot bind");
        }
        if (rc < 0) {
            close(tree);
        }
    }
    if (rc == 0 && attrs->propagation && (rc = mnt_propagation(target->fd, attrs->propagation)) < 0) {
        err_sys(err, rc, "cannot set mount propagation");
    }
    return rc;
}
