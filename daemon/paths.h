/*
 * Where the daemon's state and socket are, for both sides: fondad and the command line.
 */
#ifndef FONDA_DAEMON_PATHS_H
#define FONDA_DAEMON_PATHS_H

#include "base/err.h"

#define FONDA_PATH_MAX 512

/* state, socket: what options said, or NULL: then FONDA_STATE and FONDA_SOCKET, then the user's own places.
 * Errors: -EINVAL (no home directory; too long). */
int fonda_paths(const char *state, const char *socket, char *ret_state, char *ret_socket, struct err *err);

#endif
