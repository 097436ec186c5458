/*
 * Archives: oci-archive (a tar with an OCI image layout) and docker-archive (manifest.json, Docker's `docker
 * save`), out and in. What comes in is hostile: blobs are spooled into the store's tmp/, hashed, and used by
 * digest only.
 */
#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "image/fs.h"
#include "image/image_int.h"
#include "image/layer.h"
#include "image/limits.h"

#define MEMBERS_MAX 20000u
#define REF_NAME    "org.opencontainers.image.ref.name"
#define FULL_NAME   "io.containerd.image.name"

/* ---- out ---- */

static int put_header(struct archive *a, const char *name, uint64_t size, struct err *err)
{
    struct archive_entry *entry = archive_entry_new();
    archive_entry_set_pathname(entry, name);
    archive_entry_set_mode(entry, S_IFREG | 0644);
    archive_entry_set_size(entry, (la_int64_t)size);
    archive_entry_set_mtime(entry, 0, 0);
    int status = archive_write_header(a, entry);
    archive_entry_free(entry);
    return status == ARCHIVE_OK ? 0
                                : err_set(err, -EIO, "cannot write the archive: %s", archive_error_string(a));
}

static int put_text(struct archive *a, const char *name, json_t *json, struct err *err)
{
    auto_free char *text = json ? json_dumps(json, JSON_COMPACT) : NULL;
    json_decref(json);
    int rc = text ? put_header(a, name, strlen(text), err) : err_set(err, -ENOMEM, "no memory");
    return rc < 0 || archive_write_data(a, text, strlen(text)) >= 0
               ? rc
               : err_set(err, -EIO, "cannot write the archive");
}

static int put_stream(struct archive *a, int fd, struct err *err)
{
    enum { CHUNK = 256 * 1024 };
    auto_free char *buf = malloc(CHUNK);
    ssize_t n = -1;
    while (buf && (n = read(fd, buf, CHUNK)) > 0) {
        if (archive_write_data(a, buf, (size_t)n) != n) {
            return err_set(err, -EIO, "cannot write the archive: %s", archive_error_string(a));
        }
    }
    return n < 0 ? err_sys(err, -errno, "cannot read a blob") : 0;
}

static int put_blob(struct image_store *store, struct archive *a, json_t *seen, const struct descriptor *d,
                    struct err *err)
{
    char name[STORE_TEMP_MAX];
    uint64_t size;
    if (json_object_get(seen, d->digest)) {
        return 0;
    }
    json_object_set_new(seen, d->digest, json_true());
    snprintf(name, sizeof(name), "blobs/sha256/%s", digest_hex(d->digest));
    auto_close int fd = store_open_blob(store, d->digest, &size, err);
    int rc = fd < 0 ? fd : put_header(a, name, size, err);
    return rc < 0 ? rc : put_stream(a, fd, err);
}

static int save_oci(struct image_store *store, struct archive *a, struct image **images, unsigned count,
                    struct err *err)
{
    json_t *seen = json_object(), *list = json_array();
    int rc = 0;
    for (unsigned i = 0; rc == 0 && i < count; i++) {
        struct image *image = images[i];
        const char *colon = strrchr(image->name, ':');
        json_t *item = descriptor_json(&image->manifest);
        json_object_set_new(item, "annotations",
                            json_pack("{s:s, s:s}", REF_NAME, count > 1 || !colon ? image->name : colon + 1,
                                      FULL_NAME, image->name));
        json_array_append_new(list, item);
        rc = put_blob(store, a, seen, &image->manifest, err);
        rc = rc < 0 ? rc : put_blob(store, a, seen, &image->doc.config, err);
        for (unsigned j = 0; rc == 0 && j < image->doc.layer_count; j++) {
            rc = put_blob(store, a, seen, &image->doc.layers[j], err);
        }
    }
    rc = rc < 0 ? rc : put_text(a, "oci-layout", json_pack("{s:s}", "imageLayoutVersion", "1.0.0"), err);
    rc = rc < 0 ? rc
                : put_text(a, "index.json",
                           json_pack("{s:i, s:s, s:O}", "schemaVersion", 2, "mediaType", MEDIA_OCI_INDEX,
                                     "manifests", list),
                           err);
    json_decref(list);
    json_decref(seen);
    return rc;
}

