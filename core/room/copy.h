/* Files in and out of a root file system, as tar. Also used by the init inside machines (guest/init). */
#ifndef FONDA_CORE_ROOM_COPY_H
#define FONDA_CORE_ROOM_COPY_H

#include "base/err.h"

/* Tar out of and into `root` (a directory descriptor, taken over): the caller's standard output and input.
 * The process goes into the root, and can load no code any more. */
int room_export(int root, const char *path, struct err *err);
int room_import(int root, const char *path, struct err *err);

#endif
