/*
 * A NoCloud seed for cloud-init: user data and meta data on a small ISO 9660 volume that is called CIDATA.
 *
 * Facts: cloud-init's documentation, "NoCloud".
 */
#ifndef FONDA_VM_SEED_H
#define FONDA_VM_SEED_H

#include "base/err.h"

#define SEED_FILE_MAX (1u << 20) /* of user data, and of meta data */

/* Makes the volume in memory and returns its file descriptor, or a negative errno. meta_data NULL: an
 * instance-id made from the user data, so that other data counts as another machine. Errors: those of opening
 * and reading, -EFBIG. */
int seed_make(const char *user_data, const char *meta_data, struct err *err);

#endif