/* docker-archive has its layers uncompressed, named after their diff IDs. */
static int put_plain_layer(struct image_store *store, struct archive *a, json_t *seen, const char *blob,
                           const char *diff_id, struct err *err)
{
    char name[STORE_TEMP_MAX], check[DIGEST_SIZE];
    struct layer_stream *stream = NULL;
    uint64_t size = 0;
    if (json_object_get(seen, diff_id)) {
        return 0;
    }
    json_object_set_new(seen, diff_id, json_true());
    snprintf(name, sizeof(name), "%s.tar", digest_hex(diff_id));
    auto_close int fd = store_open_blob(store, blob, NULL, err);
    int rc = fd < 0 ? fd : layer_stream_new(fd, store->layer_max, &stream, err);
    /* Once for the size, which the header needs, and once for the bytes. */
    rc = rc < 0 ? rc : layer_stream_finish(stream, check, &size, err);
    layer_stream_free(stream);
    stream = NULL;
    if (rc == 0 && strcmp(check, diff_id) != 0) {
        rc = err_set(err, -EUCLEAN, "the store's layer %.19s is damaged", blob);
    }
    rc = rc < 0 ? rc : put_header(a, name, size, err);
    if (rc == 0) {
        lseek(fd, 0, SEEK_SET);
        rc = layer_stream_new(fd, store->layer_max, &stream, err);
    }
    const void *data;
    ssize_t n = 0;
    while (rc == 0 && (n = layer_stream_read(stream, &data)) > 0) {
        rc = archive_write_data(a, data, (size_t)n) == n
                 ? 0
                 : err_set(err, -EIO, "cannot write the archive: %s", archive_error_string(a));
    }
    layer_stream_free(stream);
    return rc < 0 ? rc : n < 0 ? err_set(err, (int)n, "cannot read layer %.19s", blob) : 0;
}

static int save_docker(struct image_store *store, struct archive *a, struct image **images, unsigned count,
                       struct err *err)
{
    json_t *seen = json_object(), *list = json_array();
    int rc = 0;
    for (unsigned i = 0; rc == 0 && i < count; i++) {
        struct image *image = images[i];
        char name[STORE_TEMP_MAX];
        json_t *layers = json_array();
        auto_close int config = store_open_blob(store, image->doc.config.digest, NULL, err);
        snprintf(name, sizeof(name), "%s.json", digest_hex(image->doc.config.digest));
        rc = config < 0 ? config : 0;
        if (rc == 0 && !json_object_get(seen, name)) {
            json_object_set_new(seen, name, json_true());
            rc = put_header(a, name, image->doc.config.size_bytes, err);
            rc = rc < 0 ? rc : put_stream(a, config, err);
        }
        for (unsigned j = 0; rc == 0 && j < image->doc.layer_count; j++) {
            char layer[STORE_TEMP_MAX];
            snprintf(layer, sizeof(layer), "%s.tar", digest_hex(image->config.diff_ids[j]));
            json_array_append_new(layers, json_string(layer));
            rc = put_plain_layer(store, a, seen, image->doc.layers[j].digest, image->config.diff_ids[j], err);
        }
        json_array_append_new(
            list, json_pack("{s:s, s:[s], s:o}", "Config", name, "RepoTags", image->name, "Layers", layers));
    }
    rc = rc < 0 ? rc : put_text(a, "manifest.json", json_incref(list), err);
    json_decref(list);
    json_decref(seen);
    return rc;
}

