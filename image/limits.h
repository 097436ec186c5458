/*
 * Everything that a registry, an archive or a Containerfile can make grow has its limit here. What exceeds
 * one is refused with a sentence that names the limit.
 */
#ifndef FONDA_IMAGE_LIMITS_H
#define FONDA_IMAGE_LIMITS_H

#include "base/util.h"

#define IMAGE_MANIFEST_MAX                                                                                   \
    (4 * MiB) /* OCI distribution 1.1, "Pushing Manifests": registries accept at least this */
#define IMAGE_CONFIG_MAX         (4 * MiB)
#define IMAGE_LAYERS_MAX         500u /* overlayfs itself stops at 500 lower directories */
#define IMAGE_INDEX_ENTRIES_MAX  1000u
#define IMAGE_INDEX_DEPTH_MAX    4u
#define IMAGE_BLOB_MAX           (256 * GiB)
#define IMAGE_LAYER_BYTES_MAX    (64 * GiB) /* uncompressed; image_store_set_layer_max() changes it */
#define IMAGE_LAYER_ENTRIES_MAX  4000000u
#define IMAGE_PATH_BYTES_MAX     4095u
#define IMAGE_XATTR_BYTES_MAX    65536u /* XATTR_SIZE_MAX of Linux */
#define IMAGE_TREE_DEPTH_MAX     512u   /* of folders, when a tree is walked */
#define IMAGE_REDIRECTS_MAX      5L
#define IMAGE_TRIES_MAX          4u /* of one transfer; each goes on where the last one ended */
#define IMAGE_CONNECT_SECONDS    30L
#define IMAGE_STALL_SECONDS      60L /* without a byte */
#define IMAGE_TOKEN_MAX          (256 * KiB)
#define IMAGE_AUTH_FILE_MAX      (1 * MiB)
#define IMAGE_TAGS_BODY_MAX      (4 * MiB)
#define IMAGE_PARALLEL_DEFAULT   4u
#define IMAGE_PARALLEL_MAX       16u
#define IMAGE_STORE_JSON_MAX     (64 * MiB) /* index.json and other files of the store's own */
#define CONTAINERFILE_BYTES_MAX  (1 * MiB)
#define CONTAINERFILE_STEPS_MAX  2000u
#define CONTAINERFILE_STAGES_MAX 100u
#define CONTAINERFILE_WORDS_MAX  1000u
#define CONTAINERFILE_VALUE_MAX  65536u /* of one expanded word */

#endif
