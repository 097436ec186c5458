/*
 * Writable layers: containers/NAME/ with upper and work for overlayfs, merged as the place to mount, and
 * layer.json, which says what image is below. Where overlayfs can't be had, merged is a plain copy.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>

#include "image/changes.h"
#include "image/fs.h"
#include "image/image_int.h"
#include "image/layer.h"
#include "image/limits.h"

#define NAME_CHARACTERS "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-"

static int check_name(const char *name, struct err *err)
{
    size_t length = strlen(name);
    if (length == 0 || length > 128 || strspn(name, NAME_CHARACTERS) != length || strchr("_.-", name[0])) {
        return err_set(
            err, -EINVAL,
            "'%s' is not a name for a container: it has letters, digits, '_', '.' and '-', at most 128",
            name);
    }
    return 0;
}

void image_rootfs_close(struct image_rootfs *rootfs)
{
    if (rootfs) {
        for (size_t i = 0; rootfs->lower && rootfs->lower[i]; i++) {
            free(rootfs->lower[i]);
        }
        free(rootfs->lower);
        free(rootfs->name);
        free(rootfs->dir);
        free(rootfs->upper);
        free(rootfs->work);
        free(rootfs);
    }
}

static int fill(struct image_store *store, const char *name, const struct image *image, bool flattened,
                struct image_rootfs **ret_rootfs, struct err *err)
{
    struct image_rootfs *r = calloc(1, sizeof(*r));
    bool good = r && (r->lower = calloc(image->config.diff_count + 2, sizeof(*r->lower)));
    good = good && (r->name = strdup(name)) &&
           asprintf(&r->dir, "%s/containers/%s/merged", store->path, name) >= 0 &&
           asprintf(&r->upper, "%s/containers/%s/upper", store->path, name) >= 0 &&
           asprintf(&r->work, "%s/containers/%s/work", store->path, name) >= 0;
    for (unsigned i = 0; good && i < image->config.diff_count; i++) {
        char path[STORE_LAYER_MAX];
        store_layer_path(image->chain_ids[image->config.diff_count - 1 - i], path);
        good = asprintf(&r->lower[i], "%s/%s", store->path, path) >= 0;
    }
    /* overlayfs wants a lower folder, also below an image without layers: an empty one. */
    if (good && image->config.diff_count == 0) {
        good = asprintf(&r->lower[0], "%s/containers/%s/empty", store->path, name) >= 0;
    }
    if (!good) {
        image_rootfs_close(r);
        return err_set(err, -ENOMEM, "no memory");
    }
    strcpy(r->manifest, image->manifest.digest);
    r->flattened = flattened;
    r->store = store;
    *ret_rootfs = r;
    return 0;
}

static int write_record(struct image_store *store, const char *folder, const struct descriptor *manifest,
                        bool flattened, struct err *err)
{
    char path[STORE_TEMP_MAX + NAME_MAX];
    snprintf(path, sizeof(path), "%s/layer.json", folder);
    json_t *root = json_pack("{s:o, s:b, s:I}", "image", descriptor_json(manifest), "flattened", flattened,
                             "created", (json_int_t)time(NULL));
    auto_free char *text = root ? json_dumps(root, JSON_INDENT(1)) : NULL;
    json_decref(root);
    return text ? fs_write_file(store->fd, path, text, strlen(text), err)
                : err_set(err, -ENOMEM, "no memory");
}

