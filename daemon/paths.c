/* Where state and socket are. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>
#include <unistd.h>

#include "daemon/paths.h"

static const char *env(const char *name)
{
    const char *value = getenv(name);
    return value && value[0] ? value : NULL;
}

int fonda_paths(const char *state, const char *socket, char *ret_state, char *ret_socket, struct err *err)
{
    char cwd[FONDA_PATH_MAX] = "";
    const char *home = env("HOME");
    state = state ? state : env("FONDA_STATE");
    if (state && state[0] != '/') {
        if (!getcwd(cwd, sizeof(cwd))) {
            return err_sys(err, -errno, "cannot tell the working directory");
        }
        snprintf(ret_state, FONDA_PATH_MAX, "%s/%s", cwd, state);
    } else if (state) {
        snprintf(ret_state, FONDA_PATH_MAX, "%s", state);
    } else if (geteuid() == 0) {
        snprintf(ret_state, FONDA_PATH_MAX, "/var/lib/fonda");
    } else if (env("XDG_DATA_HOME")) {
        snprintf(ret_state, FONDA_PATH_MAX, "%s/fonda", env("XDG_DATA_HOME"));
    } else if (home) {
        snprintf(ret_state, FONDA_PATH_MAX, "%s/.local/share/fonda", home);
    } else {
        return err_set(err, -EINVAL, "there is no HOME: say where the state is, by --state or FONDA_STATE");
    }
    socket = socket ? socket : env("FONDA_SOCKET");
    int len = socket ? snprintf(ret_socket, FONDA_PATH_MAX, "%s", socket)
                     : snprintf(ret_socket, FONDA_PATH_MAX, "%s/fondad.sock", ret_state);
    if ((size_t)len >= sizeof(((struct sockaddr_un *)0)->sun_path)) {
        return err_set(err, -EINVAL,
                       "the socket's path '%s' is too long for a socket: choose a shorter one by --socket or "
                       "FONDA_SOCKET",
                       ret_socket);
    }
    return 0;
}
