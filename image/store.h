/*
 * The store on disk: an OCI image layout (image specification, image-layout.md) that any OCI tool can read,
 * with what Fonda needs beside it:
 *
 *   oci-layout, index.json    the table of names: org.opencontainers.image.ref.name -> manifest
 *   blobs/sha256/HEX          verified before they get this name, never changed after
 *   layers/HEX/diff           a layer, unpacked, by its chain ID; layers/HEX/layer.json says what it is
 *   containers/NAME/          writable layers (rootfs.c)
 *   cache/HEX                 the build cache
 *   tmp/                      downloads and layers in the making, named after what they become
 *   lock, index.lock          see below
 *
 * Locks (flock): whoever adds or reads holds `lock` shared, whoever removes holds it alone; `index.lock` is
 * held for the time of one change of index.json; tmp/HEX.partial and tmp/HEX.layer are locked by the one who
 * makes that blob or layer, so that of two pulls one waits and then finds it there.
 *
 * After a crash: files get their final name by rename when they are whole. What was written since the last
 * sync is listed in tmp/unsynced-BOOT, and is checked again if the machine (not just the process) went down
 * before the sync.
 */
#ifndef FONDA_IMAGE_STORE_H
#define FONDA_IMAGE_STORE_H

#include "image/image.h"
#include "image/manifest.h"

struct image_store {
    char *path;
    int fd;
    uint64_t layer_max; /* bytes of one unpacked layer */
};

/* Returns a descriptor whose close() gives the lock back. wait false: -EWOULDBLOCK where somebody is in the
 * way. */
int store_lock(struct image_store *store, bool alone, bool wait, struct err *err);
int store_lock_file(struct image_store *store, const char *name, struct err *err);

bool store_has_blob(struct image_store *store, const char *digest);
int store_open_blob(struct image_store *store, const char *digest, uint64_t *ret_size, struct err *err);
/* A small blob as text; its digest is checked. Caller frees. */
int store_read_blob(struct image_store *store, const struct descriptor *d, uint64_t max, char **ret_text,
                    size_t *ret_size, struct err *err);
int store_put_blob(struct image_store *store, const void *data, size_t size,
                   char ret_digest[static DIGEST_SIZE], struct err *err);
/* A new file in tmp/, and its way into blobs/. name: of the file below the store. */
#define STORE_TEMP_MAX 128
int store_temp(struct image_store *store, char ret_name[static STORE_TEMP_MAX], struct err *err);
int store_adopt_blob(struct image_store *store, const char *name, const char *digest, struct err *err);

/* What is not on the disk yet but has its final name: path "blobs/sha256/HEX" or "layers/HEX". */
int store_note_unsynced(struct image_store *store, const char *path, struct err *err);

struct store_entry {
    char name[REF_TEXT_MAX];
    struct descriptor manifest;
};
/* All names, sorted. Caller frees. */
int store_entries(struct image_store *store, struct store_entry **ret_entries, size_t *ret_count,
                  struct err *err);
int store_tag(struct image_store *store, const char *name, const struct descriptor *manifest,
              struct err *err);
/* -ENOENT where the name isn't there. */
int store_untag(struct image_store *store, const char *name, struct err *err);
/* By name, or by the beginning of a manifest's or config's digest (at least STORE_ID_MIN digits, "sha256:"
 * may be in front). */
#define STORE_ID_MIN 6
int store_find(struct image_store *store, const char *text, struct store_entry *ret_entry, struct err *err);

/* "layers/HEX/diff" */
#define STORE_LAYER_MAX 96
void store_layer_path(const char *chain_id, char ret_path[static STORE_LAYER_MAX]);
bool store_has_layer(struct image_store *store, const char *chain_id);

#endif
