/*
 * The kernel of machines that are made from images, and the initramfs that goes with it: fonda-guest-init and
 * the modules that it loads. Both lie in a cache, a folder of the image store.
 *
 * Where the kernel comes from, first match: what was asked for; FONDA_GUEST_KERNEL; what the cache has; the
 * package linux-image-amd64 by the host's apt, which verifies it.
 */
#ifndef FONDA_GUEST_KERNEL_H
#define FONDA_GUEST_KERNEL_H

#include <limits.h>

#include "base/err.h"

struct guest_kernel {
    char kernel[PATH_MAX + 64], initrd[PATH_MAX + 64];
};

struct guest_kernel_options {
    const char *kernel;                          /* a file; NULL: see above */
    const char *init;                            /* path of fonda-guest-init */
    const char *cache;                           /* the folder; made where it is missing */
    void (*say)(void *opaque, const char *what); /* what is being done; may be NULL */
    void *opaque;
};

/* A kernel FILE has its modules in the folder 'modules' beside it, or, where it is called vmlinuz-RELEASE, in
 * ../lib/modules/RELEASE or /lib/modules/RELEASE.
 * Errors: -ENOENT (no kernel, no module; says what to do), -EIO. */
int guest_kernel_get(const struct guest_kernel_options *options, struct guest_kernel *ret_kernel,
                     struct err *err);

#endif
