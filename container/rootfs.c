/* The root file system in the first process: its mounts in the order of the config, and the pivot. */
#include "base/log.h"
#include "base/util.h"
#include "container/caps.h"
#include "container/cg.h"
#include "container/container.h"
#include "container/fault.h"
#include "container/json.h"
#include "container/mnt.h"
#include "container/paths.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/capability.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>

/* Files of procfs that tools such as lxcfs cover with their own; anything else below /proc is refused, since
 * a mount there could fake what the runtime itself reads and writes. */
static const char *const proc_files[] = {
    "cpuinfo",
    "diskstats",
    "meminfo",
    "stat",
    "swaps",
    "uptime",
    "loadavg",
    "slabinfo",
    "net/dev",
    "sys/kernel/ns_last_pid",
    "sys/crypto/fips_enabled",
};

static int make_private(struct container *c, struct err *err)
{
    unsigned long flags = c->config.lnx.rootfs_propagation;
    if (mount(NULL, "/", NULL, flags ? flags : MS_SLAVE | MS_REC, NULL) < 0) {
        return err_sys(err, -errno, "cannot change the propagation of /");
    }
    return 0;
}

/* pivot_root(2): the mount that the root file system hangs on must not be shared. Only when the config asked
 * for a shared "/" can it be; then every mount point on the way up is tried until one is the mount's root. */
static int parent_private(struct container *c, struct err *err)
{
    char path[PATH_MAX];
    if (!(c->config.lnx.rootfs_propagation & MS_SHARED)) {
        return 0;
    }
    snprintf(path, sizeof(path), "%s", c->rootfs);
    for (;;) {
        if (mount(NULL, path, NULL, MS_PRIVATE, NULL) == 0) {
            return 0;
        }
        char *slash = strrchr(path, '/');
        if (errno != EINVAL || !slash || strcmp(path, "/") == 0) {
            return err_sys(err, -errno, "cannot make the mount of '%s' private", c->rootfs);
        }
        slash[slash == path ? 1 : 0] = '\0';
    }
}

int rootfs_attach(struct container *c, int *ret_root_fd, struct err *err)
{
    int rc;
    if ((rc = make_private(c, err)) < 0 || (rc = parent_private(c, err)) < 0) {
        return rc;
    }
    /* The runtime changed into the root file system before the clone, so "." needs no rights on the way to
     * it. */
    int tree = c->root_tree_fd >= 0 ? c->root_tree_fd : mnt_clone(AT_FDCWD, ".", true, false);
    if (tree == -ENOSYS) {
        if (mount(".", ".", NULL, MS_BIND | MS_REC, NULL) < 0) {
            return err_sys(err, -errno, "cannot bind the root file system '%s'", c->rootfs);
        }
        tree = open(c->rootfs, O_PATH | O_DIRECTORY | O_CLOEXEC);
        if (tree < 0) {
            return err_sys(err, -errno, "cannot open the root file system '%s'", c->rootfs);
        }
    } else if (tree < 0) {
        return err_sys(err, tree, "cannot bind the root file system '%s'", c->rootfs);
    } else if (move_mount(tree, "", AT_FDCWD, ".", MOVE_MOUNT_F_EMPTY_PATH) < 0) {
        return err_sys(err, -errno, "cannot attach the root file system '%s'", c->rootfs);
    }
    if (fchdir(tree) < 0) {
        return err_sys(err, -errno, "cannot enter the root file system '%s'", c->rootfs);
    }
    *ret_root_fd = tree;
    return 0;
}

/* Id-maps a detached tree by the mount's own maps, or by those of the container. */
static int idmap_tree(struct container *c, const struct oci_mount *m, int tree, struct err *err)
{
    const struct oci_linux *lnx = &c->config.lnx;
    const struct oci_idmaps *uids = m->uid_maps.count ? &m->uid_maps : &lnx->uid_maps;
    const struct oci_idmaps *gids = m->gid_maps.count ? &m->gid_maps : &lnx->gid_maps;
    if (!uids->count || !gids->count) {
        return err_set(err, -EINVAL,
                       "an id-mapped mount needs uidMappings and gidMappings, its own or the container's");
    }
    auto_close int user_fd = ns_user_fd(uids, gids, err);
    if (user_fd < 0) {
        return user_fd;
    }
    struct mount_attr attr = {.attr_set = MOUNT_ATTR_IDMAP, .userns_fd = (unsigned)user_fd};
    if (mount_setattr(tree, "", AT_EMPTY_PATH | (m->idmap == MOUNT_IDMAP_RECURSIVE ? AT_RECURSIVE : 0u),
                      &attr, sizeof(attr)) < 0) {
        return err_sys(err, -errno, "cannot id-map the mount%s",
                       errno == EINVAL ? " (its file system may not support that)" : "");
    }
    return 0;
}

