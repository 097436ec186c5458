/*
 * What differs between trees of layers, and the way of such differences into a layer's tar.
 */
#ifndef FONDA_IMAGE_CHANGES_H
#define FONDA_IMAGE_CHANGES_H

#include "image/image.h"
#include "image/manifest.h"

/* What the folder upper (overlayfs's form) changes over stack (topmost first). Paths come sorted, folders
 * before their contents. */
int changes_of_upper(int upper, const int *stack, unsigned count, image_change_fn fn, void *opaque,
                     struct err *err);
/* What stack b has other than stack a. A flattened tree is a stack of one. */
int changes_between(const int *a, unsigned a_count, const int *b, unsigned b_count, image_change_fn fn,
                    void *opaque, struct err *err);

/* A layer's tar in the making. */
struct layer_pack;
int layer_pack_new(struct image_store *store, bool zstd, struct layer_pack **ret_pack, struct err *err);
/* An image_change_fn's work: path from the tree. Parents that weren't written yet are written first. */
int layer_pack_change(struct layer_pack *pack, int tree, enum image_change change, const char *path,
                      struct err *err);
/* Ends the tar and puts it into the store. Also frees the pack; so does layer_pack_free, for errors. */
int layer_pack_finish(struct layer_pack *pack, struct descriptor *ret_layer,
                      char ret_diff_id[static DIGEST_SIZE], struct err *err);
void layer_pack_free(struct layer_pack *pack);

#endif
