#include "vm/terminal.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "base/util.h"

#define KEEPER_DISMISS 'q'

static struct termios saved;
static int saved_fd = -1;
static int keeper_pipe = -1;
static pid_t keeper_pid;

static _Noreturn void keeper_main(int pipe_fd, int tty)
{
    /* Ctrl-C and a closing window must not end the keeper before it has done its work; SIGTTOU is what a
     * process of the background gets for tcsetattr. */
    static const int ignored[] = {SIGINT, SIGQUIT, SIGHUP, SIGTERM, SIGTSTP, SIGTTOU, SIGTTIN};
    for (size_t i = 0; i < ARRAY_SIZE(ignored); i++) {
        signal(ignored[i], SIG_IGN);
    }
    /* Keeps the terminal and the pipe, and nothing else: whoever waits for our output's end must not wait for
     * the keeper, and guest memory must not live on in it. */
    dup2(tty, 0);
    dup2(pipe_fd, 1);
    close(2);
    close_range(3, ~0u, 0);
    char byte = 0;
    ssize_t n;
    do {
        n = read(1, &byte, 1);
    } while (n < 0 && errno == EINTR);
    if (n == 0) {
        tcsetattr(0, TCSANOW, &saved);
    }
    _exit(0);
}

static int keeper_start(int tty)
{
    int fds[2];
    if (pipe2(fds, O_CLOEXEC) < 0) {
        return -errno;
    }
    pid_t pid = fork();
    if (pid < 0) {
        int code = -errno;
        close(fds[0]);
        close(fds[1]);
        return code;
    }
    if (pid == 0) {
        close(fds[1]);
        keeper_main(fds[0], tty);
    }
    close(fds[0]);
    keeper_pipe = fds[1];
    keeper_pid = pid;
    return 0;
}

int terminal_raw(int fd)
{
    if (!isatty(fd) || saved_fd >= 0) {
        return 0;
    }
    if (tcgetattr(fd, &saved) < 0) {
        return -errno;
    }
    int rc = keeper_start(fd);
    if (rc < 0) {
        return rc;
    }
    saved_fd = fd;
    atexit(terminal_restore);
    struct termios raw = saved;
    cfmakeraw(&raw);
    raw.c_oflag |= OPOST; /* the guest sends its own carriage returns; our messages have none */
    return tcsetattr(fd, TCSANOW, &raw) < 0 ? -errno : 0;
}

void terminal_restore(void)
{
    if (saved_fd < 0) {
        return;
    }
    int fd = saved_fd;
    saved_fd = -1;
    tcsetattr(fd, TCSADRAIN, &saved);
    const char dismiss = KEEPER_DISMISS;
    if (write(keeper_pipe, &dismiss, 1) == 1) {
        waitpid(keeper_pid, NULL, 0);
    }
    close(keeper_pipe);
    keeper_pipe = -1;
}
