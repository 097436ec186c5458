/*
 * From a writable layer, or a tar, to an image.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "image/changes.h"
#include "image/fs.h"
#include "image/image_int.h"
#include "image/layer.h"
#include "image/limits.h"

static void timestamp(char ret_text[static 32])
{
    const char *epoch = getenv("SOURCE_DATE_EPOCH"); /* reproducible-builds.org's specification */
    time_t now = epoch ? (time_t)strtoll(epoch, NULL, 10) : time(NULL);
    struct tm tm;
    gmtime_r(&now, &tm);
    strftime(ret_text, 32, "%Y-%m-%dT%H:%M:%SZ", &tm);
}

struct commit_walk {
    struct layer_pack *pack;
    int tree;
    struct err *err;
};

static int on_change(void *opaque, enum image_change change, const char *path)
{
    struct commit_walk *walk = opaque;
    return layer_pack_change(walk->pack, walk->tree, change, path, walk->err);
}

int image_pack_rootfs(struct image_store *store, struct image_rootfs *rootfs, bool zstd,
                      struct descriptor *ret_layer, char ret_diff_id[static DIGEST_SIZE], struct err *err)
{
    struct commit_walk walk = {.err = err};
    int rc = layer_pack_new(store, zstd, &walk.pack, err);
    if (rc < 0) {
        return rc;
    }
    auto_close int tree =
        open(rootfs->flattened ? rootfs->dir : rootfs->upper, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    walk.tree = tree;
    rc = tree < 0 ? err_sys(err, -errno, "cannot open the layer of '%s'", rootfs->name)
                  : image_rootfs_diff(rootfs, on_change, &walk, err);
    if (rc < 0) {
        layer_pack_free(walk.pack);
        return rc;
    }
    return layer_pack_finish(walk.pack, ret_layer, ret_diff_id, err);
}

json_t *image_document(const struct image *base, const struct platform *platform)
{
    if (base) {
        return json_deep_copy(base->config.json);
    }
    json_t *root = json_pack("{s:s, s:s, s:{}, s:{s:s, s:[]}, s:[]}", "os", platform->os, "architecture",
                             platform->arch, "config", "rootfs", "type", "layers", "diff_ids", "history");
    if (platform->variant[0]) {
        json_object_set_new(root, "variant", json_string(platform->variant));
    }
    return root;
}

int image_document_add(json_t *root, const char *diff_id, const char *created_by, const char *comment,
                       const char *author)
{
    char now[32];
    timestamp(now);
    json_t *rootfs = json_object_get(root, "rootfs"), *ids = json_object_get(rootfs, "diff_ids");
    if (!json_is_array(ids)) {
        rootfs = json_pack("{s:s, s:[]}", "type", "layers", "diff_ids");
        json_object_set_new(root, "rootfs", rootfs);
        ids = json_object_get(rootfs, "diff_ids");
    }
    json_t *history = json_object_get(root, "history");
    if (!json_is_array(history)) {
        history = json_array();
        json_object_set_new(root, "history", history);
    }
    json_t *item = json_pack("{s:s, s:s}", "created", now, "created_by", created_by ? created_by : "");
    if (comment) {
        json_object_set_new(item, "comment", json_string(comment));
    }
    if (author) {
        json_object_set_new(item, "author", json_string(author));
        json_object_set_new(root, "author", json_string(author));
    }
    if (diff_id) {
        json_array_append_new(ids, json_string(diff_id));
    } else {
        json_object_set_new(item, "empty_layer", json_true());
    }
    json_object_set_new(root, "created", json_string(now));
    return json_array_append_new(history, item) < 0 ? -ENOMEM : 0;
}

/* Layers of base (may be NULL) and one more. */
int image_write_over(struct image_store *store, const struct image *base, const struct descriptor *layer,
                     json_t *document, struct descriptor *ret_manifest, struct err *err)
{
    unsigned count = base ? base->doc.layer_count : 0;
    auto_free struct descriptor *layers = calloc(count + 1, sizeof(*layers));
    if (!layers) {
        return err_set(err, -ENOMEM, "no memory");
    }
    for (unsigned i = 0; i < count; i++) {
        layers[i] = base->doc.layers[i];
        if (strcmp(layers[i].media_type, MEDIA_DOCKER_LAYER) == 0) {
            strcpy(layers[i].media_type, MEDIA_OCI_LAYER_GZIP);
        } else if (!strstr(layers[i].media_type, "oci")) {
            strcpy(layers[i].media_type, MEDIA_OCI_LAYER);
        }
    }
    if (layer) {
        layers[count++] = *layer;
    }
    return image_write(store, layers, count, document, ret_manifest, err);
}

int image_rootfs_commit(struct image_store *store, struct image_rootfs *rootfs, const char *name,
                        const struct image_commit *commit, char ret_digest[static DIGEST_SIZE],
                        struct err *err)
{
    char key[REF_TEXT_MAX], diff_id[DIGEST_SIZE];
    struct descriptor layer, d = {.size_bytes = 0}, manifest;
    struct image *base = NULL, *made = NULL;
    auto_close int lock = store_lock(store, false, true, err);
    int rc = lock < 0 ? lock : image_name(name, true, key, err);
    strcpy(d.digest, rootfs->manifest);
    rc = rc < 0 ? rc : image_from_manifest(store, "", &d, &base, err);
    rc = rc < 0 ? rc : image_pack_rootfs(store, rootfs, commit->zstd, &layer, diff_id, err);
    if (rc < 0) {
        image_free(base);
        return rc;
    }
    json_t *document = image_document(base, NULL);
    if (commit->config) {
        json_object_set(document, "config", commit->config);
    }
    rc = image_document_add(document, diff_id, commit->created_by ? commit->created_by : "fonda image commit",
                            commit->message, commit->author);
    rc = rc < 0 ? err_set(err, rc, "no memory")
                : image_write_over(store, base, &layer, document, &manifest, err);
    json_decref(document);
    image_free(base);
    rc = rc < 0 ? rc : image_from_manifest(store, key, &manifest, &made, err);
    rc = rc < 0 ? rc : image_unpack(store, made, err);
    image_free(made);
    rc = rc < 0 ? rc : store_tag(store, key, &manifest, err);
    if (rc == 0) {
        strcpy(ret_digest, manifest.digest);
    }
    return rc;
}

/* A whole file or pipe into tmp/. Returns its descriptor. */
int image_spool(struct image_store *store, int from, char name[static STORE_TEMP_MAX], struct err *err)
{
    enum { CHUNK = 256 * 1024 };
    auto_free char *buf = malloc(CHUNK);
    int fd = buf ? store_temp(store, name, err) : err_set(err, -ENOMEM, "no memory");
    uint64_t total = 0;
    while (fd >= 0) {
        ssize_t n = read(from, buf, CHUNK);
        int rc = n < 0 ? -errno : n > 0 ? fs_write_all(fd, buf, (size_t)n) : 0;
        total += n > 0 ? (uint64_t)n : 0;
        if (rc == 0 && total > IMAGE_BLOB_MAX) {
            rc = -E2BIG;
        }
        if (rc < 0) {
            close(fd);
            unlinkat(store->fd, name, 0);
            return err_sys(err, rc, "cannot copy into the image store");
        }
        if (n == 0) {
            break;
        }
    }
    return fd;
}

int image_import(struct image_store *store, int from, const char *name, const char *platform_text,
                 char ret_digest[static DIGEST_SIZE], struct err *err)
{
    char key[REF_TEXT_MAX], temporary[STORE_TEMP_MAX], diff_id[DIGEST_SIZE];
    struct platform platform;
    struct descriptor layer = {.media_type = MEDIA_OCI_LAYER}, manifest;
    struct layer_stream *stream = NULL;
    struct image *made = NULL;
    uint8_t magic[4] = {0};
    auto_close int lock = store_lock(store, false, true, err);
    int rc = lock < 0 ? lock : image_name(name, true, key, err);
    rc = rc < 0 ? rc : platform_parse(platform_text, &platform, err);
    if (rc < 0) {
        return rc;
    }
    auto_close int fd = image_spool(store, from, temporary, err);
    if (fd < 0) {
        return fd;
    }
    if (pread(fd, magic, 4, 0) == 4) {
        strcpy(layer.media_type, magic[0] == 0x1f && magic[1] == 0x8b   ? MEDIA_OCI_LAYER_GZIP
                                 : magic[0] == 0x28 && magic[1] == 0xb5 ? MEDIA_OCI_LAYER_ZSTD
                                                                        : MEDIA_OCI_LAYER);
    }
    rc = digest_fd(fd, layer.digest, &layer.size_bytes, err);
    lseek(fd, 0, SEEK_SET);
    rc = rc < 0 ? rc : layer_stream_new(fd, store->layer_max, &stream, err);
    rc = rc < 0 ? rc : layer_stream_finish(stream, diff_id, NULL, err);
    layer_stream_free(stream);
    rc = rc < 0 ? rc : store_adopt_blob(store, temporary, layer.digest, err);
    if (rc < 0) {
        unlinkat(store->fd, temporary, 0);
        return rc;
    }
    json_t *document = image_document(NULL, &platform);
    image_document_add(document, diff_id, "fonda image import", NULL, NULL);
    rc = image_write_over(store, NULL, &layer, document, &manifest, err);
    json_decref(document);
    rc = rc < 0 ? rc : image_from_manifest(store, key, &manifest, &made, err);
    rc = rc < 0 ? rc : image_unpack(store, made, err);
    image_free(made);
    rc = rc < 0 ? rc : store_tag(store, key, &manifest, err);
    if (rc == 0) {
        strcpy(ret_digest, manifest.digest);
    }
    return rc < 0 ? err_prefix(err, "cannot import '%s'", name) : 0;
}
