/* Hierarchies of the host; making, joining and removing the container's cgroups. */
#include "container/cg.h"

#include "base/log.h"
#include "base/util.h"
#include "container/fault.h"
#include "container/json.h"
#include "container/ns.h"
#include "container/paths.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define CG_DEFAULT_PARENT "/fonda-oci"
#define CG_REMOVE_TRIES   400 /* of 5 ms */

/* mountinfo writes spaces and the like as \040, proc_pid_mountinfo(5). In place. */
static char *unescape(char *text)
{
    char *out = text;
    for (const char *p = text; *p;) {
        if (p[0] == '\\' && p[1] >= '0' && p[1] <= '3' && p[2] && p[3]) {
            *out++ = (char)((p[1] - '0') << 6 | (p[2] - '0') << 3 | (p[3] - '0'));
            p += 4;
        } else {
            *out++ = *p++;
        }
    }
    *out = '\0';
    return text;
}

int cg_read(int dirfd, const char *file, char *text, size_t room)
{
    auto_close int fd = openat(dirfd, file, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return -errno;
    }
    ssize_t n = read(fd, text, room - 1);
    if (n < 0) {
        return -errno;
    }
    while (n > 0 && text[n - 1] == '\n') {
        n--;
    }
    text[n] = '\0';
    return (int)n;
}

static void add_hierarchy(struct cg *cg, char *root, char *mount, const char *type, const char *options)
{
    bool v2 = strcmp(type, "cgroup2") == 0;
    if (cg->count == CG_HIERARCHIES_MAX || (v2 && fault_without("cgroupv2"))) {
        return;
    }
    struct cg_hierarchy h = {.v2 = v2, .fd = -1, .enter_fd = -1, .own = "/"};
    h.root = arena_strdup(&cg->arena, unescape(root));
    h.mount = arena_strdup(&cg->arena, unescape(mount));
    if (v2) {
        char text[512];
        int fd = open(h.mount, O_PATH | O_DIRECTORY | O_CLOEXEC);
        if (fd < 0 || cg_read(fd, "cgroup.controllers", text, sizeof(text)) < 0) {
            text[0] = '\0';
        }
        if (fd >= 0) {
            close(fd);
        }
        for (char *p = text; *p; p++) {
            *p = *p == ' ' ? ',' : *p;
        }
        h.controllers = arena_printf(&cg->arena, ",%s,", text);
    } else {
        h.controllers = arena_printf(&cg->arena, ",%s,", options);
    }
    for (size_t i = 0; i < cg->count; i++) {
        if (cg->h[i].v2 == v2 && (v2 || strcmp(cg->h[i].controllers, h.controllers) == 0)) {
            return; /* mounted a second time */
        }
    }
    cg->h[cg->count++] = h;
}

static bool has_word(const char *list, const char *word, size_t n)
{
    for (const char *p = list; (p = strchr(p, ',')) && *++p;) {
        if (strncmp(p, word, n) == 0 && p[n] == ',') {
            return true;
        }
    }
    return false;
}

static void read_own_paths(struct cg *cg)
{
    auto_free char *text = NULL;
    size_t size;
    if (file_read_all(AT_FDCWD, "/proc/self/cgroup", &text, &size, NULL) < 0) {
        return;
    }
    char *save = NULL;
    for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        char *names = strchr(line, ':');
        char *path = names ? strchr(names + 1, ':') : NULL;
        if (!path) {
            continue;
        }
        *path++ = '\0';
        names++;
        for (size_t i = 0; i < cg->count; i++) {
            struct cg_hierarchy *h = &cg->h[i];
            if (h->v2 ? !*names : *names && has_word(h->controllers, names, strcspn(names, ","))) {
                h->own = arena_strdup(&cg->arena, path);
            }
        }
    }
}

int cg_open(struct cg *cg, struct err *err)
{
    auto_free char *text = NULL;
    size_t size;
    *cg = (struct cg){.count = 0};
    int rc = file_read_all(AT_FDCWD, "/proc/self/mountinfo", &text, &size, err);
    if (rc < 0) {
        return rc;
    }
    char *save = NULL;
    for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        char *type = strstr(line, " - cgroup");
        if (!type) {
            continue;
        }
        *type = '\0';
        type += 3;
        char *source = strchr(type, ' ');
        char *options = source ? strchr(source + 1, ' ') : NULL;
        char *words = NULL;
        char *field[5] = {NULL};
        char *word = strtok_r(line, " ", &words);
        for (int i = 0; i < 5 && word; i++) {
            field[i] = word;
            word = strtok_r(NULL, " ", &words);
        }
        if (!options || !field[4]) {
            continue;
        }
        *source = '\0';
        add_hierarchy(cg, field[3], field[4], type, options + 1);
    }
    read_own_paths(cg);
    return 0;
}

