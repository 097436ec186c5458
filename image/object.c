/*
 * Images in the store as objects; threads for whoever has many layers to handle.
 */
#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "image/image_int.h"
#include "image/layer.h"
#include "image/limits.h"

int image_name(const char *text, bool no_digest, char ret_name[static REF_TEXT_MAX], struct err *err)
{
    struct image_ref ref;
    int rc = image_ref_parse(text, &ref, err);
    if (rc == 0 && no_digest && ref.digest[0]) {
        rc = err_set(err, -EINVAL, "'%s': a name that is given to an image has no digest", text);
    }
    if (rc == 0) {
        image_ref_format(&ref, ret_name);
    }
    return rc;
}

int image_chain_ids(const struct image_config *config, char (**ret_ids)[DIGEST_SIZE], struct err *err)
{
    char(*ids)[DIGEST_SIZE] = calloc(config->diff_count + 1, sizeof(*ids));
    for (unsigned i = 0; ids && i < config->diff_count; i++) {
        if (digest_chain(i ? ids[i - 1] : NULL, config->diff_ids[i], ids[i]) < 0) {
            free(ids);
            ids = NULL;
        }
    }
    if (!ids) {
        return err_set(err, -ENOMEM, "no memory");
    }
    *ret_ids = ids;
    return 0;
}

int image_resolve_index(struct image_store *store, struct descriptor *in_out, const char *platform_text,
                        struct err *err)
{
    struct platform platform;
    int rc = platform_parse(platform_text, &platform, err);
    for (unsigned depth = 0; rc == 0; depth++) {
        auto_free char *text = NULL;
        size_t size;
        enum document_kind kind;
        struct image_index index;
        rc = store_read_blob(store, in_out, IMAGE_MANIFEST_MAX, &text, &size, err);
        rc = rc < 0 ? rc : document_kind(text, size, in_out->media_type, &kind, err);
        if (rc < 0 || kind == DOCUMENT_MANIFEST) {
            break;
        }
        if (depth == IMAGE_INDEX_DEPTH_MAX) {
            return err_set(err, -ELOOP,
                           "the image's indexes are nested deeper than IMAGE_INDEX_DEPTH_MAX (%u)",
                           IMAGE_INDEX_DEPTH_MAX);
        }
        rc = index_parse(text, size, &index, err);
        if (rc < 0) {
            break;
        }
        const struct index_entry *entry = index_find(&index, &platform);
        char wanted[100];
        platform_format(&platform, wanted);
        if (entry) {
            *in_out = entry->descriptor;
        } else {
            rc = err_set(err, -ENOENT, "the image has no variant for %s (choose one by --platform)", wanted);
        }
        index_free(&index);
    }
    return rc;
}

int image_from_manifest(struct image_store *store, const char *name, const struct descriptor *manifest,
                        struct image **ret_image, struct err *err)
{
    struct image *image = calloc(1, sizeof(*image));
    auto_free char *text = NULL, *config = NULL;
    size_t size;
    if (!image) {
        return err_set(err, -ENOMEM, "no memory");
    }
    snprintf(image->name, sizeof(image->name), "%s", name);
    image->manifest = *manifest;
    int rc = store_read_blob(store, manifest, IMAGE_MANIFEST_MAX, &text, &size, err);
    rc = rc < 0 ? rc : manifest_parse(text, size, manifest->media_type, &image->doc, err);
    rc = rc < 0 ? rc : store_read_blob(store, &image->doc.config, IMAGE_CONFIG_MAX, &config, &size, err);
    rc = rc < 0 ? rc : config_parse_image(config, size, &image->config, err);
    if (rc == 0 && image->config.diff_count != image->doc.layer_count) {
        rc = err_set(err, -EINVAL, "the manifest has %u layers, but the config %u", image->doc.layer_count,
                     image->config.diff_count);
    }
    rc = rc < 0 ? rc : image_chain_ids(&image->config, &image->chain_ids, err);
    if (rc < 0) {
        image_free(image);
        return err_prefix(err, "image '%s'", *name ? image_ref_short(name) : manifest->digest);
    }
    *ret_image = image;
    return 0;
}

int image_lookup(struct image_store *store, const char *name, struct image **ret_image, struct err *err)
{
    struct store_entry entry;
    int rc = store_find(store, name, &entry, err);
    rc = rc < 0 ? rc : image_resolve_index(store, &entry.manifest, NULL, err);
    return rc < 0 ? rc : image_from_manifest(store, entry.name, &entry.manifest, ret_image, err);
}

