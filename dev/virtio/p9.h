/*
 * A 9P2000.L server over one directory: requests in, answers out; no transport.
 *
 * Facts: the 9P2000 manual (intro(5)) and the 9P2000.L extension as Linux's fs/9p speaks it.
 *
 * Confinement
 *  1. Every fid holds a file descriptor (O_PATH). A name is looked up as one component below its
 *     directory's descriptor, never as a path, and never "..", so that no symlink is followed and no rename
 *     moves what a name means on the way.
 *  2. Links are read and made as texts; the guest follows them, inside of its own tree.
 *  3. Only regular files and directories are ever opened.
 *  4. A read-only share refuses every request that would change something before it looks at it.
 */
#ifndef FONDA_DEV_VIRTIO_P9_H
#define FONDA_DEV_VIRTIO_P9_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

#define P9_MESSAGE_MAX (512u * 1024) /* the largest msize */
#define P9_FIDS_MAX    4096u
#define P9_NAME_MAX    255u
#define P9_WALK_MAX    16u /* names in one walk: the protocol's limit */

struct p9;

struct p9 *p9_new(const char *dir, bool read_only, struct err *err); /* NULL: see err */
void p9_free(struct p9 *p9);
unsigned p9_fids(const struct p9 *p9); /* how many there are: none while nobody has mounted it */
/* Forgets all fids. */
void p9_reset(struct p9 *p9);

/* Answers one message into out, which has room for `room` bytes. Returns the answer's length, or 0 when the
 * message has no proper header or there is no room even for an error. */
uint32_t p9_handle(struct p9 *p9, const uint8_t *in, uint32_t len, uint8_t *out, uint32_t room);

#endif
