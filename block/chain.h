/*
 * The files that an image consists of, opened for somebody who can't open them: a machine's process in its
 * jail gets them over its control socket. Neighbour: struct blk_open_file (block.h), which takes them.
 *
 * Threads: any; no loop of the caller's is used.
 */
#ifndef FONDA_BLOCK_CHAIN_H
#define FONDA_BLOCK_CHAIN_H

#include <stdbool.h>

#include "base/err.h"

#define BLK_CHAIN_FILES_MAX 16u

struct blk_chain {
    unsigned count;
    int fds[BLK_CHAIN_FILES_MAX]; /* the image's, then those of the images below it */
    char *paths[BLK_CHAIN_FILES_MAX];
};

/* Opens an image, for writing too if `writable`, and what lies below it, to read. format NULL: found out.
 * Whoever has the image in use is not looked for. Errors: those of blk_open and open; -E2BIG: too many files.
 */
int blk_chain_open(const char *path, const char *format, bool writable, struct blk_chain *ret_chain,
                   struct err *err);
/* Closes what is open. */
void blk_chain_close(struct blk_chain *chain);

#endif
