/*
 * Layers in the store: making them (stage, then publish), and looking at a stack of them as overlayfs would
 * show it.
 */
#include "image/layer.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/xattr.h>

#include "image/fs.h"
#include "image/limits.h"
#include "image/ns.h"

/* ---- owners ---- */

int layer_stat(int dir, const char *name, struct stat *ret_stat)
{
    if (fstatat(dir, name, ret_stat, AT_SYMLINK_NOFOLLOW | (*name ? 0 : AT_EMPTY_PATH)) < 0) {
        return -errno;
    }
    if (!layer_owners_in_xattr() || (!S_ISREG(ret_stat->st_mode) && !S_ISDIR(ret_stat->st_mode))) {
        return 0;
    }
    char text[64], path[FS_PROC_MAX];
    auto_close int fd = openat(dir, *name ? name : ".", O_PATH | O_NOFOLLOW | O_CLOEXEC);
    fs_proc_path(fd, path);
    ssize_t n = getxattr(path, LAYER_STAT, text, sizeof(text) - 1);
    unsigned uid, gid, mode;
    if (n > 0) {
        text[n] = '\0';
        if (sscanf(text, "%u:%u:%o", &uid, &gid, &mode) == 3) {
            ret_stat->st_uid = uid;
            ret_stat->st_gid = gid;
            ret_stat->st_mode = (ret_stat->st_mode & S_IFMT) | (mode & 07777);
        }
    }
    return 0;
}

int layer_set_owner(int dir, const char *name, uid_t uid, gid_t gid, mode_t mode, struct err *err)
{
    auto_close int fd = openat(dir, *name ? name : ".", O_PATH | O_NOFOLLOW | O_CLOEXEC);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) < 0) {
        return err_sys(err, -errno, "cannot open '%s'", name);
    }
    char path[FS_PROC_MAX];
    fs_proc_path(fd, path);
    bool in_xattr = layer_owners_in_xattr();
    if (!in_xattr && fchownat(fd, "", uid, gid, AT_EMPTY_PATH) < 0) {
        if (errno == EINVAL) {
            return err_set(err, -EINVAL,
                           "belongs to %u:%u, which the ids of this user namespace don't reach: add a range "
                           "of 65536 ids to "
                           "/etc/subuid and /etc/subgid (usermod --add-subuids 100000-165535 --add-subgids "
                           "100000-165535 USER)",
                           uid, gid);
        }
        return err_sys(err, -errno, "cannot set the owner");
    }
    if (S_ISLNK(st.st_mode)) {
        return 0;
    }
    /* The own id alone has to be able to read and remove it. */
    mode_t kept = in_xattr ? (mode & 07777) | (S_ISDIR(st.st_mode) ? 0700 : 0600) : mode & 07777;
    if (chmod(path, kept) < 0) {
        return err_sys(err, -errno, "cannot set the mode");
    }
    if (in_xattr && (uid || gid || kept != (mode & 07777)) && (S_ISREG(st.st_mode) || S_ISDIR(st.st_mode))) {
        char text[64];
        int n = snprintf(text, sizeof(text), "%u:%u:%o", uid, gid, mode & 07777u);
        if (setxattr(path, LAYER_STAT, text, (size_t)n, 0) < 0 && errno != ENOTSUP) {
            return err_sys(err, -errno, "cannot keep the owner in an attribute");
        }
    }
    return 0;
}

bool layer_is_opaque(int dir)
{
    char value = 0;
    return fgetxattr(dir, LAYER_OPAQUE, &value, 1) == 1 && value == 'y';
}

/* ---- a stack of layers ---- */

/* 1: name is in the layer; 0: it isn't; -ENOENT: the layer hides it. *ret_opaque: lower layers add nothing to
 * it. */
