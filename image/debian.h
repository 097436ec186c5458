/*
 * A bootable disk from Debian's archive: mmdebstrap installs the packages, and what it packs goes into an
 * ext4 file system (debian_tree.h) that fills the disk, without mounting, and without being root where
 * mmdebstrap can do without.
 *
 * The system has no boot loader: `fonda run` starts the kernel that it finds on the disk.
 */
#ifndef FONDA_IMAGE_DEBIAN_H
#define FONDA_IMAGE_DEBIAN_H

#include <stdint.h>

#include "base/err.h"

#define DEBIAN_PACKAGES_MAX 64u
#define DEBIAN_SIZE_MIN     (1ull << 30)

struct debian_config {
    const char *suite;     /* "bookworm" */
    const char *mirror;    /* NULL: what the host's apt uses for that suite */
    const char *apt_proxy; /* for the guest's apt; NULL: none */
    const char *kernel;    /* "cloud", "generic", or a package */
    const char *hostname;
    const char *password; /* root's; "" is none */
    const char *ssh_key;  /* file with public keys for root; NULL: none */
    const char *const *packages;
    unsigned package_count;
    uint64_t size_bytes;
    /* What is being done, for a person; on another thread too. */
    void (*progress)(void *opaque, const char *text);
    void *opaque;
};

/* Checks what can be checked without starting anything. Errors: -EINVAL. */
int debian_check(const struct debian_config *config, struct err *err);
/* Fills the file behind fd (empty, read-write, as its file system will be) as a raw disk of
 * config->size_bytes. Errors: -ENOENT (a program is missing; says the apt line), -ENOSPC, -EHOSTUNREACH (the
 * archive), -ENXIO (no such package), -EIO. The file's contents are undefined then. */
int debian_build(const struct debian_config *config, int fd, struct err *err);

#endif