int image_rootfs_create(struct image_store *store, struct image *image, const char *name,
                        struct image_rootfs **ret_rootfs, struct err *err)
{
    char folder[STORE_TEMP_MAX + NAME_MAX], path[2 * NAME_MAX + STORE_TEMP_MAX], temporary[STORE_TEMP_MAX];
    int rc = check_name(name, err);
    auto_close int lock = rc < 0 ? -1 : store_lock(store, false, true, err);
    if (lock < 0) {
        return rc < 0 ? rc : lock;
    }
    snprintf(folder, sizeof(folder), "containers/%s", name);
    if (faccessat(store->fd, folder, F_OK, 0) == 0) {
        return err_set(err, -EEXIST, "a container layer '%s' is there already", name);
    }
    for (unsigned i = 0; i < image->config.diff_count; i++) {
        if (!store_has_layer(store, image->chain_ids[i])) {
            return err_set(err, -ENOENT, "layer %.19s of the image is not unpacked", image->chain_ids[i]);
        }
    }
    /* Whole, or not at all: made in tmp/ and renamed. */
    int probe = store_temp(store, temporary, err);
    if (probe < 0) {
        return probe;
    }
    close(probe);
    unlinkat(store->fd, temporary, 0);
    static const char *const parts[] = {"", "/upper", "/work", "/merged", "/empty"};
    for (unsigned i = 0; rc == 0 && i < ARRAY_SIZE(parts); i++) {
        snprintf(path, sizeof(path), "%s%s", temporary, parts[i]);
        rc = mkdirat(store->fd, path, i < 1 ? 0711 : 0755) < 0
                 ? err_sys(err, -errno, "cannot make '%s'", path)
                 : 0;
    }
    /* The mounted root has the attributes of upper. */
    int *stack = NULL;
    rc = rc < 0 ? rc : image_stack(store, image, &stack, err);
    struct stat st;
    if (rc == 0 && image->config.diff_count && layer_stat(stack[0], "", &st) == 0) {
        snprintf(path, sizeof(path), "%s/upper", temporary);
        auto_close int upper = openat(store->fd, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        rc = layer_set_owner(upper, "", st.st_uid, st.st_gid, st.st_mode, err);
        (void)fs_copy_xattrs(stack[0], upper);
        struct timespec times[2] = {st.st_atim, st.st_mtim};
        (void)futimens(upper, times);
    }
    layer_close_stack(stack, image->config.diff_count);
    rc = rc < 0 ? rc : write_record(store, temporary, &image->manifest, false, err);
    if (rc == 0 && renameat2(store->fd, temporary, store->fd, folder, RENAME_NOREPLACE) < 0) {
        rc = err_sys(err, -errno, "cannot make container layer '%s'", name);
    }
    if (rc < 0) {
        fs_remove_tree(store->fd, temporary);
        return rc;
    }
    return fill(store, name, image, false, ret_rootfs, err);
}

int image_rootfs_open(struct image_store *store, const char *name, struct image_rootfs **ret_rootfs,
                      struct err *err)
{
    char path[STORE_TEMP_MAX + NAME_MAX];
    auto_free char *text = NULL;
    struct descriptor d;
    struct image *image = NULL;
    int rc = check_name(name, err);
    if (rc < 0) {
        return rc;
    }
    snprintf(path, sizeof(path), "containers/%s/layer.json", name);
    rc = fs_read_file(store->fd, path, IMAGE_STORE_JSON_MAX, &text, NULL, err);
    if (rc < 0) {
        return rc == -ENOENT ? err_set(err, rc, "no container layer '%s'", name) : rc;
    }
    json_t *root = json_loads(text, 0, NULL);
    bool flattened = json_is_true(json_object_get(root, "flattened"));
    rc = descriptor_parse(json_object_get(root, "image"), "the container layer's image", &d, err);
    json_decref(root);
    rc = rc < 0 ? rc : image_from_manifest(store, "", &d, &image, err);
    rc = rc < 0 ? rc : fill(store, name, image, flattened, ret_rootfs, err);
    image_free(image);
    return rc;
}

static int open_lower(const struct image_rootfs *rootfs, int **ret_stack, unsigned *ret_count,
                      struct err *err)
{
    unsigned count = 0;
    while (rootfs->lower[count]) {
        count++;
    }
    int *stack = malloc((count + 1) * sizeof(*stack));
    for (unsigned i = 0; stack && i < count; i++) {
        stack[i] = open(rootfs->lower[i], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (stack[i] < 0) {
            int rc = err_sys(err, -errno, "cannot open layer '%s'", rootfs->lower[i]);
            layer_close_stack(stack, i);
            return rc;
        }
    }
    *ret_stack = stack;
    *ret_count = count;
    return stack ? 0 : err_set(err, -ENOMEM, "no memory");
}

/* By the new mount API: one call for each lower folder ("lowerdir+", Linux 6.5), so their number has no limit
 * by length. */
static int mount_new(const struct image_rootfs *rootfs, const char *target)
{
    auto_close int fs = (int)syscall(SYS_fsopen, "overlay", FSOPEN_CLOEXEC);
    int rc = fs < 0 ? -errno : 0;
    for (size_t i = 0; rc == 0 && rootfs->lower[i]; i++) {
        rc =
            syscall(SYS_fsconfig, fs, FSCONFIG_SET_STRING, "lowerdir+", rootfs->lower[i], 0) < 0 ? -errno : 0;
    }
    if (rc == 0 && (syscall(SYS_fsconfig, fs, FSCONFIG_SET_STRING, "upperdir", rootfs->upper, 0) < 0 ||
                    syscall(SYS_fsconfig, fs, FSCONFIG_SET_STRING, "workdir", rootfs->work, 0) < 0 ||
                    syscall(SYS_fsconfig, fs, FSCONFIG_SET_FLAG, "userxattr", NULL, 0) < 0 ||
                    syscall(SYS_fsconfig, fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0) < 0)) {
        rc = -errno;
    }
    auto_close int mnt = rc < 0 ? -1 : (int)syscall(SYS_fsmount, fs, FSMOUNT_CLOEXEC, 0);
    if (rc == 0 &&
        (mnt < 0 || syscall(SYS_move_mount, mnt, "", AT_FDCWD, target, MOVE_MOUNT_F_EMPTY_PATH) < 0)) {
        rc = -errno;
    }
    return rc;
}

static int mount_old(const struct image_rootfs *rootfs, const char *target)
{
    char data[4096] = "userxattr,lowerdir=";
    size_t used = strlen(data);
    for (size_t i = 0; rootfs->lower[i]; i++) {
        if (strpbrk(rootfs->lower[i], ":,\\")) {
            return -EINVAL;
        }
        int n = snprintf(data + used, sizeof(data) - used, "%s%s", i ? ":" : "", rootfs->lower[i]);
        used += (size_t)n;
        if (used >= sizeof(data)) {
            return -E2BIG;
        }
    }
    int n =
        snprintf(data + used, sizeof(data) - used, ",upperdir=%s,workdir=%s", rootfs->upper, rootfs->work);
    return used + (size_t)n >= sizeof(data)                   ? -E2BIG
           : mount("overlay", target, "overlay", 0, data) < 0 ? -errno
                                                              : 0;
}

static int flatten(struct image_rootfs *rootfs, struct err *err)
{
    int *stack = NULL;
    unsigned count = 0;
    char path[2 * NAME_MAX + STORE_TEMP_MAX], folder[STORE_TEMP_MAX + NAME_MAX];
    struct image_store *store = rootfs->store;
    struct descriptor d;
    int rc = open_lower(rootfs, &stack, &count, err);
    if (rc < 0) {
        return rc;
    }
    snprintf(folder, sizeof(folder), "containers/%s", rootfs->name);
    snprintf(path, sizeof(path), "%s/merged", folder);
    rc = fs_remove_tree(store->fd, path);
    rc = rc == 0 && mkdirat(store->fd, path, 0755) < 0 ? -errno : rc;
    auto_close int to = rc < 0 ? -1 : openat(store->fd, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    rc = to < 0 ? err_sys(err, rc < 0 ? rc : -errno, "cannot make '%s'", path)
                : layer_flatten(stack, count, to, err);
    layer_close_stack(stack, count);
    if (rc == 0) {
        auto_free char *text = NULL;
        snprintf(path, sizeof(path), "%s/layer.json", folder);
        rc = fs_read_file(store->fd, path, IMAGE_STORE_JSON_MAX, &text, NULL, err);
        json_t *root = rc < 0 ? NULL : json_loads(text, 0, NULL);
        rc = rc < 0
                 ? rc
                 : descriptor_parse(json_object_get(root, "image"), "the container layer's image", &d, err);
        json_decref(root);
        rc = rc < 0 ? rc : write_record(store, folder, &d, true, err);
    }
    rootfs->flattened = rc == 0;
    return rc;
}

int image_rootfs_mount(struct image_rootfs *rootfs, const char *target, struct err *err)
{
    if (rootfs->flattened) {
        return 0;
    }
    int rc = fs_forced("no-overlay") || layer_owners_in_xattr()
                 ? -EOPNOTSUPP
                 : mount_new(rootfs, target ? target : rootfs->dir);
    if (rc < 0 && !fs_forced("no-overlay") && !layer_owners_in_xattr()) {
        rc = mount_old(rootfs, target ? target : rootfs->dir);
    }
    if (rc == 0) {
        rootfs->mounted = true;
        return 0;
    }
    rc = flatten(rootfs, err);
    return rc < 0 ? err_prefix(err, "cannot copy the layers of '%s'", rootfs->name) : 0;
}

int image_rootfs_unmount(struct image_rootfs *rootfs, struct err *err)
{
    if (rootfs->mounted && umount2(rootfs->dir, MNT_DETACH) < 0) {
        return err_sys(err, -errno, "cannot unmount '%s'", rootfs->dir);
    }
    rootfs->mounted = false;
    return 0;
}

int image_rootfs_remove(struct image_store *store, const char *name, struct err *err)
{
    char folder[STORE_TEMP_MAX + NAME_MAX], gone[STORE_TEMP_MAX + NAME_MAX], merged[PATH_MAX];
    int rc = check_name(name, err);
    if (rc < 0) {
        return rc;
    }
    snprintf(folder, sizeof(folder), "containers/%s", name);
    snprintf(merged, sizeof(merged), "%s/%s/merged", store->path, folder);
    while (umount2(merged, MNT_DETACH) == 0) {
    }
    /* Renamed first: a crash leaves something for prune, not half a container. */
    snprintf(gone, sizeof(gone), "tmp/gone-%d-%s", getpid(), name);
    if (renameat(store->fd, folder, store->fd, gone) < 0) {
        return errno == ENOENT ? err_set(err, -ENOENT, "no container layer '%s'", name)
                               : err_sys(err, -errno, "cannot remove container layer '%s'", name);
    }
    rc = fs_remove_tree(store->fd, gone);
    return rc < 0 ? err_sys(err, rc, "cannot remove '%s/%s'", store->path, gone) : 0;
}

int image_rootfs_names(struct image_store *store, char ***ret_names, struct err *err)
{
    size_t used = 0, room = 16;
    char **names = calloc(room, sizeof(*names));
    int fd = openat(store->fd, "containers", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *list = fd < 0 ? NULL : fdopendir(fd);
    for (struct dirent *e; names && list && (e = readdir(list));) {
        if (e->d_name[0] == '.') {
            continue;
        }
        if (used + 2 > room) {
            char **more = reallocarray(names, room *= 2, sizeof(*names));
            if (!more) {
                break;
            }
            names = more;
        }
        names[used] = strdup(e->d_name);
        used += names[used] != NULL;
        names[used] = NULL;
    }
    if (list) {
        closedir(list);
    }
    *ret_names = names;
    return names ? 0 : err_set(err, -ENOMEM, "no memory");
}

int image_rootfs_diff(struct image_rootfs *rootfs, image_change_fn fn, void *opaque, struct err *err)
{
    int *stack = NULL;
    unsigned count = 0;
    int rc = open_lower(rootfs, &stack, &count, err);
    auto_close int tree =
        rc < 0 ? -1
               : open(rootfs->flattened ? rootfs->dir : rootfs->upper, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (rc == 0) {
        rc = tree < 0            ? err_sys(err, -errno, "cannot open the layer of '%s'", rootfs->name)
             : rootfs->flattened ? changes_between(stack, count, &tree, 1, fn, opaque, err)
                                 : changes_of_upper(tree, stack, count, fn, opaque, err);
        layer_close_stack(stack, count);
    }
    return rc;
}

int image_diff(struct image_store *store, struct image *a, struct image *b, image_change_fn fn, void *opaque,
               struct err *err)
{
    int *new = NULL, *old = NULL;
    unsigned count = b->config.diff_count;
    int rc = image_stack(store, b, &new, err);
    if (rc == 0 && a) {
        rc = image_stack(store, a, &old, err);
        rc = rc < 0 ? rc : changes_between(old, a->config.diff_count, new, count, fn, opaque, err);
        layer_close_stack(old, a->config.diff_count);
    } else if (rc == 0 && count) {
        rc = changes_of_upper(new[0], new + 1, count - 1, fn, opaque, err);
    }
    layer_close_stack(new, count);
    return rc;
}
