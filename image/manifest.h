/*
 * Manifests, indexes and configurations: OCI image specification 1.1 and Docker's schema 2, read into checked
 * structs. The JSON that came in stays beside them, so that what Fonda doesn't know survives a commit.
 */
#ifndef FONDA_IMAGE_MANIFEST_H
#define FONDA_IMAGE_MANIFEST_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "image/digest.h"

#define MEDIA_OCI_INDEX       "application/vnd.oci.image.index.v1+json"
#define MEDIA_OCI_MANIFEST    "application/vnd.oci.image.manifest.v1+json"
#define MEDIA_OCI_CONFIG      "application/vnd.oci.image.config.v1+json"
#define MEDIA_OCI_LAYER       "application/vnd.oci.image.layer.v1.tar"
#define MEDIA_OCI_LAYER_GZIP  "application/vnd.oci.image.layer.v1.tar+gzip"
#define MEDIA_OCI_LAYER_ZSTD  "application/vnd.oci.image.layer.v1.tar+zstd"
#define MEDIA_DOCKER_LIST     "application/vnd.docker.distribution.manifest.list.v2+json"
#define MEDIA_DOCKER_MANIFEST "application/vnd.docker.distribution.manifest.v2+json"
#define MEDIA_DOCKER_CONFIG   "application/vnd.docker.container.image.v1+json"
#define MEDIA_DOCKER_LAYER    "application/vnd.docker.image.rootfs.diff.tar.gzip"

#define MEDIA_TYPE_MAX 128

struct descriptor {
    char media_type[MEDIA_TYPE_MAX];
    char digest[DIGEST_SIZE];
    uint64_t size_bytes;
};

struct platform {
    char os[32], arch[32], variant[32]; /* "linux", "amd64", "" */
};

/* "linux/arm64", "linux/arm/v7", "arm64". NULL: this host's. */
int platform_parse(const char *text, struct platform *ret_platform, struct err *err);
void platform_format(const struct platform *platform, char ret_text[static 100]);

struct image_manifest {
    char media_type[MEDIA_TYPE_MAX];
    struct descriptor config;
    struct descriptor *layers;
    unsigned layer_count;
    json_t *json;
};

struct index_entry {
    struct descriptor descriptor;
    struct platform platform; /* os "" where none was given */
};

struct image_index {
    struct index_entry *entries;
    unsigned count;
    json_t *json;
};

/* What a container takes over from an image; strings belong to json. Arrays end with NULL and are never NULL
 * themselves. */
struct image_config {
    struct platform platform;
    const char **env, **cmd, **entrypoint, **volumes, **ports, **shell, **onbuild;
    const char *user, *working_dir, *stop_signal; /* "" where not given */
    struct {
        const char **test; /* empty: none; "NONE", "CMD" or "CMD-SHELL" first */
        uint64_t interval_ns, timeout_ns, start_period_ns, start_interval_ns;
        unsigned retries; /* 0 everywhere: the runner's default */
    } health;
    char (*diff_ids)[DIGEST_SIZE];
    unsigned diff_count;
    json_t *json; /* the whole document */
};

enum document_kind { DOCUMENT_MANIFEST, DOCUMENT_INDEX };

/* What a document is: by its mediaType, or by its members. media_type: what it came with, or NULL. */
int document_kind(const char *text, size_t size, const char *media_type, enum document_kind *ret_kind,
                  struct err *err);
int manifest_parse(const char *text, size_t size, const char *media_type, struct image_manifest *ret_manifest,
                   struct err *err);
void manifest_free(struct image_manifest *manifest);
int index_parse(const char *text, size_t size, struct image_index *ret_index, struct err *err);
void index_free(struct image_index *index);
/* The best entry for a platform, or NULL. */
const struct index_entry *index_find(const struct image_index *index, const struct platform *platform);
int config_parse_image(const char *text, size_t size, struct image_config *ret_config, struct err *err);
void image_config_free(struct image_config *config);

/* A descriptor from JSON; what names it in errors. */
int descriptor_parse(const json_t *json, const char *what, struct descriptor *ret_descriptor,
                     struct err *err);
json_t *descriptor_json(const struct descriptor *descriptor); /* new reference, or NULL: no memory */
/* The manifest's text, in OCI's or Docker's words. Caller frees. */
char *manifest_write(const struct descriptor *config, const struct descriptor *layers, unsigned count,
                     bool docker);

#endif
