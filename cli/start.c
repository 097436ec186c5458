/*
 * Starting a daemon when none runs. Commands at the same moment start one: they queue up at a lock, and each
 * looks again whether somebody listens.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>

#include "base/util.h"
#include "cli/client.h"

#define START_TIMEOUT_MS 15000

static int try_connect(const char *path)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    auto_close int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", path);
    return fd >= 0 && connect(fd, (struct sockaddr *)&addr, sizeof(addr)) == 0 ? 0 : -errno;
}

static int make_dirs(const char *path)
{
    char part[PATH_MAX];
    snprintf(part, sizeof(part), "%s", path);
    for (char *c = part + 1;; c++) {
        if (*c == '/' || *c == '\0') {
            char kept = *c;
            *c = '\0';
            if (mkdir(part, 0700) < 0 && errno != EEXIST) {
                return -errno;
            }
            *c = kept;
            if (!kept) {
                return 0;
            }
        }
    }
}

static void run_daemon(const char *state, const char *socket, const char *log)
{
    static const char *const places[] = {"fondad", "../sbin/fondad", "../daemon/fondad"};
    char self[PATH_MAX], path[PATH_MAX + 32];
    ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
    self[n > 0 ? n : 0] = '\0';
    char *slash = strrchr(self, '/');
    if (slash) {
        slash[1] = '\0';
    }
    setsid();
    int in = open("/dev/null", O_RDONLY), out = open(log, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    dup2(in, 0);
    dup2(out, 1);
    dup2(out, 2);
    close_range(3, ~0u, 0);
    for (size_t i = 0; i < ARRAY_SIZE(places); i++) {
        snprintf(path, sizeof(path), "%s%s", self, places[i]);
        execl(path, "fondad", "--state", state, "--socket", socket, NULL);
    }
    dprintf(2, "cannot find fondad beside %s: is the installation complete?\n", self);
    _exit(127);
}

static int failed(const char *log, struct err *err)
{
    char text[400] = "";
    auto_close int fd = open(log, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
    text[n > 0 ? n : 0] = '\0';
    text[strcspn(text, "\n")] = '\0';
    return err_set(err, -ECONNREFUSED, "the daemon did not start: %s", text[0] ? text : "it said nothing");
}

int daemon_ensure(const char *state, const char *socket, struct err *err)
{
    char path[PATH_MAX], log[PATH_MAX];
    int rc = try_connect(socket);
    if (rc == 0) {
        return 0;
    }
    if (rc == -EACCES) {
        return err_set(err, rc, "cannot use the daemon's socket '%s': it belongs to another user", socket);
    }
    rc = make_dirs(state);
    if (rc < 0) {
        return err_sys(err, rc, "cannot make the state directory '%s'", state);
    }
    snprintf(path, sizeof(path), "%s/start.lock", state);
    snprintf(log, sizeof(log), "%s/fondad.log", state);
    auto_close int lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (lock < 0 || flock(lock, LOCK_EX) < 0) {
        return err_sys(err, -errno, "cannot lock '%s'", path);
    }
    if (try_connect(socket) == 0) {
        return 0;
    }
    pid_t pid = fork();
    if (pid == 0) {
        run_daemon(state, socket, log);
    }
    for (unsigned waited = 0; pid > 0 && waited < START_TIMEOUT_MS; waited += 5) {
        if (try_connect(socket) == 0) {
            return 0;
        }
        if (waitpid(pid, NULL, WNOHANG) == pid) {
            return failed(log, err);
        }
        struct timespec ts = {0, 5000000};
        nanosleep(&ts, NULL);
    }
    return failed(log, err);
}
