/*
 * The runtime's own binary must not be writable by way of /proc/<pid>/exe from inside of a container
 * (CVE-2019-5736).
 *
 * Before a process of ours enters a container it runs from something that can't be written: the binary bound
 * read-only on a detached mount (no copy, so no memory), or where mounts are not allowed a sealed memfd copy.
 * Nothing is done if the binary is on a read-only mount already, or couldn't be written by this user anyway.
 */
#ifndef FONDA_CONTAINER_SELF_H
#define FONDA_CONTAINER_SELF_H

#include "base/err.h"

/* Returns 0 when the running binary is safe; otherwise executes itself anew, or fails. */
int self_protect(char **argv, struct err *err);

#endif
