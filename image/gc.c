/*
 * Names, and what may go: tag, remove, prune. Whatever a name, a container or the build cache reaches stays;
 * the rest is found by marking, under the lock that nobody else holds then.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "image/fs.h"
#include "image/image_int.h"
#include "image/limits.h"

/* ---- marks: a JSON object used as a set of hexadecimal digests ---- */

struct marks {
    json_t *blobs, *layers;
};

static void mark(json_t *set, const char *digest)
{
    json_object_set_new(set, digest_hex(digest), json_true());
}

static int mark_image(struct image_store *store, const struct descriptor *d, struct marks *marks,
                      unsigned depth, struct err *err)
{
    auto_free char *text = NULL;
    size_t size;
    enum document_kind kind;
    mark(marks->blobs, d->digest);
    if (!store_has_blob(store, d->digest)) {
        return 0;
    }
    int rc = store_read_blob(store, d, IMAGE_MANIFEST_MAX, &text, &size, err);
    if (rc == -EUCLEAN) {
        return 0; /* what a damaged image had can't be known, and it can't be used either */
    }
    rc = rc < 0 ? rc : document_kind(text, size, d->media_type, &kind, err);
    if (rc < 0) {
        return rc;
    }
    if (kind == DOCUMENT_INDEX) {
        struct image_index index;
        rc = depth < IMAGE_INDEX_DEPTH_MAX ? index_parse(text, size, &index, err) : 0;
        for (unsigned i = 0; rc == 0 && depth < IMAGE_INDEX_DEPTH_MAX && i < index.count; i++) {
            rc = mark_image(store, &index.entries[i].descriptor, marks, depth + 1, err);
        }
        if (rc == 0 && depth < IMAGE_INDEX_DEPTH_MAX) {
            index_free(&index);
        }
        return rc;
    }
    struct image *image = NULL;
    rc = image_from_manifest(store, "", d, &image, err);
    if (rc < 0) {
        return rc;
    }
    mark(marks->blobs, image->doc.config.digest);
    for (unsigned i = 0; i < image->doc.layer_count; i++) {
        mark(marks->blobs, image->doc.layers[i].digest);
        mark(marks->layers, image->chain_ids[i]);
    }
    image_free(image);
    return 0;
}

/* Manifests that containers stand on. */
static int each_container(struct image_store *store,
                          int (*fn)(void *opaque, const char *container, const struct descriptor *d),
                          void *opaque, struct err *err)
{
    char **names = NULL;
    int rc = image_rootfs_names(store, &names, err);
    for (size_t i = 0; rc == 0 && names[i]; i++) {
        auto_free char *text = NULL;
        char path[STORE_TEMP_MAX + NAME_MAX];
        struct descriptor d;
        snprintf(path, sizeof(path), "containers/%s/layer.json", names[i]);
        if (fs_read_file(store->fd, path, IMAGE_STORE_JSON_MAX, &text, NULL, NULL) == 0) {
            json_t *root = json_loads(text, 0, NULL);
            if (descriptor_parse(json_object_get(root, "image"), "a container's image", &d, NULL) == 0) {
                rc = fn(opaque, names[i], &d);
            }
            json_decref(root);
        }
    }
    for (size_t i = 0; names && names[i]; i++) {
        free(names[i]);
    }
    free(names);
    return rc;
}

struct mark_call {
    struct image_store *store;
    struct marks *marks;
    struct err *err;
};

static int mark_container(void *opaque, const char *container, const struct descriptor *d)
{
    struct mark_call *call = opaque;
    return mark_image(call->store, d, call->marks, 0, call->err);
}

/* The build cache: each record names the image that a step made. */
static int mark_cache(struct image_store *store, struct marks *marks, struct err *err)
{
    int fd = openat(store->fd, "cache", O_RDONLY | O_DIRECTORY | O_CLOEXEC), rc = 0;
    DIR *list = fd < 0 ? NULL : fdopendir(fd);
    for (struct dirent *e; list && rc == 0 && (e = readdir(list));) {
        auto_free char *text = NULL;
        struct descriptor d;
        if (e->d_name[0] != '.' &&
            fs_read_file(fd, e->d_name, IMAGE_STORE_JSON_MAX, &text, NULL, NULL) == 0) {
            json_t *root = json_loads(text, 0, NULL);
            if (descriptor_parse(root, "a build step", &d, NULL) == 0) {
                rc = mark_image(store, &d, marks, 0, err);
            }
            json_decref(root);
        }
    }
    if (list) {
        closedir(list);
    }
    return rc;
}

/* ---- sweeping ---- */

static uint64_t tree_bytes(int dir, const char *name, unsigned depth)
{
    struct stat st;
    if (fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) < 0) {
        return 0;
    }
    uint64_t total = (uint64_t)st.st_blocks * 512;
    int fd = S_ISDIR(st.st_mode) && depth < IMAGE_TREE_DEPTH_MAX
                 ? openat(dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
                 : -1;
    DIR *list = fd < 0 ? NULL : fdopendir(fd);
    for (struct dirent *e; list && (e = readdir(list));) {
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0) {
            total += tree_bytes(fd, e->d_name, depth + 1);
        }
    }
    if (list) {
        closedir(list);
    }
    return total;
}