int image_save(struct image_store *store, const char *const *names, unsigned count, enum image_archive kind,
               int fd, struct err *err)
{
    auto_free struct image **images = calloc(count + 1, sizeof(struct image *));
    struct archive *a = archive_write_new();
    auto_close int lock = store_lock(store, false, true, err);
    int rc = lock < 0 ? lock : images && a ? 0 : err_set(err, -ENOMEM, "no memory");
    for (unsigned i = 0; rc == 0 && i < count; i++) {
        rc = image_lookup(store, names[i], &images[i], err);
    }
    if (rc == 0 && (archive_write_set_format_ustar(a) != ARCHIVE_OK ||
                    archive_write_set_format_pax_restricted(a) != ARCHIVE_OK ||
                    archive_write_open_fd(a, fd) != ARCHIVE_OK)) {
        rc = err_set(err, -EIO, "cannot write the archive: %s", archive_error_string(a));
    }
    rc = rc < 0                      ? rc
         : kind == IMAGE_ARCHIVE_OCI ? save_oci(store, a, images, count, err)
                                     : save_docker(store, a, images, count, err);
    if (rc == 0 && archive_write_close(a) != ARCHIVE_OK) {
        rc = err_set(err, -EIO, "cannot write the archive: %s", archive_error_string(a));
    }
    archive_write_free(a);
    for (unsigned i = 0; images && i < count; i++) {
        image_free(images[i]);
    }
    return rc;
}

/* ---- in ---- */

struct load {
    struct image_store *store;
    const struct image_options *options;
    json_t *members; /* name in the archive -> digest of its content, which is in the store then */
    const char *name;
    void (*on_name)(void *opaque, const char *name);
    void *opaque;
    struct err *err;
};

static int take_member(struct load *l, struct archive *a, const char *name)
{
    char temporary[STORE_TEMP_MAX], digest[DIGEST_SIZE];
    struct digest_state state;
    auto_close int fd = store_temp(l->store, temporary, l->err);
    if (fd < 0) {
        return fd;
    }
    if (digest_init(&state) < 0) {
        return err_set(l->err, -ENOMEM, "no memory");
    }
    char buf[65536];
    la_ssize_t n;
    int rc = 0;
    uint64_t total = 0;
    while (rc == 0 && (n = archive_read_data(a, buf, sizeof(buf))) != 0) {
        if (n < 0) {
            rc = err_set(l->err, -EBADMSG, "the archive is damaged: %s", archive_error_string(a));
            break;
        }
        digest_update(&state, buf, (size_t)n);
        total += (uint64_t)n;
        rc = total > IMAGE_BLOB_MAX ? -E2BIG : fs_write_all(fd, buf, (size_t)n);
        if (rc < 0) {
            err_sys(l->err, rc, "cannot copy '%s' out of the archive", name);
        }
    }
    digest_final(&state, digest);
    digest_done(&state);
    rc = rc < 0 ? rc : store_adopt_blob(l->store, temporary, digest, l->err);
    if (rc < 0) {
        unlinkat(l->store->fd, temporary, 0);
        return rc;
    }
    json_object_set_new(l->members, name, json_string(digest));
    return 0;
}

static int read_members(struct load *l, int fd)
{
    struct archive *a = archive_read_new();
    struct archive_entry *entry;
    int rc = a ? 0 : err_set(l->err, -ENOMEM, "no memory");
    if (rc == 0 && (archive_read_support_format_tar(a) != ARCHIVE_OK ||
                    archive_read_support_filter_gzip(a) != ARCHIVE_OK ||
                    archive_read_support_filter_zstd(a) != ARCHIVE_OK ||
                    archive_read_open_fd(a, fd, 256 * 1024) != ARCHIVE_OK)) {
        rc = err_set(l->err, -EBADMSG, "this is not an image archive: %s", archive_error_string(a));
    }
    for (unsigned count = 0; rc == 0; count++) {
        int status = archive_read_next_header(a, &entry);
        if (status == ARCHIVE_EOF) {
            break;
        }
        const char *name =
            status == ARCHIVE_OK || status == ARCHIVE_WARN ? archive_entry_pathname(entry) : NULL;
        if (!name) {
            rc = err_set(l->err, -EBADMSG, "the archive is damaged: %s", archive_error_string(a));
        } else if (count >= MEMBERS_MAX) {
            rc = err_set(l->err, -E2BIG, "the archive has more than %u members", MEMBERS_MAX);
        } else {
            name += strncmp(name, "./", 2) == 0 ? 2 : 0;
            const char *link =
                archive_entry_symlink(entry) ? archive_entry_symlink(entry) : archive_entry_hardlink(entry);
            if (archive_entry_filetype(entry) == AE_IFREG && !link) {
                rc = take_member(l, a, name);
            } else if (link) {
                /* docker save writes a layer that comes twice as a link to "../ID/layer.tar". */
                link += strncmp(link, "../", 3) == 0 ? 3 : 0;
                json_t *same = json_object_get(l->members, link);
                if (same) {
                    json_object_set(l->members, name, same);
                }
            }
        }
    }
    archive_read_free(a);
    return rc;
}

