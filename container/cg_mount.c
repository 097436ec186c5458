/*
 * Mounts of type cgroup and cgroup2: the container sees its own cgroups, all hierarchies of the host below
 * one tmpfs (v1, hybrid) or the one hierarchy (v2). With a cgroup namespace they are mounted anew, which
 * shows them from the container's cgroup down; without, the container's directories are bound. A mount of
 * type cgroup2 is the v2 hierarchy alone, on mixed hosts too: what systemd in a container wants.
 */
#include "base/log.h"
#include "base/util.h"
#include "container/cg.h"
#include "container/json.h"
#include "container/paths.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static int mount_hierarchy(struct cg *cg, const struct cg_hierarchy *h, const char *options, bool namespaced,
                           const struct oci_mount *m, struct mnt_target *t, struct err *err)
{
    struct mnt_fs fs = {.type = h->v2 ? "cgroup2" : "cgroup",
                        .source = "cgroup",
                        .data = h->v2 ? NULL : options,
                        .attrs = m->attr_set};
    struct err why = {.code = 0};
    if (namespaced && mnt_fs(&fs, t, &why) == 0) {
        return 0;
    }
    if (namespaced) {
        log_debug("%s; binding it instead", why.text);
    }
    /* By path: descriptors from before the clone belong to mounts of the host's namespace, which can't be
     * bound. */
    char dir[PATH_MAX];
    cg_directory(cg, h, dir, sizeof(dir));
    auto_close int source = open(h->fd >= 0 ? dir : h->mount, O_PATH | O_DIRECTORY | O_CLOEXEC);
    struct mnt_attrs attrs = {.set = m->attr_set};
    return source < 0 ? err_sys(err, -errno, "cannot open '%s'", dir)
                      : mnt_bind(source, false, true, &attrs, t, err);
}

/* "cpu,cpuacct" out of the mount options "rw,cpu,cpuacct"; a named hierarchy gives "name=x" and needs "none".
 */
static void controller_names(const struct cg_hierarchy *h, char *names, size_t names_room, char *options,
                             size_t options_room)
{
    static const char *const other[] = {"rw",           "ro",
                                        "xattr",        "clone_children",
                                        "noprefix",     "cpuset_v2_mode",
                                        "favordynmods", "nofavordynmods"};
    char text[512];
    char *save = NULL;
    names[0] = '\0';
    options[0] = '\0';
    snprintf(text, sizeof(text), "%s", h->controllers);
    for (char *word = strtok_r(text, ",", &save); word; word = strtok_r(NULL, ",", &save)) {
        bool skip = strncmp(word, "release_agent=", 14) == 0;
        for (size_t i = 0; !skip && i < ARRAY_SIZE(other); i++) {
            skip = strcmp(word, other[i]) == 0;
        }
        if (skip) {
            continue;
        }
        bool named = strncmp(word, "name=", 5) == 0;
        size_t n = strlen(names);
        size_t o = strlen(options);
        snprintf(names + n, names_room - n, "%s%s", n ? "," : "", named ? word + 5 : word);
        snprintf(options + o, options_room - o, "%s%s%s", o ? "," : "", named ? "none," : "", word);
    }
}

static int mount_below(struct cg *cg, const struct cg_hierarchy *h, bool namespaced,
                       const struct oci_mount *m, const struct mnt_target *top, struct err *err)
{
    char names[256] = "unified";
    char options[256] = "";
    if (!h->v2) {
        controller_names(h, names, sizeof(names), options, sizeof(options));
    }
    if (!names[0] || strchr(names, '/')) {
        return 0;
    }
    struct mnt_target t = {.root_fd = top->fd, .path = names, .fd = -1};
    if (mkdirat(top->fd, names, 0755) < 0 && errno != EEXIST) {
        return err_sys(err, -errno, "cannot make '%s'", names);
    }
    t.fd = path_open(top->fd, names, PATH_NO_SYMLINKS);
    int rc = t.fd < 0 ? err_sys(err, t.fd, "cannot open '%s'", names)
                      : mount_hierarchy(cg, h, options, namespaced, m, &t, err);
    mnt_target_done(&t);
    char *save = NULL;
    char whole[256];
    snprintf(whole, sizeof(whole), "%s", names);
    for (char *one = strchr(names, ',') ? strtok_r(names, ",", &save) : NULL; rc == 0 && one;
         one = strtok_r(NULL, ",", &save)) {
        if (symlinkat(whole, top->fd, one) < 0) {
            rc = err_sys(err, -errno, "cannot make link '%s'", one);
        }
    }
    return rc < 0 ? err_prefix(err, "%s", whole) : 0;
}