static int look(int layer, const char *path, struct stat *ret_stat, bool *ret_opaque)
{
    *ret_opaque = false;
    if (!*path) {
        return layer_stat(layer, "", ret_stat) < 0 ? 0 : 1;
    }
    auto_close int dir = openat(layer, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    const char *p = path;
    while (true) {
        char name[NAME_MAX + 1];
        size_t n = strcspn(p, "/");
        snprintf(name, sizeof(name), "%.*s", (int)MIN(n, (size_t)NAME_MAX), p);
        if (layer_stat(dir, name, ret_stat) < 0) {
            return *ret_opaque ? -ENOENT : 0;
        }
        if (layer_is_whiteout(ret_stat)) {
            return -ENOENT;
        }
        if (!S_ISDIR(ret_stat->st_mode)) {
            return p[n] ? -ENOENT : 1;
        }
        int next = openat(dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (next < 0) {
            return -ENOENT;
        }
        close(dir);
        dir = next;
        *ret_opaque |= layer_is_opaque(dir);
        if (!p[n]) {
            return 1;
        }
        p += n + 1;
    }
}

int layer_lookup(const int *stack, unsigned count, const char *path, struct stat *ret_stat)
{
    for (unsigned i = 0; i < count; i++) {
        bool opaque;
        int found = look(stack[i], path, ret_stat, &opaque);
        if (found) {
            return found < 0 ? found : (int)i;
        }
    }
    return -ENOENT;
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

int layer_list(const int *stack, unsigned count, const char *path, char ***ret_names, struct err *err)
{
    size_t used = 0, room = 64;
    char **names = calloc(room, sizeof(*names));
    int rc = names ? 0 : -ENOMEM;
    for (unsigned i = 0; rc == 0 && i < count; i++) {
        struct stat st;
        bool opaque;
        int found = look(stack[i], path, &st, &opaque);
        if (found < 0 || (found && !S_ISDIR(st.st_mode))) {
            break;
        }
        int fd = found ? openat(stack[i], *path ? path : ".", O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
                       : -1;
        DIR *list = fd < 0 ? NULL : fdopendir(fd);
        for (struct dirent *e; list && rc == 0 && (e = readdir(list));) {
            if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0) {
                continue;
            }
            if (used + 2 > room) {
                char **more = reallocarray(names, room * 2, sizeof(*names));
                rc = more ? 0 : -ENOMEM;
                names = more ? more : names;
                room *= more ? 2 : 1;
            }
            if (rc == 0 && !(names[used] = strdup(e->d_name))) {
                rc = -ENOMEM;
            }
            used += rc == 0;
        }
        if (list) {
            closedir(list);
        }
        if (opaque) {
            break;
        }
    }
    if (rc < 0) {
        while (used) {
            free(names[--used]);
        }
        free(names);
        return err_set(err, rc, "no memory");
    }
    qsort(names, used, sizeof(*names), by_text);
    size_t kept = 0;
    for (size_t i = 0; i < used; i++) {
        char below[PATH_MAX];
        struct stat st;
        snprintf(below, sizeof(below), "%s%s%s", path, *path ? "/" : "", names[i]);
        if ((kept && strcmp(names[kept - 1], names[i]) == 0) || layer_lookup(stack, count, below, &st) < 0) {
            free(names[i]);
        } else {
            names[kept++] = names[i];
        }
    }
    names[kept] = NULL;
    *ret_names = names;
    return 0;
}

/* Lays one layer over a tree that has the lower ones already. */
static int apply_layer(int from, int to, unsigned depth, struct err *err)
{
    int list_fd = openat(from, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *list = list_fd < 0 || depth > IMAGE_TREE_DEPTH_MAX ? NULL : fdopendir(list_fd);
    if (!list) {
        if (list_fd >= 0) {
            close(list_fd);
        }
        return err_set(err, -ELOOP,
                       "cannot read a folder of a layer, or it is deeper than IMAGE_TREE_DEPTH_MAX");
    }
    int rc = 0;
    for (struct dirent *e; rc == 0 && (e = readdir(list));) {
        struct stat st, old;
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0 ||
            fstatat(from, e->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0) {
            continue;
        }
        bool exists = fstatat(to, e->d_name, &old, AT_SYMLINK_NOFOLLOW) == 0;
        auto_close int sub = S_ISDIR(st.st_mode)
                                 ? openat(from, e->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
                                 : -1;
        bool keep = sub >= 0 && exists && S_ISDIR(old.st_mode) && !layer_is_opaque(sub);
        if (exists && !keep) {
            rc = fs_remove_tree(to, e->d_name);
        }
        if (rc < 0) {
            err_sys(err, rc, "cannot replace '%s'", e->d_name);
        } else if (!layer_is_whiteout(&st)) {
            rc = fs_copy_node(from, e->d_name, to, e->d_name, err);
        }
        if (rc == 0 && sub >= 0) {
            auto_close int target = openat(to, e->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
            rc = target < 0 ? err_sys(err, -errno, "cannot open '%s'", e->d_name)
                            : apply_layer(sub, target, depth + 1, err);
            struct timespec times[2] = {st.st_atim, st.st_mtim};
            (void)utimensat(to, e->d_name, times, AT_SYMLINK_NOFOLLOW);
        }
    }
    closedir(list);
    return rc;
}

int layer_flatten(const int *stack, unsigned count, int to, struct err *err)
{
    int rc = 0;
    for (unsigned i = count; rc == 0 && i-- > 0;) {
        /* The lowest as a whole: its hard links stay links. */
        rc = i + 1 == count ? fs_copy_tree(stack[i], to, err) : apply_layer(stack[i], to, 0, err);
        struct stat st;
        if (rc == 0 && layer_stat(stack[i], "", &st) == 0) {
            rc = layer_set_owner(to, "", st.st_uid, st.st_gid, st.st_mode, err);
        }
    }
    return rc;
}

/* ---- in the store ---- */

static void stage_name(const char *chain_id, const char *suffix, char name[static STORE_TEMP_MAX])
{
    snprintf(name, STORE_TEMP_MAX, "tmp/%s.%s", digest_hex(chain_id), suffix);
}

int layer_stage(struct image_store *store, struct layer_job *job, struct err *err)
{
    char name[STORE_TEMP_MAX];
    job->lock = -1;
    if (store_has_layer(store, job->chain_id)) {
        return 0;
    }
    stage_name(job->chain_id, "layer", name);
    job->lock = store_lock_file(store, name, err);
    if (job->lock < 0) {
        return job->lock;
    }
    if (store_has_layer(store, job->chain_id)) {
        return 0; /* another process made it while this one waited */
    }
    stage_name(job->chain_id, "stage", name);
    int rc = fs_remove_tree(store->fd, name);
    if (rc == 0 && (mkdirat(store->fd, name, 0700) < 0)) {
        rc = -errno;
    }
    strcat(name, "/diff");
    if (rc == 0 && mkdirat(store->fd, name, 0755) < 0) {
        rc = -errno;
    }
    if (rc < 0) {
        return err_sys(err, rc, "cannot make '%s/%s'", store->path, name);
    }
    auto_close int diff = openat(store->fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    auto_close int blob = store_open_blob(store, job->blob, NULL, err);
    if (diff < 0 || blob < 0) {
        return diff < 0 ? err_sys(err, -errno, "cannot open '%s'", name) : blob;
    }
    struct layer_stream *stream = NULL;
    char diff_id[DIGEST_SIZE];
    uint64_t size = 0;
    rc = layer_stream_new(blob, store->layer_max, &stream, err);
    rc = rc < 0 ? rc : layer_unpack(stream, diff, &job->fixups, err);
    rc = rc < 0 ? rc : layer_stream_finish(stream, diff_id, &size, err);
    layer_stream_free(stream);
    if (rc == 0 && strcmp(diff_id, job->diff_id) != 0) {
        rc = err_set(err, -EBADMSG, "the layer unpacks to %s, but the image's config says %s", diff_id,
                     job->diff_id);
    }
    job->staged = rc == 0;
    return rc < 0 ? err_prefix(err, "layer %.19s", job->blob) : 0;
}

int layer_publish(struct image_store *store, struct layer_job *job, const char (*chain_ids)[DIGEST_SIZE],
                  unsigned index, struct err *err)
{
    char name[STORE_TEMP_MAX], path[STORE_LAYER_MAX];
    if (!job->staged) {
        return 0;
    }
    int *stack = NULL;
    stage_name(job->chain_id, "stage", name);
    size_t length = strlen(name);
    strcat(name, "/diff");
    auto_close int diff = openat(store->fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int rc = layer_open_stack(store, chain_ids, index, &stack, err);
    if (rc < 0) {
        return rc;
    }
    rc = layer_finish(job->fixups, diff, stack, index, err);
    job->fixups = NULL;
    layer_close_stack(stack, index);
    store_layer_path(job->chain_id, path);
    *strrchr(path, '/') = '\0';
    rc = rc < 0 ? rc : store_note_unsynced(store, path, err);
    name[length] = '\0';
    if (rc == 0) {
        (void)fs_remove_tree(store->fd, path);
        rc = renameat(store->fd, name, store->fd, path) < 0 ? err_sys(err, -errno, "cannot rename '%s'", name)
                                                            : 0;
    }
    job->staged = rc < 0;
    return rc;
}

void layer_job_done(struct image_store *store, struct layer_job *job)
{
    layer_fixups_free(job->fixups);
    job->fixups = NULL;
    if (job->lock >= 0) {
        char name[STORE_TEMP_MAX];
        stage_name(job->chain_id, "stage", name);
        (void)fs_remove_tree(store->fd, name);
        close(job->lock);
        job->lock = -1;
    }
}

void layer_close_stack(int *stack, unsigned count)
{
    for (unsigned i = 0; stack && i < count; i++) {
        if (stack[i] >= 0) {
            close(stack[i]);
        }
    }
    free(stack);
}

int layer_open_stack(struct image_store *store, const char (*chain_ids)[DIGEST_SIZE], unsigned count,
                     int **ret_stack, struct err *err)
{
    int *stack = malloc((count + 1) * sizeof(*stack));
    if (!stack) {
        return err_set(err, -ENOMEM, "no memory");
    }
    memset(stack, 0xff, (count + 1) * sizeof(*stack));
    for (unsigned i = 0; i < count; i++) {
        char path[STORE_LAYER_MAX];
        store_layer_path(chain_ids[count - 1 - i], path);
        stack[i] = openat(store->fd, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (stack[i] < 0) {
            int rc = err_sys(err, -errno, "the store's layer %.19s is not there", chain_ids[count - 1 - i]);
            layer_close_stack(stack, count);
            return rc;
        }
    }
    *ret_stack = stack;
    return 0;
}
