/*
 * mmdebstrap: what it is called with, what its messages mean for a person.
 */
#ifndef FONDA_IMAGE_DEBIAN_BOOTSTRAP_H
#define FONDA_IMAGE_DEBIAN_BOOTSTRAP_H

#include "base/err.h"
#include "image/debian.h"
#include "image/debian_archive.h"
#include "image/debian_process.h"

/* One run. Messages are read on the process's thread; behind bootstrap_wait they belong to the caller. */
struct bootstrap {
    struct process process;
    const struct debian_config *config;
    const struct archive_sources *sources;
    char *include; /* its --include */
    bool interrupted;
    char cause[PROCESS_LINE_MAX];
    struct err reason; /* what its messages say */
};

/* Starts it; its output (process.out_fd) is a tar stream of the system. The struct has to stay where it is.
 * Errors: -ENOENT (not installed), those of starting it. */
int bootstrap_start(struct bootstrap *bootstrap, const struct debian_config *config,
                    const struct archive_sources *sources, struct err *err);
/* Waits for its end. Errors: see debian_build. */
int bootstrap_wait(struct bootstrap *bootstrap, struct err *err);

#endif