void cg_close(struct cg *cg)
{
    for (size_t i = 0; cg && i < cg->count; i++) {
        if (cg->h[i].fd >= 0) {
            close(cg->h[i].fd);
        }
        if (cg->h[i].enter_fd >= 0) {
            close(cg->h[i].enter_fd);
        }
        cg->h[i].fd = -1;
        cg->h[i].enter_fd = -1;
    }
    if (cg) {
        cg->count = 0;
        arena_free(&cg->arena);
    }
}

struct cg_hierarchy *cg_find(struct cg *cg, const char *controller)
{
    struct cg_hierarchy *v2 = NULL;
    for (size_t i = 0; i < cg->count; i++) {
        if (has_word(cg->h[i].controllers, controller, strlen(controller))) {
            if (!cg->h[i].v2) {
                return &cg->h[i];
            }
            v2 = &cg->h[i];
        }
    }
    return v2;
}

struct cg_hierarchy *cg_v2(struct cg *cg)
{
    for (size_t i = 0; i < cg->count; i++) {
        if (cg->h[i].v2) {
            return &cg->h[i];
        }
    }
    return NULL;
}

/* Where a caller without rights over the host's cgroups may make one, if anywhere: beside its own, where that
 * is delegated too (cgroup-v2.rst "No Internal Process Constraint"), or below it. */
static const char *delegated_parent(struct cg *cg, const struct cg_hierarchy *h)
{
    char dir[PATH_MAX];
    size_t n = strlen(h->own);
    while (n > 0 && h->own[n - 1] != '/') {
        n--;
    }
    const char *above = arena_printf(&cg->arena, "%.*s", (int)(n > 0 ? n - 1 : 0), h->own);
    size_t root = strlen(h->root);
    bool inside = root > 1 && strncmp(above, h->root, root) == 0;
    snprintf(dir, sizeof(dir), "%s%s", h->mount, inside ? above + root : above);
    return above[0] && access(dir, W_OK) == 0 ? above : strcmp(h->own, "/") == 0 ? "" : h->own;
}

static const char *default_parent(const struct cg *cg)
{
    return cg->parent ? cg->parent : CG_DEFAULT_PARENT;
}

int cg_choose(struct cg *cg, const char *cgroups_path, const char *id, struct err *err)
{
    if (cgroups_path) {
        size_t n = strlen(cgroups_path);
        if (strstr(cgroups_path, "..") || n >= PATH_MAX / 2) {
            return err_set(err, -EINVAL, "linux.cgroupsPath '%.64s' is not a plain path", cgroups_path);
        }
        if (strchr(cgroups_path, ':') && cgroups_path[0] != '/') {
            return err_set(err, -EINVAL, "linux.cgroupsPath '%s' is meant for --systemd-cgroup",
                           cgroups_path);
        }
        char *path = arena_printf(&cg->arena, "/%s", cgroups_path + strspn(cgroups_path, "/"));
        for (n = strlen(path); n > 1 && path[n - 1] == '/'; n--) {
            path[n - 1] = '\0';
        }
        if (n <= 1) {
            return err_set(err, -EINVAL, "linux.cgroupsPath '%s' is the root of the hierarchy", cgroups_path);
        }
        cg->path = path;
        return 0;
    }
    struct cg_hierarchy *h = cg_v2(cg);
    h = h ? h : cg->count ? &cg->h[0] : NULL;
    const char *parent = default_parent(cg);
    if (h && (geteuid() != 0 || (!ns_in_initial_user() && strcmp(h->own, "/") != 0))) {
        parent = delegated_parent(cg, h);
    }
    cg->path = arena_printf(&cg->arena, "%s/%s", parent, id);
    return 0;
}

/* The container's directory in a hierarchy, or one above: the first `length` bytes of the path. */
static void directory(const struct cg *cg, const struct cg_hierarchy *h, size_t length, char *text,
                      size_t room)
{
    const char *path = cg->path;
    size_t root = strlen(h->root);
    /* In a nested place only a part of the hierarchy is mounted; a path that says so is taken relative to
     * that. */
    if (root > 1 && strncmp(path, h->root, root) == 0 && path[root] == '/' && length > root) {
        path += root;
        length -= root;
    }
    snprintf(text, room, "%s%.*s", h->mount, (int)length, path);
}

