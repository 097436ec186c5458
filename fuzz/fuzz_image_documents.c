/*
 * Fuzz target: manifests, indexes and configurations of images, each reader over the same bytes.
 */
#include <stdlib.h>

#include "fuzz/fuzz.h"
#include "image/manifest.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *text = (const char *)data;
    enum document_kind kind;
    struct image_manifest manifest;
    struct image_index index;
    struct image_config config;
    struct platform platform;
    struct err err;
    document_kind(text, size, NULL, &kind, &err);
    if (manifest_parse(text, size, NULL, &manifest, &err) == 0) {
        free(manifest_write(&manifest.config, manifest.layers, manifest.layer_count, false));
        manifest_free(&manifest);
    }
    if (index_parse(text, size, &index, &err) == 0) {
        platform_parse("linux/arm/v7", &platform, &err);
        index_find(&index, &platform);
        index_free(&index);
    }
    if (config_parse_image(text, size, &config, &err) == 0) {
        image_config_free(&config);
    }
    return 0;
}
