/*
 * A client of the OCI distribution specification 1.1 over libcurl. A registry object serves one repository;
 * each thread has its own connection. What comes back is bounded, and is not trusted: callers check digests.
 */
#ifndef FONDA_IMAGE_REGISTRY_H
#define FONDA_IMAGE_REGISTRY_H

#include "image/image.h"

struct registry;
struct registry_conn;

/* push: tokens are asked for with the right to write. Finds out whether the registry speaks TLS. */
int registry_open(const struct image_ref *ref, const struct image_options *options, bool push,
                  struct registry **ret_registry, struct err *err);
void registry_close(struct registry *registry);
int registry_conn_new(struct registry *registry, struct registry_conn **ret_conn, struct err *err);
void registry_conn_free(struct registry_conn *conn);

/* reference: tag or digest. Caller frees the text. -ENOENT: not there. */
int registry_get_manifest(struct registry_conn *conn, const char *reference, char **ret_text,
                          size_t *ret_size, char ret_media_type[static MEDIA_TYPE_MAX], struct err *err);
/* Continues a download: fd has `have` bytes, state has hashed them. on_bytes hears of progress. Tries again
 * after network errors. */
int registry_get_blob(struct registry_conn *conn, const struct descriptor *d, int fd, uint64_t have,
                      struct digest_state *state, void (*on_bytes)(void *opaque, uint64_t done), void *opaque,
                      struct err *err);
int registry_has_blob(struct registry_conn *conn, const char *digest, bool *ret_has, struct err *err);
int registry_put_blob(struct registry_conn *conn, const struct descriptor *d, int fd,
                      void (*on_bytes)(void *opaque, uint64_t done), void *opaque, struct err *err);
int registry_put_manifest(struct registry_conn *conn, const char *reference, const char *media_type,
                          const char *text, size_t size, struct err *err);

#endif
