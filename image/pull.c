/*
 * Pull and push. Of a pull, every layer is one job: download (going on where an earlier one ended), check,
 * unpack; the jobs run side by side, and layers get their final names in the order of the chain. Nothing is
 * used before its digest was checked.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "image/fs.h"
#include "image/image_int.h"
#include "image/layer.h"
#include "image/limits.h"
#include "image/registry.h"

struct transfer {
    struct image_store *store;
    const struct image_options *options;
    struct registry *registry;
    struct registry_conn *conns[IMAGE_PARALLEL_MAX]; /* one for each worker */
    struct image_manifest *manifest;
    struct image_config *config;
    char (*chain_ids)[DIGEST_SIZE];
    struct layer_job *jobs;
    pthread_mutex_t lock; /* of published, done, and of calls to progress */
    unsigned published;
    bool *done;
};

struct meter {
    struct transfer *transfer;
    const struct descriptor *d;
    unsigned index;
    uint64_t shown;
};

static void on_bytes(void *opaque, uint64_t done)
{
    struct meter *meter = opaque;
    const struct image_options *options = meter->transfer->options;
    if (!options->progress || (done < meter->shown + MiB && done < meter->d->size_bytes)) {
        return;
    }
    meter->shown = done;
    char what[40];
    snprintf(what, sizeof(what), "layer %.19s", meter->d->digest);
    struct image_progress progress = {.what = what,
                                      .done = done,
                                      .total = meter->d->size_bytes,
                                      .index = meter->index,
                                      .count = meter->transfer->manifest->layer_count};
    pthread_mutex_lock(&meter->transfer->lock);
    options->progress(options->opaque, &progress);
    pthread_mutex_unlock(&meter->transfer->lock);
}

/* ---- blobs ---- */