void cg_directory(const struct cg *cg, const struct cg_hierarchy *h, char *text, size_t room)
{
    directory(cg, h, strlen(cg->path), text, room);
}

/* cpuset(7): a new v1 cpuset is empty, and takes processes only when it has CPUs and nodes. */
static int inherit_cpuset(const char *dir, struct err *err)
{
    static const char *const files[] = {"cpuset.cpus", "cpuset.mems"};
    auto_close int fd = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
    for (size_t i = 0; i < ARRAY_SIZE(files); i++) {
        char text[4096];
        char parent[32];
        if (cg_read(fd, files[i], text, sizeof(text)) != 0) {
            continue; /* has some already */
        }
        snprintf(parent, sizeof(parent), "../%s", files[i]);
        int rc = cg_read(fd, parent, text, sizeof(text));
        if (rc < 0 || (rc > 0 && (rc = write_file_at(fd, files[i], text)) < 0)) {
            return err_sys(err, rc, "cannot set up '%s/%s'", dir, files[i]);
        }
    }
    return 0;
}

/* cgroups(7) "subtree_control": each level hands its controllers down, those that it may. */
static void hand_down(const struct cg *cg, const struct cg_hierarchy *h, const char *dir)
{
    char names[512];
    char line[520];
    auto_close int fd = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || cg_read(fd, "cgroup.controllers", names, sizeof(names)) <= 0) {
        return;
    }
    char *save = NULL;
    for (char *name = strtok_r(names, " ", &save); name; name = strtok_r(NULL, " ", &save)) {
        snprintf(line, sizeof(line), "+%s", name);
        int rc = write_file_at(fd, "cgroup.subtree_control", line);
        if (rc < 0) { /* a limit that needs it will say so */
            log_debug("cannot enable controller %s below %s: %s", name, dir, strerror(-rc));
        }
    }
}

static int make_in(struct cg *cg, struct cg_hierarchy *h, struct err *err)
{
    char dir[PATH_MAX];
    size_t length = strlen(cg->path);
    bool pure_v2 = h->v2 && cg->count == 1;
    bool cpuset = !h->v2 && has_word(h->controllers, "cpuset", 6);
    for (int tries = 0;; tries++) {
        int rc = 0;
        for (size_t n = 0; rc == 0 && n < length;) {
            if (pure_v2) {
                directory(cg, h, n, dir, sizeof(dir));
                hand_down(cg, h, dir);
            }
            n++;
            n += strcspn(cg->path + n, "/");
            directory(cg, h, n, dir, sizeof(dir));
            bool made = mkdir(dir, 0755) == 0;
            h->made_from = made && !h->made_from ? n : h->made_from;
            if (!made && errno == EEXIST && n == length && cg->unit) {
                made = true; /* by systemd, for us */
            } else if (!made && errno == EEXIST && n == length) {
                /* Another container's, or left by one that was killed: nobody may be in it. */
                made = rmdir(dir) == 0 && mkdir(dir, 0755) == 0;
                if (!made) {
                    return err_set(err, -EEXIST, "cgroup '%s' exists already and is in use", dir);
                }
            } else if (!made && errno != EEXIST) {
                rc = -errno;
            }
            if (rc == 0 && n == length) {
                h->created = made;
            }
            if (rc == 0 && cpuset && (rc = inherit_cpuset(dir, err)) < 0) {
                return rc;
            }
        }
        if (rc == 0) {
            break;
        }
        if (rc != -ENOENT || tries == 10) { /* ENOENT: somebody's delete took the parent away in between */
            return err_sys(err, rc, "cannot make cgroup '%s'", dir);
        }
    }
    h->fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return h->fd < 0 ? err_sys(err, -errno, "cannot open cgroup '%s'", dir) : 0;
}

int cg_create(struct cg *cg, json_t *resources, struct err *err)
{
    for (size_t i = 0; i < cg->count; i++) {
        int rc = fault_step("cgroup", err);
        if (rc < 0) {
            return rc;
        }
        rc = make_in(cg, &cg->h[i], err);
        if (cg->may_skip && (rc == -EACCES || rc == -EPERM || rc == -EROFS)) {
            cg->skipped = true;
            continue;
        }
        if (rc < 0) {
            return rc;
        }
    }
    return 0;
}