int rootfs_prepare_sources(struct container *c, struct err *err)
{
    bool can = caps_have(CAP_SYS_ADMIN);
    c->mount_fds = arena_array(&c->config.arena, c->config.mount_count, sizeof(int));
    for (size_t i = 0; i < c->config.mount_count; i++) {
        const struct oci_mount *m = &c->config.mounts[i];
        c->mount_fds[i] = -1;
        if (!m->bind || (m->idmap == MOUNT_IDMAP_NONE && !(c->new_user && can))) {
            continue;
        }
        int rc = mnt_clone(AT_FDCWD, m->source, m->recursive, m->no_follow);
        if (rc >= 0) {
            c->mount_fds[i] = rc;
            rc = m->idmap != MOUNT_IDMAP_NONE ? idmap_tree(c, m, rc, err) : 0;
        } else if (rc == -ENOSYS && m->idmap == MOUNT_IDMAP_NONE) {
            rc = 0;
        } else {
            err_sys(err, rc,
                    rc == -EPERM ? "cannot open '%s' for an id-mapped mount (needs CAP_SYS_ADMIN)"
                                 : "cannot open '%s'",
                    m->source);
        }
        if (rc < 0) {
            err_prefix(err, "mount '%s'", m->destination);
            return rc;
        }
    }
    return 0;
}

/* See proc_files. The target's own file system says where it is, whatever the path looked like. */
static int check_target(const struct oci_mount *m, const struct mnt_target *t, struct err *err)
{
    if (!fd_is_procfs(t->fd)) {
        return 0;
    }
    const char *path = m->destination + strspn(m->destination, "/");
    if (strncmp(path, "proc", 4) == 0 && path[4 + strspn(path + 4, "/")] == '\0') {
        return 0;
    }
    for (size_t i = 0; i < ARRAY_SIZE(proc_files); i++) {
        if (strncmp(path, "proc/", 5) == 0 && strcmp(path + 5, proc_files[i]) == 0) {
            return 0;
        }
    }
    return err_set(err, -EPERM, "a mount inside of /proc is not allowed");
}

static struct mnt_attrs mount_attrs(const struct oci_mount *m)
{
    return (struct mnt_attrs){.set = m->attr_set,
                              .clear = m->attr_clear,
                              .rec_set = m->rec_set,
                              .rec_clear = m->rec_clear,
                              .propagation = m->propagation};
}

static int mount_bind(struct container *c, const struct oci_mount *m, int prepared, struct mnt_target *t,
                      struct err *err)
{
    auto_close int opened = -1;
    int source = prepared;
    if (source < 0) {
        opened = open(m->source, O_PATH | O_CLOEXEC | (m->no_follow ? O_NOFOLLOW : 0));
        if (opened < 0) {
            return err_sys(err, -errno, "source '%s'", m->source);
        }
        source = opened;
    }
    struct stat st;
    if (fstat(source, &st) < 0) {
        return err_sys(err, -errno, "source '%s'", m->source);
    }
    t->fd = path_make(t->root_fd, m->destination, !S_ISDIR(st.st_mode), m->no_follow ? PATH_NO_FOLLOW : 0);
    if (t->fd < 0) {
        return err_sys(err, t->fd, "cannot make or open the mount point");
    }
    int rc = check_target(m, t, err);
    if (rc < 0) {
        return rc;
    }
    if (m->data) {
        log_debug("mount '%s': options '%s' mean nothing to a bind mount", m->destination, m->data);
    }
    struct mnt_attrs attrs = mount_attrs(m);
    if (m->attr_clear == MOUNT_ATTR_RDONLY && prepared >= 0) {
        attrs.clear = 0; /* a fresh copy: "rw" asks for nothing */
    }
    rc = mnt_bind(source, prepared >= 0, m->recursive, &attrs, t, err);
    return rc < 0 ? err_prefix(err, "source '%s'", m->source) : 0;
}

/* sysfs can only be mounted by the owner of the network namespace; the host's, bound read-only, is what
 * others get. */
static int mount_sysfs_bound(const struct oci_mount *m, struct mnt_target *t, struct err *err)
{
    auto_close int source = open("/sys", O_PATH | O_CLOEXEC);
    if (source < 0) {
        return err_sys(err, -errno, "cannot open /sys");
    }
    struct mnt_attrs attrs = mount_attrs(m);
    attrs.clear = 0;
    return mnt_bind(source, false, true, &attrs, t, err);
}