/* The blob that a member became. */
static int member_blob(struct load *l, const char *name, struct descriptor *ret_d)
{
    const char *digest = json_string_value(name ? json_object_get(l->members, name) : NULL);
    if (!digest) {
        return err_set(l->err, -EBADMSG, "the archive has no '%.100s'", name ? name : "");
    }
    memset(ret_d, 0, sizeof(*ret_d));
    strcpy(ret_d->digest, digest);
    auto_close int fd = store_open_blob(l->store, digest, &ret_d->size_bytes, l->err);
    return fd < 0 ? fd : 0;
}

static int finish_image(struct load *l, const char *name, const struct descriptor *manifest)
{
    char key[REF_TEXT_MAX];
    struct image *image = NULL;
    struct descriptor d = *manifest;
    int rc = image_name(name, true, key, l->err);
    rc = rc < 0 ? rc : image_resolve_index(l->store, &d, l->options->platform, l->err);
    rc = rc < 0 ? rc : image_from_manifest(l->store, key, &d, &image, l->err);
    for (unsigned i = 0; rc == 0 && i < image->doc.layer_count; i++) {
        if (!store_has_blob(l->store, image->doc.layers[i].digest)) {
            rc = err_set(l->err, -EBADMSG, "the archive has no layer %.19s", image->doc.layers[i].digest);
        }
    }
    rc = rc < 0 ? rc : image_unpack(l->store, image, l->err);
    if (rc == 0) {
        d = image->manifest;
        if (!d.media_type[0]) {
            strcpy(d.media_type, image->doc.media_type);
        }
        rc = store_tag(l->store, key, &d, l->err);
    }
    image_free(image);
    if (rc == 0 && l->on_name) {
        l->on_name(l->opaque, key);
    }
    return rc;
}

static int load_text(struct load *l, const char *member, json_t **ret_json)
{
    struct descriptor d;
    auto_free char *text = NULL;
    size_t size;
    int rc = member_blob(l, member, &d);
    rc = rc < 0 ? rc : store_read_blob(l->store, &d, IMAGE_MANIFEST_MAX, &text, &size, l->err);
    if (rc == 0) {
        json_error_t error;
        *ret_json = json_loadb(text, size, 0, &error);
        rc = *ret_json ? 0
                       : err_set(l->err, -EINVAL, "'%s' in the archive is not valid JSON: line %d: %s",
                                 member, error.line, error.text);
    }
    return rc;
}

static int load_oci(struct load *l)
{
    json_t *root = NULL;
    int rc = load_text(l, "index.json", &root);
    const json_t *list = json_object_get(root, "manifests");
    size_t count = json_array_size(list);
    if (rc == 0 && (count == 0 || count > IMAGE_INDEX_ENTRIES_MAX)) {
        rc = err_set(l->err, -EINVAL,
                     "the archive's index.json has no images, or more than IMAGE_INDEX_ENTRIES_MAX");
    }
    for (size_t i = 0; rc == 0 && i < count; i++) {
        const json_t *item = json_array_get(list, i), *notes = json_object_get(item, "annotations");
        const char *full = json_string_value(json_object_get(notes, FULL_NAME));
        const char *ref = json_string_value(json_object_get(notes, REF_NAME));
        const char *name = l->name ? l->name : full ? full : ref;
        struct descriptor d;
        rc = descriptor_parse(item, "an image in the archive", &d, l->err);
        if (rc == 0 && !name) {
            rc = err_set(l->err, -EINVAL,
                         "the archive does not say what its image is called: give it a name by --name");
        }
        if (rc == 0 && !store_has_blob(l->store, d.digest)) {
            rc = err_set(l->err, -EBADMSG, "the archive has no blob %.19s", d.digest);
        }
        rc = rc < 0 ? rc : finish_image(l, name, &d);
    }
    json_decref(root);
    return rc;
}

