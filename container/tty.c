#include "container/tty.h"

#include "base/log.h"
#include "base/util.h"
#include "container/mnt.h"
#include "container/paths.h"
#include "container/sync.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <termios.h>

int tty_open(int root_fd, int *ret_master, int *ret_slave, struct err *err)
{
    struct statfs fs;
    struct fd_path path;
    int zero = 0;
    auto_close int at = path_open(root_fd, "/dev/pts/ptmx", PATH_NO_FOLLOW);
    if (at < 0) {
        return err_sys(err, at, "a terminal needs a devpts mount at /dev/pts");
    }
    if (fstatfs(at, &fs) < 0 || fs.f_type != DEVPTS_SUPER_MAGIC) {
        return err_set(err, -EPERM, "/dev/pts/ptmx of the container is not on a devpts");
    }
    int master = open(fd_path(at, &path), O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (master < 0) {
        return err_sys(err, -errno, "cannot open /dev/pts/ptmx of the container");
    }
    int slave = -1;
    if (ioctl(master, TIOCSPTLCK, &zero) < 0 ||
        (slave = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC)) < 0) {
        int code = -errno;
        close(master);
        return err_sys(err, code, "cannot open the terminal");
    }
    *ret_master = master;
    *ret_slave = slave;
    return 0;
}

int tty_bind_console(int root_fd, int slave, struct err *err)
{
    struct mnt_target t = {.root_fd = root_fd, .path = "/dev/console"};
    struct mnt_attrs attrs = {.set = 0};
    t.fd = path_make(root_fd, t.path, true, PATH_NO_FOLLOW);
    int rc = t.fd < 0 ? err_sys(err, t.fd, "cannot make the mount point")
                      : mnt_bind(slave, false, false, &attrs, &t, err);
    mnt_target_done(&t);
    return rc < 0 ? err_prefix(err, "/dev/console") : 0;
}

int tty_take(int master, int slave, int socket_fd, const struct oci_process *process, struct err *err)
{
    struct winsize size = {.ws_row = (unsigned short)process->console_height,
                           .ws_col = (unsigned short)process->console_width};
    if (size.ws_row && size.ws_col && ioctl(master, TIOCSWINSZ, &size) < 0) {
        return err_sys(err, -errno, "cannot set the terminal's size");
    }
    if (fchown(slave, process->uid, (gid_t)-1) < 0) {
        log_debug("cannot give the terminal to uid %u: %s", process->uid, strerror(errno));
    }
    int rc = fd_send(socket_fd, master, "/dev/ptmx");
    if (rc < 0) {
        return err_sys(err, rc, "cannot send the terminal over the console socket");
    }
    if (ioctl(slave, TIOCSCTTY, 0) < 0) {
        return err_sys(err, -errno, "cannot take the terminal as controlling terminal");
    }
    for (int fd = 0; fd < 3; fd++) {
        if (dup2(slave, fd) < 0) {
            return err_sys(err, -errno, "cannot take the terminal as stdio");
        }
    }
    return 0;
}

int tty_receive(int socket_fd, struct err *err)
{
    char text[64];
    struct iovec iov = {.iov_base = text, .iov_len = sizeof(text)};
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(sizeof(int))];
    } control;
    struct msghdr msg = {.msg_iov = &iov,
                         .msg_iovlen = 1,
                         .msg_control = control.room,
                         .msg_controllen = sizeof(control.room)};
    ssize_t n = recvmsg(socket_fd, &msg, MSG_CMSG_CLOEXEC);
    struct cmsghdr *cmsg = n > 0 ? CMSG_FIRSTHDR(&msg) : NULL;
    if (!cmsg || cmsg->cmsg_type != SCM_RIGHTS || cmsg->cmsg_len != CMSG_LEN(sizeof(int))) {
        return err_set(err, -EIO, "no terminal came from the container");
    }
    int fd;
    memcpy(&fd, CMSG_DATA(cmsg), sizeof(fd));
    return fd;
}

enum copied { COPY_SOME, COPY_END, COPY_HUNG };

/* Copies what is there. COPY_HUNG: nobody has the terminal open now, as between init's messages. */
static enum copied copy_some(int from, int to)
{
    char buffer[4096];
    ssize_t n = read(from, buffer, sizeof(buffer));
    if (n < 0 && (errno == EINTR || errno == EAGAIN)) {
        return COPY_SOME;
    }
    if (n < 0 && errno == EIO) {
        return COPY_HUNG;
    }
    return n > 0 && write_all(to, buffer, (size_t)n) == 0 ? COPY_SOME : COPY_END;
}

static void copy_size(int master)
{
    struct winsize size;
    if (ioctl(0, TIOCGWINSZ, &size) == 0) {
        ioctl(master, TIOCSWINSZ, &size);
    }
}

#define HUNG_MS 50

int tty_proxy(int master, pid_t pid)
{
    struct termios saved;
    bool raw = tcgetattr(0, &saved) == 0;
    if (raw) {
        struct termios t = saved;
        cfmakeraw(&t);
        tcsetattr(0, TCSANOW, &t);
        copy_size(master);
    }
    sigset_t mask;
    sigemptyset(&mask);
    sigaddset(&mask, SIGCHLD);
    sigaddset(&mask, SIGWINCH);
    sigaddset(&mask, SIGTERM);
    sigprocmask(SIG_BLOCK, &mask, NULL);
    auto_close int signals = signalfd(-1, &mask, SFD_CLOEXEC);
    struct pollfd p[3] = {
        {.fd = master, .events = POLLIN}, {.fd = 0, .events = POLLIN}, {.fd = signals, .events = POLLIN}};
    int status = 0;
    bool ended = waitpid(pid, &status, WNOHANG) == pid;
    bool open = true; /* the terminal may still say something */
    while (!ended || p[0].fd >= 0) {
        /* poll(2) tells of a hang-up without end, so such a terminal is looked at now and then. */
        if (poll(p, 3, ended ? 0 : open && p[0].fd < 0 ? HUNG_MS : -1) < 0 && errno != EINTR) {
            break;
        }
        if (p[0].fd >= 0 && p[0].revents) {
            enum copied copied = copy_some(master, 1);
            open = copied != COPY_END;
            p[0].fd = copied == COPY_SOME ? master : -1;
        } else if (open && p[0].fd < 0) {
            p[0].fd = master;
            p[0].revents = 0;
        }
        if (p[1].fd >= 0 && p[1].revents && copy_some(0, master) != COPY_SOME) {
            p[1].fd = -1;
        }
        if (p[2].revents) {
            struct signalfd_siginfo info;
            if (read(signals, &info, sizeof(info)) == sizeof(info) && info.ssi_signo == SIGWINCH) {
                copy_size(master);
            } else if (info.ssi_signo == SIGTERM) {
                kill(pid, SIGTERM);
            }
        }
        if (!ended) {
            ended = waitpid(pid, &status, WNOHANG) == pid;
            p[0].fd = ended && open ? master : p[0].fd;
        } else if (!p[0].revents) {
            break;
        }
    }
    if (raw) {
        tcsetattr(0, TCSANOW, &saved);
    }
    return status;
}