static int mount_fs(struct container *c, const struct oci_mount *m, struct mnt_target *t, struct err *err)
{
    bool is_proc = strcmp(m->type, "proc") == 0;
    bool is_sysfs = strcmp(m->type, "sysfs") == 0;
    bool is_tmpfs = strcmp(m->type, "tmpfs") == 0;
    struct stat st = {.st_mode = 0};
    auto_free char *data = NULL;
    auto_close int below = -1;
    t->fd = path_open(t->root_fd, m->destination, is_proc || is_sysfs ? PATH_NO_SYMLINKS : 0);
    if (t->fd >= 0 && is_tmpfs && fstat(t->fd, &st) == 0 && !(m->data && strstr(m->data, "mode="))) {
        if (asprintf(&data, "%s%smode=%o", m->data ? m->data : "", m->data ? "," : "", st.st_mode & 07777u) <
            0) {
            data = NULL;
        }
    }
    if (t->fd == -ENOENT) {
        t->fd = path_make(t->root_fd, m->destination, false, is_proc || is_sysfs ? PATH_NO_SYMLINKS : 0);
    }
    if (t->fd == -ELOOP && (is_proc || is_sysfs)) {
        return err_set(err, -ELOOP, "%s must be mounted on a plain directory, not through a symbolic link",
                       m->type);
    }
    if (t->fd < 0) {
        return err_sys(err, t->fd, "cannot make or open the mount point");
    }
    int rc = check_target(m, t, err);
    if (rc < 0) {
        return rc;
    }
    if (m->copy_up) {
        if (!is_tmpfs) {
            return err_set(err, -EINVAL, "tmpcopyup is for tmpfs only");
        }
        struct fd_path path;
        below = open(fd_path(t->fd, &path), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (below < 0) {
            return err_sys(err, -errno, "cannot read the mount point");
        }
    }
    struct mnt_fs fs = {.type = m->type,
                        .source = m->source,
                        .data = data ? data : m->data,
                        .attrs = is_tmpfs ? m->attr_set & ~(uint64_t)MOUNT_ATTR_RDONLY : m->attr_set,
                        .sb_flags = m->sb_flags};
    rc = mnt_fs(&fs, t, err);
    if (rc == -EPERM && is_sysfs) {
        rc = mount_sysfs_bound(m, t, err);
    }
    if (rc < 0) {
        if (rc == -EINVAL && m->data && strcmp(m->type, "devpts") == 0 && strstr(m->data, "gid=") &&
            c->new_user) {
            err_prefix(err, "the gid= option must name a group of the user namespace's map");
        }
        return rc;
    }
    if (m->copy_up) {
        struct fd_path path;
        auto_close int to = open(fd_path(t->fd, &path), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (to < 0) {
            return err_sys(err, -errno, "cannot open the new tmpfs");
        }
        rc = copy_up(below, to, err);
    }
    struct mnt_attrs attrs = mount_attrs(m);
    attrs.clear = 0;
    attrs.set = 0;
    /* Read-only once mount points, devices and files that belong there are in it: rootfs_readonly(). */
    if (rc == 0 && is_tmpfs && (m->attr_set & MOUNT_ATTR_RDONLY)) {
        int *keep = &c->mount_fds[m - c->config.mounts];
        *keep = fcntl(t->fd, F_DUPFD_CLOEXEC, 3);
        rc = *keep < 0 ? err_sys(err, -errno, "cannot keep the mount open") : 0;
    }
    if (rc == 0) {
        rc = mnt_change(t->fd, &attrs, err);
    }
    if (rc == 0 && attrs.propagation && (rc = mnt_propagation(t->fd, attrs.propagation)) < 0) {
        err_sys(err, rc, "cannot set mount propagation");
    }
    return rc;
}

static int mount_one(struct container *c, const struct oci_mount *m, int prepared, struct mnt_target *t,
                     struct err *err)
{
    int rc = fault_step("mount", err);
    if (rc < 0) {
        return rc;
    }
    if (m->remount) {
        struct mnt_attrs attrs = mount_attrs(m);
        t->fd = path_open(t->root_fd, m->destination, 0);
        return t->fd < 0 ? err_sys(err, t->fd, "cannot open the mount point")
                         : mnt_change(t->fd, &attrs, err);
    }
    if (m->bind) {
        return mount_bind(c, m, prepared, t, err);
    }
    if (strcmp(m->type, "cgroup") == 0 || strcmp(m->type, "cgroup2") == 0) {
        t->fd = path_make(t->root_fd, m->destination, false, PATH_NO_SYMLINKS);
        if (t->fd < 0) {
            return err_sys(err, t->fd, "cannot make or open the mount point");
        }
        return cg_mount(c->cg, m, c->config.lnx.ns[NS_CGROUP].wanted, t, err);
    }
    return mount_fs(c, m, t, err);
}

int rootfs_mounts(struct container *c, int root_fd, struct err *err)
{
    for (size_t i = 0; i < c->config.mount_count; i++) {
        const struct oci_mount *m = &c->config.mounts[i];
        struct mnt_target t = {.root_fd = root_fd, .path = m->destination, .fd = -1};
        int rc = mount_one(c, m, c->mount_fds[i], &t, err);
        mnt_target_done(&t);
        if (rc < 0) {
            err_prefix(err, "mount '%s'", m->destination);
            return rc;
        }
    }
    return 0;
}

/*
 * The host's mounts stay reachable for the kernel when the root is only moved: an unmasked procfs or sysfs
 * among them would let a user namespace in the container mount a bare one (mount_namespaces(7),
 * mnt_already_visible). They are taken away, or covered where they are locked.
 */
static int hide_host_proc(const char *rootfs, struct err *err)
{
    auto_free char *text = NULL;
    size_t size, n = strlen(rootfs);
    int rc = file_read_all(AT_FDCWD, "/proc/self/mountinfo", &text, &size, err);
    char *save = NULL;
    for (char *line = rc < 0 ? NULL : strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        char *type = strstr(line, " - ");
        char path[PATH_MAX];
        if (!type || (strncmp(type + 3, "proc ", 5) != 0 && strncmp(type + 3, "sysfs ", 6) != 0) ||
            sscanf(line, "%*s %*s %*s %*s %4095s", path) != 1 || strchr(path, '\\') ||
            (strncmp(path, rootfs, n) == 0 && (path[n] == '/' || path[n] == '\0'))) {
            continue;
        }
        if (umount2(path, MNT_DETACH | UMOUNT_NOFOLLOW) < 0 &&
            mount("none", path, "tmpfs", MS_RDONLY, "size=4k,nr_inodes=2") < 0 && errno != ENOENT) {
            return err_sys(err, -errno, "cannot hide the host's '%s'", path);
        }
    }
    return rc;
}

static int move_root(const char *rootfs, int root_fd, struct err *err)
{
    struct fd_path path;
    int rc = hide_host_proc(rootfs, err);
    if (rc < 0) {
        return rc;
    }
    if (fchdir(root_fd) < 0 || mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0) {
        return err_sys(err, -errno, "cannot move the root file system to / ('%s')", fd_path(root_fd, &path));
    }
    return 0;
}

int rootfs_pivot(struct container *c, int root_fd, struct err *err)
{
    int rc = fault_step("pivot_root", err);
    if (rc < 0) {
        return rc;
    }
    if (c->config.root_readonly) {
        struct mnt_attrs attrs = {.set = MOUNT_ATTR_RDONLY};
        rc = mnt_change(root_fd, &attrs, err);
        if (rc < 0) {
            return err_prefix(err, "root file system");
        }
    }
    if (c->no_pivot) {
        rc = move_root(c->rootfs, root_fd, err);
        if (rc < 0) {
            return rc;
        }
    } else {
        auto_close int old = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
        if (old < 0 || fchdir(root_fd) < 0 || syscall(SYS_pivot_root, ".", ".") < 0) {
            return err_sys(err, -errno, "cannot pivot to the root file system%s",
                           errno == EINVAL ? " (on a ramfs or initramfs, use --no-pivot)" : "");
        }
        /* Now both are at "/", the old one on top (pivot_root(2), 'pivot_root(".", ".")'). As a slave it goes
         * without taking the host's mounts along. */
        if (fchdir(old) < 0 || mount(NULL, ".", NULL, MS_SLAVE | MS_REC, NULL) < 0 ||
            umount2(".", MNT_DETACH) < 0) {
            return err_sys(err, -errno, "cannot unmount the old root");
        }
    }
    if (chdir("/") < 0) {
        return err_sys(err, -errno, "cannot enter the new root");
    }
    unsigned long flags = c->config.lnx.rootfs_propagation;
    if (flags && mount(NULL, "/", NULL, flags, NULL) < 0) {
        return err_sys(err, -errno, "cannot set linux.rootfsPropagation");
    }
    return 0;
}