static int load_docker_image(struct load *l, const json_t *item)
{
    struct descriptor config, manifest, layers[IMAGE_LAYERS_MAX];
    const json_t *list = json_object_get(item, "Layers"), *tags = json_object_get(item, "RepoTags");
    size_t count = json_array_size(list);
    int rc = member_blob(l, json_string_value(json_object_get(item, "Config")), &config);
    strcpy(config.media_type, MEDIA_OCI_CONFIG);
    if (rc == 0 && count > IMAGE_LAYERS_MAX) {
        rc = err_set(l->err, -E2BIG, "an image in the archive has more than IMAGE_LAYERS_MAX (%u) layers",
                     IMAGE_LAYERS_MAX);
    }
    for (size_t i = 0; rc == 0 && i < count; i++) {
        uint8_t magic[2] = {0};
        rc = member_blob(l, json_string_value(json_array_get(list, i)), &layers[i]);
        auto_close int fd = rc < 0 ? -1 : store_open_blob(l->store, layers[i].digest, NULL, l->err);
        if (rc == 0) {
            bool gzip = pread(fd, magic, 2, 0) == 2 && magic[0] == 0x1f && magic[1] == 0x8b;
            strcpy(layers[i].media_type, gzip ? MEDIA_OCI_LAYER_GZIP : MEDIA_OCI_LAYER);
        }
    }
    auto_free char *text = rc < 0 ? NULL : manifest_write(&config, layers, (unsigned)count, false);
    if (rc < 0 || !text) {
        return rc < 0 ? rc : err_set(l->err, -ENOMEM, "no memory");
    }
    strcpy(manifest.media_type, MEDIA_OCI_MANIFEST);
    manifest.size_bytes = strlen(text);
    rc = store_put_blob(l->store, text, manifest.size_bytes, manifest.digest, l->err);
    if (rc == 0 && (l->name || json_array_size(tags) == 0)) {
        rc = l->name ? finish_image(l, l->name, &manifest)
                     : err_set(l->err, -EINVAL,
                               "the archive does not say what its image is called: give it a name by --name");
    }
    for (size_t i = 0; rc == 0 && !l->name && i < json_array_size(tags); i++) {
        const char *tag = json_string_value(json_array_get(tags, i));
        rc = finish_image(l, tag ? tag : "", &manifest);
    }
    return rc;
}

static int load_docker(struct load *l)
{
    json_t *root = NULL;
    int rc = load_text(l, "manifest.json", &root);
    if (rc == 0 && json_array_size(root) == 0) {
        rc = err_set(l->err, -EINVAL, "the archive's manifest.json has no images");
    }
    for (size_t i = 0; rc == 0 && i < json_array_size(root); i++) {
        rc = load_docker_image(l, json_array_get(root, i));
    }
    json_decref(root);
    return rc;
}

int image_load(struct image_store *store, int fd, const char *name, const struct image_options *options,
               void (*on_name)(void *opaque, const char *name), void *opaque, struct err *err)
{
    static const struct image_options none;
    struct load l = {.store = store,
                     .options = options ? options : &none,
                     .members = json_object(),
                     .name = name,
                     .on_name = on_name,
                     .opaque = opaque,
                     .err = err};
    auto_close int lock = store_lock(store, false, true, err);
    int rc = lock < 0 ? lock : read_members(&l, fd);
    if (rc == 0) {
        rc = json_object_get(l.members, "index.json") ? load_oci(&l)
             : json_object_get(l.members, "manifest.json")
                 ? load_docker(&l)
                 : err_set(err, -EINVAL,
                           "this is no image archive: neither index.json (OCI) "
                           "nor manifest.json (Docker) is in it");
    }
    json_decref(l.members);
    return rc < 0 ? err_prefix(err, "cannot load") : 0;
}
