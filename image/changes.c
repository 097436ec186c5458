#include "image/changes.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "image/fs.h"
#include "image/layer.h"
#include "image/limits.h"

struct walk {
    const int *a, *b;
    unsigned a_count, b_count;
    int upper;
    image_change_fn fn;
    void *opaque;
    struct err *err;
};

static void free_names(char **names)
{
    for (size_t i = 0; names && names[i]; i++) {
        free(names[i]);
    }
    free(names);
}

static int join(char out[static PATH_MAX], const char *path, const char *name)
{
    return snprintf(out, PATH_MAX, "%s%s%s", path, *path ? "/" : "", name) >= PATH_MAX ? -ENAMETOOLONG : 0;
}

static bool same_metadata(const struct stat *x, const struct stat *y)
{
    if (x->st_mode != y->st_mode || x->st_uid != y->st_uid || x->st_gid != y->st_gid) {
        return false;
    }
    if (S_ISDIR(x->st_mode)) {
        return true;
    }
    if ((S_ISCHR(x->st_mode) || S_ISBLK(x->st_mode)) && x->st_rdev != y->st_rdev) {
        return false;
    }
    return x->st_size == y->st_size && x->st_mtim.tv_sec == y->st_mtim.tv_sec &&
           x->st_mtim.tv_nsec == y->st_mtim.tv_nsec;
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* All names of one folder, sorted, whiteouts too. */
static int raw_names(int dir, char ***ret_names)
{
    struct dirent **list = NULL;
    char path[FS_PROC_MAX];
    fs_proc_path(dir, path);
    int n = scandir(path, &list, NULL, NULL), used = 0;
    char **names = n < 0 ? NULL : calloc((size_t)n + 1, sizeof(*names));
    for (int i = 0; i < n; i++) {
        if (names && strcmp(list[i]->d_name, ".") != 0 && strcmp(list[i]->d_name, "..") != 0) {
            names[used] = strdup(list[i]->d_name);
            used += names[used] != NULL;
        }
        free(list[i]);
    }
    free(list);
    if (!names) {
        return -ENOMEM;
    }
    qsort(names, (size_t)used, sizeof(*names), by_text); /* scandir's alphasort goes by the locale */
    *ret_names = names;
    return 0;
}

static int deleted_below(struct walk *w, const char *path, char **present)
{
    char **old = NULL;
    int rc = layer_list(w->a, w->a_count, path, &old, w->err);
    size_t j = 0;
    for (size_t i = 0; rc == 0 && old[i]; i++) {
        char below[PATH_MAX];
        while (present[j] && strcmp(present[j], old[i]) < 0) {
            j++;
        }
        if ((!present[j] || strcmp(present[j], old[i]) != 0) && (rc = join(below, path, old[i])) == 0) {
            rc = w->fn(w->opaque, IMAGE_DELETED, below);
        }
    }
    free_names(old);
    return rc;
}

static int walk_upper(struct walk *w, int dir, const char *path, bool fresh, unsigned depth)
{
    char **names = NULL;
    if (depth > IMAGE_TREE_DEPTH_MAX) {
        return err_set(w->err, -ELOOP, "the tree is deeper than IMAGE_TREE_DEPTH_MAX (%u)",
                       IMAGE_TREE_DEPTH_MAX);
    }
    int rc = raw_names(dir, &names);
    if (rc == 0 && !fresh && layer_is_opaque(dir)) {
        rc = deleted_below(w, path, names);
        fresh = true; /* lower contents are gone: everything here is new */
    }
    for (size_t i = 0; rc == 0 && names[i]; i++) {
        char below[PATH_MAX];
        struct stat st, old = {0};
        rc = join(below, path, names[i]);
        rc = rc < 0 ? rc : layer_stat(dir, names[i], &st);
        if (rc < 0) {
            break;
        }
        bool existed = layer_lookup(w->a, w->a_count, below, &old) >= 0;
        if (layer_is_whiteout(&st)) {
            rc = existed && !fresh ? w->fn(w->opaque, IMAGE_DELETED, below) : 0;
            continue;
        }
        bool both = existed && S_ISDIR(st.st_mode) && S_ISDIR(old.st_mode);
        if (!(both && !fresh && same_metadata(&st, &old))) {
            rc = w->fn(w->opaque, existed ? IMAGE_CHANGED : IMAGE_ADDED, below);
        }
        if (rc == 0 && S_ISDIR(st.st_mode)) {
            auto_close int sub = openat(dir, names[i], O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
            rc = sub < 0 ? -errno : walk_upper(w, sub, below, fresh || !both, depth + 1);
        }
    }
    free_names(names);
    return rc;
}

int changes_of_upper(int upper, const int *stack, unsigned count, image_change_fn fn, void *opaque,
                     struct err *err)
{
    struct err own = {0};
    struct walk w = {.a = stack, .a_count = count, .fn = fn, .opaque = opaque, .err = err ? err : &own};
    w.err->code = 0;
    int rc = walk_upper(&w, upper, "", false, 0);
    return rc < 0 && !w.err->code ? err_sys(err, rc, "cannot compare layers") : rc;
}

static int walk_between(struct walk *w, const char *path, unsigned depth)
{
    char **old = NULL, **new = NULL;
    if (depth > IMAGE_TREE_DEPTH_MAX) {
        return err_set(w->err, -ELOOP, "the tree is deeper than IMAGE_TREE_DEPTH_MAX (%u)",
                       IMAGE_TREE_DEPTH_MAX);
    }
    int rc = layer_list(w->a, w->a_count, path, &old, w->err);
    rc = rc < 0 ? rc : layer_list(w->b, w->b_count, path, &new, w->err);
    for (size_t i = 0, j = 0; rc == 0 && (old[i] || new[j]);) {
        int order = !old[i] ? 1 : !new[j] ? -1 : strcmp(old[i], new[j]);
        char below[PATH_MAX];
        struct stat x, y;
        rc = join(below, path, order < 0 ? old[i] : new[j]);
        if (rc == 0 && order < 0) {
            rc = w->fn(w->opaque, IMAGE_DELETED, below);
        } else if (rc == 0) {
            bool existed = order == 0 && layer_lookup(w->a, w->a_count, below, &x) >= 0;
            int layer = layer_lookup(w->b, w->b_count, below, &y);
            if (layer < 0) {
                rc = -EIO;
            } else if (!existed || !same_metadata(&x, &y)) {
                rc = w->fn(w->opaque, existed ? IMAGE_CHANGED : IMAGE_ADDED, below);
            }
            if (rc == 0 && S_ISDIR(y.st_mode)) {
                rc = walk_between(w, below, depth + 1);
            }
        }
        i += order <= 0;
        j += order >= 0;
    }
    free_names(old);
    free_names(new);
    return rc;
}

int changes_between(const int *a, unsigned a_count, const int *b, unsigned b_count, image_change_fn fn,
                    void *opaque, struct err *err)
{
    struct err own = {0};
    struct walk w = {.a = a,
                     .a_count = a_count,
                     .b = b,
                     .b_count = b_count,
                     .fn = fn,
                     .opaque = opaque,
                     .err = err ? err : &own};
    w.err->code = 0;
    int rc = walk_between(&w, "", 0);
    return rc < 0 && !w.err->code ? err_sys(err, rc, "cannot compare trees") : rc;
}