int cg_attach(struct cg *cg, struct err *err)
{
    for (size_t i = 0; cg->path && i < cg->count; i++) {
        char dir[PATH_MAX];
        directory(cg, &cg->h[i], strlen(cg->path), dir, sizeof(dir));
        cg->h[i].fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        cg->h[i].created = cg->h[i].fd >= 0;
        if (cg->h[i].fd < 0 && errno != ENOENT && errno != EACCES) {
            return err_sys(err, -errno, "cannot open cgroup '%s'", dir);
        }
    }
    return 0;
}

int cg_clone_fd(const struct cg *cg)
{
    for (size_t i = 0; i < cg->count; i++) {
        if (cg->h[i].v2) {
            return cg->h[i].fd;
        }
    }
    return -1;
}

int cg_prepare_enter(struct cg *cg, struct err *err)
{
    for (size_t i = 0; i < cg->count; i++) {
        struct cg_hierarchy *h = &cg->h[i];
        if (h->fd < 0) {
            continue;
        }
        h->enter_fd = openat(h->fd, h->v2 ? "cgroup.procs" : "tasks", O_WRONLY | O_CLOEXEC);
        if (h->enter_fd < 0) {
            return err_sys(err, -errno, "cannot open cgroup '%s%s'", h->mount, cg->path);
        }
    }
    return 0;
}

int cg_enter(struct cg *cg, bool in_v2_already, struct err *err)
{
    for (size_t i = 0; i < cg->count; i++) {
        struct cg_hierarchy *h = &cg->h[i];
        if (h->enter_fd >= 0 && !(h->v2 && in_v2_already) && write(h->enter_fd, "0", 1) < 0) {
            return err_sys(err, -errno, "cannot join cgroup '%s%s'", h->mount, cg->path);
        }
    }
    return 0;
}

/* Removes what is below, then the directory itself; bounded by the depth that the kernel allows paths to
 * have. */
static int remove_tree(int parent, const char *name, unsigned depth)
{
    if (unlinkat(parent, name, AT_REMOVEDIR) == 0 || errno == ENOENT) {
        return 0;
    }
    int code = -errno;
    int fd = depth > 64 ? -1 : openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    if (!dir) {
        return code;
    }
    for (struct dirent *e; (e = readdir(dir));) {
        if (e->d_type == DT_DIR && strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0) {
            remove_tree(fd, e->d_name, depth + 1);
        }
    }
    closedir(dir);
    return unlinkat(parent, name, AT_REMOVEDIR) == 0 || errno == ENOENT ? 0 : -errno;
}

int cg_remove(struct cg *cg, struct err *err)
{
    int result = 0;
    for (size_t i = 0; cg->path && i < cg->count; i++) {
        struct cg_hierarchy *h = &cg->h[i];
        char dir[PATH_MAX];
        if (h->fd >= 0) {
            close(h->fd);
            h->fd = -1;
        }
        if (h->enter_fd >= 0) {
            close(h->enter_fd);
            h->enter_fd = -1;
        }
        if (!h->created) {
            continue;
        }
        directory(cg, h, strlen(cg->path), dir, sizeof(dir));
        int rc = remove_tree(AT_FDCWD, dir, 0);
        for (int tries = 0; rc == -EBUSY && tries < CG_REMOVE_TRIES; tries++) {
            usleep(tries < 20 ? 500 : 5000); /* the last process is still going away */
            rc = remove_tree(AT_FDCWD, dir, 0);
        }
        if (rc < 0) {
            result = err_sys(err, rc, "cannot remove cgroup '%s'", dir);
            continue;
        }
        h->created = false;
        for (size_t n = strlen(cg->path); h->made_from && n > h->made_from;) {
            while (cg->path[--n] != '/') {
            }
            directory(cg, h, n, dir, sizeof(dir));
            rmdir(dir); /* fails while others are in it */
        }
        /* systemd clears its own hierarchy; slices in the others were made for us alone, or are in use. */
        for (size_t n = cg->unit && !h->v2 ? strlen(cg->path) : 0; n > 1;) {
            while (n > 0 && cg->path[--n] != '/') {
            }
            directory(cg, h, n, dir, sizeof(dir));
            if (n == 0 || rmdir(dir) < 0) {
                break;
            }
        }
        size_t above = strlen(default_parent(cg));
        if (strncmp(cg->path, default_parent(cg), above) == 0 && cg->path[above] == '/') {
            directory(cg, h, above, dir, sizeof(dir));
            rmdir(dir); /* fails while others are in it */
        }
    }
    return result;
}
