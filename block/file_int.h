/* Between file.c and filelock.c. */
#ifndef FONDA_BLOCK_FILE_INT_H
#define FONDA_BLOCK_FILE_INT_H

#include <stdbool.h>

#include "base/err.h"

/* Locks an image against other programs, until fd is closed: -EBUSY when one has it. */
int blk_file_lock(int fd, const char *path, bool writes, struct err *err);

#endif
