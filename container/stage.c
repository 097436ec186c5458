#include "container/stage.h"

#include "base/util.h"
#include "container/ns.h"
#include "container/paths.h"
#include "container/sync.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

pid_t stage_clone(const int fds[NS_KINDS], uint64_t flags, const int sync_fds[2], void (*fn)(void *arg),
                  void *arg, const char *what, struct err *err)
{
    int pid_fds[2];
    pid_t pid = -1;
    if (pipe2(pid_fds, O_CLOEXEC) < 0) {
        return err_sys(err, -errno, "cannot make a pipe");
    }
    pid_t stage = fork();
    if (stage == 0) {
        struct err why = {.code = 0};
        int rc = ns_join(fds, true, true, &why);
        if (rc == 0) {
            rc = ns_clone(flags | CLONE_PARENT, -1);
            if (rc == 0) {
                fn(arg);
            }
            if (rc < 0) {
                err_sys(&why, rc, "cannot make %s", what);
            }
        }
        if (rc < 0) {
            sync_send_error(sync_fds[1], &why);
        }
        _exit(write_all(pid_fds[1], &rc, sizeof(rc)) < 0);
    }
    close(pid_fds[1]);
    if (stage < 0 || read(pid_fds[0], &pid, sizeof(pid)) != sizeof(pid)) {
        pid = -EPIPE;
    }
    close(pid_fds[0]);
    while (stage > 0 && waitpid(stage, NULL, 0) < 0 && errno == EINTR) {
    }
    if (pid < 0 && sync_recv(sync_fds[0], err) != SYNC_ERROR) {
        err_sys(err, pid, "cannot make %s", what);
    }
    return pid;
}