void image_free(struct image *image)
{
    if (image) {
        manifest_free(&image->doc);
        image_config_free(&image->config);
        free(image->chain_ids);
        free(image);
    }
}

int image_stack(struct image_store *store, const struct image *image, int **ret_stack, struct err *err)
{
    return layer_open_stack(store, (const char(*)[DIGEST_SIZE])image->chain_ids, image->config.diff_count,
                            ret_stack, err);
}

int image_unpack(struct image_store *store, struct image *image, struct err *err)
{
    int rc = 0;
    auto_close int lock = store_lock(store, false, true, err);
    for (unsigned i = 0; lock >= 0 && rc == 0 && i < image->doc.layer_count; i++) {
        struct layer_job job = {.blob = image->doc.layers[i].digest,
                                .diff_id = image->config.diff_ids[i],
                                .chain_id = image->chain_ids[i]};
        rc = layer_stage(store, &job, err);
        rc = rc < 0 ? rc : layer_publish(store, &job, (const char(*)[DIGEST_SIZE])image->chain_ids, i, err);
        layer_job_done(store, &job);
    }
    return lock < 0 ? lock : rc;
}

void image_report(const struct image_options *options, const char *fmt, ...)
{
    if (options->progress) {
        char text[512];
        va_list ap;
        va_start(ap, fmt);
        vsnprintf(text, sizeof(text), fmt, ap);
        va_end(ap);
        struct image_progress progress = {.what = text};
        options->progress(options->opaque, &progress);
    }
}

/* ---- threads ---- */

struct pool {
    pthread_mutex_t lock; /* of next, rc, err */
    unsigned count, next, workers;
    int rc;
    struct err err;
    int (*fn)(void *opaque, unsigned worker, unsigned index, struct err *err);
    void *opaque;
};

static void *worker_main(void *arg)
{
    struct pool *pool = arg;
    pthread_mutex_lock(&pool->lock);
    unsigned worker = pool->workers++;
    while (pool->rc == 0 && pool->next < pool->count) {
        unsigned index = pool->next++;
        pthread_mutex_unlock(&pool->lock);
        struct err err = {0};
        int rc = pool->fn(pool->opaque, worker, index, &err);
        pthread_mutex_lock(&pool->lock);
        if (rc < 0 && pool->rc == 0) {
            pool->rc = rc;
            pool->err = err;
        }
    }
    pthread_mutex_unlock(&pool->lock);
    return NULL;
}

int image_parallel(unsigned count, unsigned parallel,
                   int (*fn)(void *opaque, unsigned worker, unsigned index, struct err *err), void *opaque,
                   struct err *err)
{
    struct pool pool = {.lock = PTHREAD_MUTEX_INITIALIZER, .count = count, .fn = fn, .opaque = opaque};
    pthread_t threads[IMAGE_PARALLEL_MAX];
    unsigned started = 0;
    parallel = MIN(MIN(parallel ? parallel : IMAGE_PARALLEL_DEFAULT, IMAGE_PARALLEL_MAX), count);
    while (started + 1 < parallel && pthread_create(&threads[started], NULL, worker_main, &pool) == 0) {
        started++;
    }
    worker_main(&pool);
    while (started) {
        pthread_join(threads[--started], NULL);
    }
    if (pool.rc < 0 && err) {
        *err = pool.err;
    }
    return pool.rc;
}

/* ---- writing ---- */

int image_write(struct image_store *store, const struct descriptor *layers, unsigned count, json_t *document,
                struct descriptor *ret_manifest, struct err *err)
{
    auto_free char *config_text = json_dumps(document, JSON_COMPACT);
    struct descriptor config = {.media_type = MEDIA_OCI_CONFIG};
    if (!config_text) {
        return err_set(err, -ENOMEM, "no memory");
    }
    config.size_bytes = strlen(config_text);
    int rc = store_put_blob(store, config_text, config.size_bytes, config.digest, err);
    auto_free char *text = rc < 0 ? NULL : manifest_write(&config, layers, count, false);
    if (rc < 0 || !text) {
        return rc < 0 ? rc : err_set(err, -ENOMEM, "no memory");
    }
    struct descriptor manifest = {.media_type = MEDIA_OCI_MANIFEST, .size_bytes = strlen(text)};
    rc = store_put_blob(store, text, manifest.size_bytes, manifest.digest, err);
    if (rc == 0) {
        *ret_manifest = manifest;
    }
    return rc;
}