static int download(struct transfer *t, struct registry_conn *conn, const struct descriptor *d,
                    struct meter *meter, struct err *err)
{
    char partial[STORE_TEMP_MAX], digest[DIGEST_SIZE];
    snprintf(partial, sizeof(partial), "tmp/%s.partial", digest_hex(d->digest));
    auto_close int fd = openat(t->store->fd, partial, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    struct stat st;
    struct digest_state state;
    if (fd < 0 || fstat(fd, &st) < 0) {
        return err_sys(err, -errno, "cannot write '%s/%s'", t->store->path, partial);
    }
    if ((uint64_t)st.st_size >= d->size_bytes) {
        st.st_size = 0; /* whole but never checked, or foreign: not worth a question */
    }
    if (ftruncate(fd, st.st_size) < 0 || digest_init(&state) < 0) {
        return err_set(err, -ENOMEM, "cannot start the download");
    }
    char buf[65536];
    for (uint64_t at = 0; at < (uint64_t)st.st_size;) {
        ssize_t n = read(fd, buf, sizeof(buf));
        if (n <= 0) {
            digest_done(&state);
            return err_sys(err, n < 0 ? -errno : -EIO, "cannot read '%s/%s'", t->store->path, partial);
        }
        digest_update(&state, buf, (size_t)n);
        at += (uint64_t)n;
    }
    int rc =
        registry_get_blob(conn, d, fd, (uint64_t)st.st_size, &state, meter ? on_bytes : NULL, meter, err);
    if (rc == 0) {
        digest_final(&state, digest);
        if (strcmp(digest, d->digest) != 0) {
            unlinkat(t->store->fd, partial, 0);
            rc = err_set(err, -EBADMSG,
                         "the registry's blob %.19s has another digest (%.19s): it is thrown away", d->digest,
                         digest);
        } else {
            rc = store_adopt_blob(t->store, partial, d->digest, err);
        }
    } else if (rc == -E2BIG || rc == -ENOENT) {
        unlinkat(t->store->fd, partial, 0);
    }
    digest_done(&state);
    return rc;
}

static int fetch_blob(struct transfer *t, struct registry_conn *conn, const struct descriptor *d,
                      struct meter *meter, struct err *err)
{
    char name[STORE_TEMP_MAX];
    uint64_t size = 0;
    snprintf(name, sizeof(name), "tmp/%s.blob", digest_hex(d->digest));
    auto_close int lock = store_lock_file(t->store, name, err);
    if (lock < 0) {
        return lock;
    }
    auto_close int have = store_open_blob(t->store, d->digest, &size, NULL);
    if (have >= 0 && size == d->size_bytes) {
        return 0;
    }
    return download(t, conn, d, meter, err);
}

/* A blob of the store that isn't what its name says goes: 1. */
static int drop_damaged(struct transfer *t, const char *blob)
{
    char digest[DIGEST_SIZE], path[STORE_TEMP_MAX];
    auto_close int fd = store_open_blob(t->store, blob, NULL, NULL);
    if (fd < 0 || digest_fd(fd, digest, NULL, NULL) < 0 || strcmp(digest, blob) == 0) {
        return 0;
    }
    snprintf(path, sizeof(path), "blobs/sha256/%s", digest_hex(blob));
    unlinkat(t->store->fd, path, 0);
    return 1;
}

/* ---- layers ---- */

/* Every layer whose turn it is gets its name. */
static int publish_ready(struct transfer *t, struct err *err)
{
    int rc = 0;
    pthread_mutex_lock(&t->lock);
    while (rc == 0 && t->published < t->manifest->layer_count && t->done[t->published]) {
        struct layer_job *job = &t->jobs[t->published];
        rc = layer_publish(t->store, job, (const char(*)[DIGEST_SIZE])t->chain_ids, t->published, err);
        layer_job_done(t->store, job);
        t->published += rc == 0;
    }
    pthread_mutex_unlock(&t->lock);
    return rc;
}

static int pull_layer(void *opaque, unsigned worker, unsigned index, struct err *err)
{
    struct transfer *t = opaque;
    const struct descriptor *d = &t->manifest->layers[index];
    struct layer_job *job = &t->jobs[index];
    struct meter meter = {.transfer = t, .d = d, .index = index};
    int rc = t->conns[worker] ? 0 : registry_conn_new(t->registry, &t->conns[worker], err);
    for (unsigned try = 0; rc == 0; try++) {
        rc = fetch_blob(t, t->conns[worker], d, &meter, err);
        if (rc < 0) {
            break;
        }
        rc = layer_stage(t->store, job, err);
        if (rc == 0 || try > 0 || !drop_damaged(t, d->digest)) {
            break;
        }
        layer_job_done(t->store, job);
        rc = 0;
    }
    if (rc < 0) {
        return rc;
    }
    pthread_mutex_lock(&t->lock);
    t->done[index] = true;
    pthread_mutex_unlock(&t->lock);
    return publish_ready(t, err);
}

static int pull_layers(struct transfer *t, struct err *err)
{
    unsigned count = t->manifest->layer_count;
    t->jobs = calloc(count + 1, sizeof(*t->jobs));
    t->done = calloc(count + 1, sizeof(*t->done));
    int rc = t->jobs && t->done ? image_chain_ids(t->config, &t->chain_ids, err)
                                : err_set(err, -ENOMEM, "no memory");
    for (unsigned i = 0; rc == 0 && i < count; i++) {
        t->jobs[i] = (struct layer_job){.blob = t->manifest->layers[i].digest,
                                        .diff_id = t->config->diff_ids[i],
                                        .chain_id = t->chain_ids[i],
                                        .lock = -1};
    }
    if (rc == 0) {
        rc = image_parallel(count, t->options->parallel, pull_layer, t, err);
    }
    for (unsigned i = 0; t->jobs && i < count; i++) {
        if (t->jobs[i].chain_id) {
            layer_job_done(t->store, &t->jobs[i]);
        }
    }
    free(t->jobs);
    free(t->done);
    free(t->chain_ids);
    return rc;
}

/* ---- manifests ---- */

/* The manifest for the platform: its text and descriptor. */
static int fetch_manifest(struct transfer *t, const struct image_ref *ref, char **ret_text,
                          struct descriptor *ret_d, struct err *err)
{
    char reference[MAX(DIGEST_SIZE, REF_TAG_MAX + 1)];
    struct platform platform;
    uint64_t want_size = 0;
    int rc = platform_parse(t->options->platform, &platform, err);
    strcpy(reference, ref->digest[0] ? ref->digest : ref->tag);
    for (unsigned depth = 0; rc == 0; depth++) {
        auto_free char *text = NULL;
        size_t size;
        struct descriptor d;
        enum document_kind kind;
        struct image_index index;
        rc = registry_get_manifest(t->conns[0], reference, &text, &size, d.media_type, err);
        if (rc < 0) {
            return rc;
        }
        d.size_bytes = size;
        if (digest_bytes(text, size, d.digest) < 0) {
            return err_set(err, -ENOMEM, "no memory");
        }
        if (digest_valid(reference) && (strcmp(d.digest, reference) != 0 || (depth && size != want_size))) {
            return err_set(err, -EBADMSG,
                           "the registry's manifest for %.19s has another digest (%.19s) or size", reference,
                           d.digest);
        }
        rc = document_kind(text, size, d.media_type, &kind, err);
        if (rc == 0 && kind == DOCUMENT_MANIFEST) {
            const char *own = strstr(d.media_type, "json") ? d.media_type : MEDIA_OCI_MANIFEST;
            memmove(d.media_type, own, strlen(own) + 1);
            *ret_text = text;
            text = NULL;
            *ret_d = d;
            return 0;
        }
        rc = rc < 0 ? rc : index_parse(text, size, &index, err);
        if (rc < 0) {
            return rc;
        }
        const struct index_entry *entry =
            depth < IMAGE_INDEX_DEPTH_MAX ? index_find(&index, &platform) : NULL;
        if (entry) {
            strcpy(reference, entry->descriptor.digest);
            want_size = entry->descriptor.size_bytes;
        } else {
            char wanted[100];
            platform_format(&platform, wanted);
            rc = err_set(err, -ENOENT,
                         "the image has no variant for %s, or its indexes are nested deeper than "
                         "IMAGE_INDEX_DEPTH_MAX (choose a variant by --platform)",
                         wanted);
        }
        index_free(&index);
    }
    return rc;
}

static int fetch_config(struct transfer *t, struct err *err)
{
    auto_free char *text = NULL;
    size_t size;
    int rc = fetch_blob(t, t->conns[0], &t->manifest->config, NULL, err);
    rc = rc < 0 ? rc : store_read_blob(t->store, &t->manifest->config, IMAGE_CONFIG_MAX, &text, &size, err);
    rc = rc < 0 ? rc : config_parse_image(text, size, t->config, err);
    if (rc == 0 && t->config->diff_count != t->manifest->layer_count) {
        rc = err_set(err, -EINVAL, "the manifest has %u layers, but the config %u: is this an image?",
                     t->manifest->layer_count, t->config->diff_count);
        image_config_free(t->config);
    }
    return rc;
}

int image_pull(struct image_store *store, const char *name, const struct image_options *options,
               char ret_digest[static DIGEST_SIZE], struct err *err)
{
    static const struct image_options none;
    struct image_ref ref;
    struct image_manifest manifest = {0};
    struct image_config config = {0};
    struct transfer t = {.store = store,
                         .options = options ? options : &none,
                         .manifest = &manifest,
                         .config = &config,
                         .lock = PTHREAD_MUTEX_INITIALIZER};
    char key[REF_TEXT_MAX], put[DIGEST_SIZE];
    auto_free char *text = NULL;
    struct descriptor d;
    int rc = image_ref_parse(name, &ref, err);
    if (rc < 0) {
        return rc;
    }
    image_ref_format(&ref, key);
    auto_close int lock = store_lock(store, false, true, err);
    if (lock < 0) {
        return lock;
    }
    rc = registry_open(&ref, t.options, false, &t.registry, err);
    rc = rc < 0 ? rc : registry_conn_new(t.registry, &t.conns[0], err);
    rc = rc < 0 ? rc : fetch_manifest(&t, &ref, &text, &d, err);
    rc = rc < 0 ? rc : manifest_parse(text, d.size_bytes, d.media_type, &manifest, err);
    rc = rc < 0 ? rc : fetch_config(&t, err);
    if (rc == 0) {
        image_report(t.options, "%s: %u layers", image_ref_short(key), manifest.layer_count);
        rc = pull_layers(&t, err);
    }
    rc = rc < 0 ? rc : store_put_blob(store, text, d.size_bytes, put, err);
    rc = rc < 0 ? rc : store_tag(store, key, &d, err);
    if (rc == 0) {
        strcpy(ret_digest, d.digest);
    }
    for (unsigned i = 0; i < IMAGE_PARALLEL_MAX; i++) {
        registry_conn_free(t.conns[i]);
    }
    registry_close(t.registry);
    manifest_free(&manifest);
    image_config_free(&config);
    return rc < 0 ? err_prefix(err, "cannot pull '%s'", name) : 0;
}

int image_get(struct image_store *store, const char *name, const struct image_options *options,
              struct image **ret_image, struct err *err)
{
    struct err missing;
    char digest[DIGEST_SIZE];
    enum image_pull_policy policy = options ? options->policy : IMAGE_PULL_MISSING;
    int rc = policy == IMAGE_PULL_ALWAYS ? -ENOENT : image_lookup(store, name, ret_image, &missing);
    if (rc == -ENOENT && policy != IMAGE_PULL_NEVER) {
        rc = image_pull(store, name, options, digest, err);
        rc = rc < 0 ? rc : image_lookup(store, name, ret_image, err);
    } else if (rc < 0 && err) {
        *err = missing;
    }
    if (rc == 0) {
        rc = image_unpack(store, *ret_image, err);
        if (rc < 0) {
            image_free(*ret_image);
        }
    }
    return rc;
}

/* ---- push ---- */

static int push_layer(void *opaque, unsigned worker, unsigned index, struct err *err)
{
    struct transfer *t = opaque;
    bool config = index == t->manifest->layer_count, has = false;
    const struct descriptor *d = config ? &t->manifest->config : &t->manifest->layers[index];
    struct meter meter = {.transfer = t, .d = d, .index = index};
    int rc = t->conns[worker] ? 0 : registry_conn_new(t->registry, &t->conns[worker], err);
    rc = rc < 0 ? rc : registry_has_blob(t->conns[worker], d->digest, &has, err);
    if (rc < 0 || has) {
        return rc;
    }
    uint64_t size;
    auto_close int fd = store_open_blob(t->store, d->digest, &size, err);
    if (fd < 0) {
        return fd;
    }
    if (size != d->size_bytes) {
        return err_set(err, -EUCLEAN, "the store's blob %.19s is damaged: its size is %llu instead of %llu",
                       d->digest, (unsigned long long)size, (unsigned long long)d->size_bytes);
    }
    return registry_put_blob(t->conns[worker], d, fd, config ? NULL : on_bytes, &meter, err);
}

int image_push(struct image_store *store, const char *source, const char *target,
               const struct image_options *options, char ret_digest[static DIGEST_SIZE], struct err *err)
{
    static const struct image_options none;
    struct image_ref ref;
    struct image *image = NULL;
    auto_free char *text = NULL;
    size_t size;
    struct transfer t = {
        .store = store, .options = options ? options : &none, .lock = PTHREAD_MUTEX_INITIALIZER};
    auto_close int lock = store_lock(store, false, true, err);
    int rc = lock < 0 ? lock : image_lookup(store, source, &image, err);
    rc = rc < 0 ? rc : image_ref_parse(target ? target : image->name, &ref, err);
    if (rc < 0) {
        image_free(image);
        return rc;
    }
    t.manifest = &image->doc;
    rc = store_read_blob(store, &image->manifest, IMAGE_MANIFEST_MAX, &text, &size, err);
    rc = rc < 0 ? rc : registry_open(&ref, t.options, true, &t.registry, err);
    rc = rc < 0 ? rc : registry_conn_new(t.registry, &t.conns[0], err);
    rc = rc < 0 ? rc : image_parallel(image->doc.layer_count + 1, t.options->parallel, push_layer, &t, err);
    rc = rc < 0 ? rc
                : registry_put_manifest(t.conns[0], ref.tag[0] ? ref.tag : image->manifest.digest,
                                        image->doc.media_type, text, size, err);
    if (rc == 0) {
        strcpy(ret_digest, image->manifest.digest);
    }
    for (unsigned i = 0; i < IMAGE_PARALLEL_MAX; i++) {
        registry_conn_free(t.conns[i]);
    }
    registry_close(t.registry);
    image_free(image);
    return rc < 0 ? err_prefix(err, "cannot push '%s'", target ? target : source) : 0;
}