/* cgroups(7) "Cgroup delegation": what the kernel lists, or what it always had. */
static int delegate(int fd, bool v2, uid_t uid, gid_t gid)
{
    auto_free char *text = NULL;
    size_t size;
    if (!v2 || file_read_all(AT_FDCWD, "/sys/kernel/cgroup/delegate", &text, &size, NULL) < 0) {
        text = strdup("cgroup.procs\ncgroup.threads\ncgroup.subtree_control\ntasks\n");
    }
    int rc = !text || fchown(fd, uid, gid) < 0 ? -errno : 0;
    char *save = NULL;
    for (char *name = rc < 0 ? NULL : strtok_r(text, "\n", &save); name; name = strtok_r(NULL, "\n", &save)) {
        if (fchownat(fd, name, uid, gid, AT_SYMLINK_NOFOLLOW) < 0 && errno != ENOENT) {
            return -errno;
        }
    }
    return rc;
}

int cg_delegate(struct cg *cg, uid_t uid, gid_t gid, struct err *err)
{
    for (size_t i = 0; i < cg->count; i++) {
        struct cg_hierarchy *h = &cg->h[i];
        /* Controllers of v1 are not safe to give away; the named hierarchy of systemd has none. */
        if (h->fd < 0 || (!h->v2 && !strstr(h->controllers, ",name=systemd,"))) {
            continue;
        }
        int rc = delegate(h->fd, h->v2, uid, gid);
        if (rc < 0) {
            return err_sys(err, rc, "cannot give cgroup '%s%s' to user %u", h->mount, cg->path,
                           (unsigned)uid);
        }
    }
    return 0;
}

int cg_mount(struct cg *cg, const struct oci_mount *m, bool namespaced, struct mnt_target *t, struct err *err)
{
    if (cg->count == 0) {
        return err_set(err, -EOPNOTSUPP, "no cgroup hierarchy is mounted on this host");
    }
    if (strcmp(m->type, "cgroup2") == 0) { /* that one alone, whatever else the host has */
        struct cg_hierarchy *v2 = cg_v2(cg);
        return v2 ? mount_hierarchy(cg, v2, NULL, namespaced, m, t, err)
                  : err_set(err, -EOPNOTSUPP, "no cgroup2 is mounted on this host; use type 'cgroup'");
    }
    if (cg->count == 1 && cg->h[0].v2) {
        return mount_hierarchy(cg, &cg->h[0], NULL, namespaced, m, t, err);
    }
    struct mnt_fs fs = {.type = "tmpfs",
                        .source = "cgroup",
                        .data = "mode=755,size=64k",
                        .attrs = m->attr_set & ~(uint64_t)MOUNT_ATTR_RDONLY};
    int rc = mnt_fs(&fs, t, err);
    for (size_t i = 0; rc == 0 && i < cg->count; i++) {
        rc = mount_below(cg, &cg->h[i], namespaced, m, t, err);
    }
    if (rc == 0 && (m->attr_set & MOUNT_ATTR_RDONLY)) {
        struct mnt_attrs attrs = {.set = MOUNT_ATTR_RDONLY};
        rc = mnt_change(t->fd, &attrs, err);
    }
    if (rc == 0 && m->propagation && (rc = mnt_propagation(t->fd, m->propagation)) < 0) {
        err_sys(err, rc, "cannot set mount propagation");
    }
    return rc;
}
