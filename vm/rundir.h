/*
 * Where named machines have their control sockets: $XDG_RUNTIME_DIR/fonda/NAME/control.sock, root's in
 * /run/fonda/NAME. Shared by fonda-vmm, which makes the directory, and the command line, which looks there.
 */
#ifndef FONDA_VM_RUNDIR_H
#define FONDA_VM_RUNDIR_H

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"

#define RUNDIR_NAME_MAX 40u /* bytes of a machine's name: the socket's path has room for 107 */
#define RUNDIR_PATH_MAX 108u

/* Letters, digits, '-', '_' and '.', not at the beginning. */
bool rundir_name_valid(const char *name);
/* The directory that holds the machines'. Errors: -ENOENT (XDG_RUNTIME_DIR is not set), -ENAMETOOLONG. */
int rundir_base(char *buf, size_t size, struct err *err);
/* The socket's path of a machine. Errors: as above, and -EINVAL for a bad name. */
int rundir_socket(const char *name, char *buf, size_t size, struct err *err);
/* Makes the machine's directory, mode 0700. Errors: those of mkdir; -EPERM when it is somebody else's. */
int rundir_make(const char *name, struct err *err);
/* Removes it if it is empty. */
void rundir_remove(const char *name);

#endif
