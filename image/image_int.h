/*
 * What the files of this folder share about whole images.
 */
#ifndef FONDA_IMAGE_IMAGE_INT_H
#define FONDA_IMAGE_IMAGE_INT_H

#include "image/store.h"

/* An image from its manifest in the store; name may be "". */
int image_from_manifest(struct image_store *store, const char *name, const struct descriptor *manifest,
                        struct image **ret_image, struct err *err);
/* Follows indexes that are in the store down to the manifest for a platform. */
int image_resolve_index(struct image_store *store, struct descriptor *in_out, const char *platform,
                        struct err *err);
/* Chain IDs of all layers, lowest first. */
int image_chain_ids(const struct image_config *config, char (**ret_ids)[DIGEST_SIZE], struct err *err);
/* Runs fn(opaque, index) for 0..count on up to parallel threads; the first error ends it and is returned. */
int image_parallel(unsigned count, unsigned parallel,
                   int (*fn)(void *opaque, unsigned worker, unsigned index, struct err *err), void *opaque,
                   struct err *err);
/* Layer paths, topmost first, to compare and mount: descriptors. */
int image_stack(struct image_store *store, const struct image *image, int **ret_stack, struct err *err);
void image_report(const struct image_options *options, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

/* Parsed name, as the key of the table; a digest is refused where no_digest. */
int image_name(const char *text, bool no_digest, char ret_name[static REF_TEXT_MAX], struct err *err);

/* A writable layer as a blob in the store. */
int image_pack_rootfs(struct image_store *store, struct image_rootfs *rootfs, bool zstd,
                      struct descriptor *ret_layer, char ret_diff_id[static DIGEST_SIZE], struct err *err);
/* A config document: a copy of base's, or a new one for a platform; new reference. */
json_t *image_document(const struct image *base, const struct platform *platform);
/* One more step in its history, with a layer or (NULL) without. */
int image_document_add(json_t *document, const char *diff_id, const char *created_by, const char *comment,
                       const char *author);
/* The image with base's layers (base may be NULL) and layer (may be NULL). */
int image_write_over(struct image_store *store, const struct image *base, const struct descriptor *layer,
                     json_t *document, struct descriptor *ret_manifest, struct err *err);
/* Copies all that can be read from a descriptor into a new file in tmp/, which is returned. */
int image_spool(struct image_store *store, int from, char name[static STORE_TEMP_MAX], struct err *err);

/* Puts a config document and its manifest into the store. */
int image_write(struct image_store *store, const struct descriptor *layers, unsigned count, json_t *document,
                struct descriptor *ret_manifest, struct err *err);

#endif
