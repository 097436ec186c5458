/* Between a program's streams in the machine and descriptors here. */
#include "guest/host/host.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <termios.h>
#include <unistd.h>

#include "base/util.h"

struct state {
    struct relay *r;
    int blocked;   /* the descriptor that takes no more now; -1: none */
    uint32_t done; /* bytes of the frame at hand that are written */
    int status;    /* of the program; -1: it goes on */
    struct err *err;
};

static void close_input(struct relay *r)
{
    if (r->in >= 0) {
        close(r->in);
    }
    r->in = -1;
}

/* False: the rest has to wait. What nobody reads any more is dropped. */
static bool put(struct state *s, int fd, const struct wire_frame *frame)
{
    while (fd >= 0 && s->done < frame->size) {
        ssize_t n = write(fd, frame->data + s->done, frame->size - s->done);
        if (n < 0 && errno == EAGAIN) {
            s->blocked = fd;
            return false;
        }
        if (n < 0 && errno != EINTR) {
            break;
        }
        s->done += n > 0 ? (uint32_t)n : 0;
    }
    s->done = 0;
    return true;
}

static int take_frames(struct state *s)
{
    struct relay *r = s->r;
    struct wire_frame frame;
    int rc = 0;
    s->blocked = -1;
    while (s->status < 0 && (rc = wire_next(r->wire, true, &frame)) > 0) {
        int fd = frame.kind == WIRE_ERRORS && r->err >= 0 ? r->err : r->out;
        if ((frame.kind == WIRE_OUTPUT || frame.kind == WIRE_ERRORS) && !put(s, fd, &frame)) {
            return 0;
        }
        if (frame.kind == WIRE_EXIT) {
            s->status = frame.size ? frame.data[0] : 0;
        } else if (frame.kind == WIRE_FAILED) {
            char text[ERR_TEXT_MAX];
            link_clean(frame.data + MIN(frame.size, 1u), frame.size - MIN(frame.size, 1u), text,
                       sizeof(text));
            err_set(s->err, -EINVAL, "%s", text);
            s->status = frame.size ? frame.data[0] : 125;
        }
        wire_take(r->wire, &frame);
    }
    return rc < 0 ? rc : 0;
}

static void tell_size(struct relay *r)
{
    struct winsize size;
    if (r->terminal >= 0 && ioctl(r->terminal, TIOCGWINSZ, &size) == 0 && size.ws_row && wire_room(r->wire)) {
        const uint8_t data[4] = {(uint8_t)size.ws_row, (uint8_t)(size.ws_row >> 8), (uint8_t)size.ws_col,
                                 (uint8_t)(size.ws_col >> 8)};
        (void)wire_put(r->wire, WIRE_SIZE, data, sizeof(data));
    }
}

static void take_signals(struct relay *r)
{
    struct signalfd_siginfo info;
    while (read(r->signal_fd, &info, sizeof(info)) == sizeof(info)) {
        if (info.ssi_signo == SIGWINCH) {
            tell_size(r);
        } else if (r->on_signal) {
            r->on_signal(r->opaque, (int)info.ssi_signo);
        }
    }
}

static int pass_input(struct relay *r)
{
    uint8_t buf[WIRE_DATA_MAX];
    ssize_t n = read(r->in, buf, sizeof(buf));
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
        return 0;
    }
    if (n <= 0) {
        close_input(r);
        return wire_put(r->wire, WIRE_INPUT, NULL, 0);
    }
    return wire_put(r->wire, WIRE_INPUT, buf, (size_t)n);
}

int relay_run(struct relay *r, struct err *err)
{
    struct state s = {.r = r, .blocked = -1, .status = -1, .err = err};
    int rc = 0;
    for (int i = 0; i < 2; i++) {
        int fd = i ? r->err : r->out;
        if (fd >= 0) {
            (void)fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
        }
    }
    tell_size(r);
    while (rc == 0 && (rc = take_frames(&s)) == 0 && s.status < 0) {
        bool held = s.blocked >= 0;
        struct pollfd fds[] = {
            {.fd = held && !r->wire->out_size ? -1 : r->wire->fd,
             .events = (short)((held ? 0 : POLLIN) | (r->wire->out_size ? POLLOUT : 0))},
            {.fd = r->in >= 0 && wire_room(r->wire) ? r->in : -1, .events = POLLIN},
            {.fd = s.blocked, .events = POLLOUT},
            {.fd = r->signal_fd, .events = POLLIN},
            {.fd = r->watch_fd, .events = POLLIN},
        };
        if (poll(fds, ARRAY_SIZE(fds), -1) < 0 && errno != EINTR) {
            return -errno;
        }
        if (fds[3].revents) {
            take_signals(r);
        }
        if (fds[1].revents) {
            rc = pass_input(r);
        }
        if (rc == 0 && fds[0].revents & (POLLOUT | POLLERR)) {
            rc = wire_flush(r->wire);
        }
        if (rc == 0 && !held && fds[0].revents & (POLLIN | POLLHUP)) {
            rc = wire_fill(r->wire);
        } else if (rc == 0 && fds[4].revents && !fds[0].revents) {
            rc = -ECHILD; /* and nothing more to read */
        }
    }
    return s.status >= 0 ? s.status : rc;
}

/* ---- terminals ---- */

static int send_descriptor(const char *path, int fd, struct err *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    char byte = 0, space[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec iov = {&byte, 1};
    struct msghdr message = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof(space)};
    struct cmsghdr *part = CMSG_FIRSTHDR(&message);
    auto_close int sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    part->cmsg_level = SOL_SOCKET;
    part->cmsg_type = SCM_RIGHTS;
    part->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(part), &fd, sizeof(fd));
    if (strlen(path) >= sizeof(address.sun_path)) {
        return err_sys(err, -ENAMETOOLONG, "console socket '%s'", path);
    }
    snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
    if (sock < 0 || connect(sock, (struct sockaddr *)&address, sizeof(address)) < 0 ||
        sendmsg(sock, &message, MSG_NOSIGNAL) < 0) {
        return err_sys(err, -errno, "cannot hand the terminal to '%s'", path);
    }
    return 0;
}

int relay_terminal(const char *socket, struct err *err)
{
    struct termios raw;
    int unlock = 0;
    auto_close int master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC);
    auto_close int slave = master < 0 || ioctl(master, TIOCSPTLCK, &unlock) < 0
                               ? -1
                               : ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (slave < 0 || tcgetattr(slave, &raw) < 0) {
        return err_sys(err, -errno, "cannot make a terminal");
    }
    cfmakeraw(&raw); /* the machine's own terminal does what terminals do */
    (void)tcsetattr(slave, TCSANOW, &raw);
    int rc = send_descriptor(socket, master, err);
    return rc < 0 ? rc : take_fd(&slave);
}