/* Removes what isn't in keep (NULL: everything but lists of what is unsynced). */
static int sweep(struct image_store *store, const char *folder, const json_t *keep, unsigned *count,
                 uint64_t *freed, struct err *err)
{
    int fd = openat(store->fd, folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC), rc = 0;
    DIR *list = fd < 0 ? NULL : fdopendir(fd);
    for (struct dirent *e; list && rc == 0 && (e = readdir(list));) {
        if (e->d_name[0] == '.' ||
            (keep ? json_object_get(keep, e->d_name) != NULL : strncmp(e->d_name, "unsynced-", 9) == 0)) {
            continue;
        }
        *freed += tree_bytes(fd, e->d_name, 0);
        rc = fs_remove_tree(fd, e->d_name);
        if (rc < 0) {
            err_sys(err, rc, "cannot remove '%s/%s/%s'", store->path, folder, e->d_name);
        }
        *count += rc == 0;
    }
    if (list) {
        closedir(list);
    }
    return rc;
}

static int collect(struct image_store *store, struct image_prune *prune, struct err *err)
{
    struct marks marks = {json_object(), json_object()};
    struct store_entry *entries = NULL;
    size_t count = 0;
    unsigned ignored = 0;
    struct mark_call call = {store, &marks, err};
    int rc = store_entries(store, &entries, &count, err);
    for (size_t i = 0; rc == 0 && i < count; i++) {
        rc = mark_image(store, &entries[i].manifest, &marks, 0, err);
    }
    rc = rc < 0 ? rc : each_container(store, mark_container, &call, err);
    rc = rc < 0 ? rc : mark_cache(store, &marks, err);
    rc = rc < 0 ? rc : sweep(store, "layers", marks.layers, &prune->layers, &prune->freed_bytes, err);
    rc = rc < 0 ? rc : sweep(store, "blobs/sha256", marks.blobs, &prune->blobs, &prune->freed_bytes, err);
    rc = rc < 0 ? rc : sweep(store, "tmp", NULL, &ignored, &prune->freed_bytes, err);
    free(entries);
    json_decref(marks.blobs);
    json_decref(marks.layers);
    return rc;
}

struct find_user {
    const char *digest;
    char container[NAME_MAX + 1];
};

static int is_user(void *opaque, const char *container, const struct descriptor *d)
{
    struct find_user *find = opaque;
    if (strcmp(d->digest, find->digest) == 0) {
        snprintf(find->container, sizeof(find->container), "%s", container);
    }
    return 0;
}

int image_prune(struct image_store *store, struct image_prune *prune, struct err *err)
{
    auto_close int lock = store_lock(store, true, true, err);
    auto_free struct store_entry *entries = NULL;
    size_t count = 0;
    int rc = lock < 0 ? lock : 0;
    if (rc == 0 && prune->all) {
        unsigned ignored = 0;
        rc = store_entries(store, &entries, &count, err);
        for (size_t i = 0; rc == 0 && i < count; i++) {
            struct find_user find = {.digest = entries[i].manifest.digest};
            rc = each_container(store, is_user, &find, err);
            if (rc == 0 && !find.container[0]) {
                rc = store_untag(store, entries[i].name, err);
                prune->images += rc == 0;
            }
        }
        json_t *none = json_object();
        rc = rc < 0 ? rc : sweep(store, "cache", none, &ignored, &prune->freed_bytes, err);
        json_decref(none);
    }
    return rc < 0 ? rc : collect(store, prune, err);
}

int image_remove(struct image_store *store, const char *name, bool force, uint64_t *ret_freed,
                 struct err *err)
{
    auto_close int lock = store_lock(store, true, true, err);
    struct store_entry entry;
    auto_free struct store_entry *entries = NULL;
    size_t count = 0, same = 0;
    int rc = lock < 0 ? lock : store_find(store, name, &entry, err);
    rc = rc < 0 ? rc : store_entries(store, &entries, &count, err);
    for (size_t i = 0; rc == 0 && i < count; i++) {
        same += strcmp(entries[i].manifest.digest, entry.manifest.digest) == 0;
    }
    struct find_user find = {.digest = entry.manifest.digest};
    if (rc == 0 && same == 1) {
        rc = each_container(store, is_user, &find, err);
    }
    if (rc == 0 && find.container[0] && !force) {
        rc = err_set(err, -EBUSY, "image '%s' is used by container '%s': remove that first, or use --force",
                     name, find.container);
    }
    rc = rc < 0 ? rc : store_untag(store, entry.name, err);
    struct image_prune prune = {0};
    rc = rc < 0 ? rc : collect(store, &prune, err);
    if (rc == 0) {
        *ret_freed = prune.freed_bytes;
    }
    return rc;
}

int image_tag(struct image_store *store, const char *source, const char *name, struct err *err)
{
    struct store_entry entry;
    char key[REF_TEXT_MAX];
    auto_close int lock = store_lock(store, false, true, err);
    int rc = lock < 0 ? lock : image_name(name, true, key, err);
    rc = rc < 0 ? rc : store_find(store, source, &entry, err);
    return rc < 0 ? rc : store_tag(store, key, &entry.manifest, err);
}

int image_names(struct image_store *store, char (**ret_names)[REF_TEXT_MAX], size_t *ret_count,
                struct err *err)
{
    auto_free struct store_entry *entries = NULL;
    size_t count = 0;
    int rc = store_entries(store, &entries, &count, err);
    char(*names)[REF_TEXT_MAX] = rc < 0 ? NULL : calloc(count + 1, sizeof(*names));
    if (!names) {
        return rc < 0 ? rc : err_set(err, -ENOMEM, "no memory");
    }
    for (size_t i = 0; i < count; i++) {
        strcpy(names[i], entries[i].name);
    }
    *ret_names = names;
    *ret_count = count;
    return 0;
}
