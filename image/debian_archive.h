/*
 * Where packages come from: the archive that the host's apt uses, so that whoever builds here gets what
 * `apt-get` gets.
 */
#ifndef FONDA_IMAGE_DEBIAN_ARCHIVE_H
#define FONDA_IMAGE_DEBIAN_ARCHIVE_H

#include <stdbool.h>

#include "base/err.h"

#define ARCHIVE_LINES_MAX 8u

struct archive_sources {
    unsigned count;
    char *lines[ARCHIVE_LINES_MAX]; /* "deb http://mirror/debian bookworm main" */
    bool ignore_dates; /* the host's apt ignores when lists expire: its archive is a frozen one */
    char *proxy;       /* which the host's apt goes through, or NULL */
};

/* mirror: instead of the host's sources; may be NULL. Errors: -ENOENT (the host has no source of the suite).
 */
int archive_sources_find(const char *suite, const char *mirror, struct archive_sources *ret_sources,
                         struct err *err);
void archive_sources_done(struct archive_sources *sources);

#endif
