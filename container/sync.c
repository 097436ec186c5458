#include "container/sync.h"

#include "base/util.h"
#include "container/paths.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

struct sync_message {
    int kind;
    int code;
    char text[ERR_TEXT_MAX];
};

#define SYNC_SHORT offsetof(struct sync_message, text)

int sync_pair(int ret_fds[2], struct err *err)
{
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ret_fds) < 0) {
        return err_sys(err, -errno, "cannot make a socket pair");
    }
    return 0;
}

static int send_retry(int fd, const void *data, size_t size)
{
    ssize_t n;
    do {
        n = send(fd, data, size, MSG_NOSIGNAL);
    } while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : 0;
}

int sync_send(int fd, enum sync_kind kind)
{
    struct sync_message m = {.kind = (int)kind};
    return send_retry(fd, &m, SYNC_SHORT);
}

void sync_send_error(int fd, const struct err *err)
{
    struct sync_message m = {.kind = SYNC_ERROR, .code = err->code};
    memcpy(m.text, err->text, sizeof(m.text));
    send_retry(fd, &m, sizeof(m));
}

enum sync_kind sync_recv(int fd, struct err *err)
{
    struct sync_message m = {.kind = 0};
    ssize_t n;
    do {
        n = recv(fd, &m, sizeof(m), 0);
        /* ECONNRESET, once: the other side closed without reading all; what it sent is still to come. */
    } while (n < 0 && (errno == EINTR || errno == ECONNRESET));
    if (n < (ssize_t)SYNC_SHORT || m.kind <= 0 || m.kind >= SYNC_END) {
        return SYNC_END;
    }
    if (m.kind == SYNC_ERROR) {
        m.text[sizeof(m.text) - 1] = '\0';
        err_set(err, m.code < 0 ? m.code : -EIO, "%s", m.text);
    }
    return (enum sync_kind)m.kind;
}

int sync_expect(int fd, enum sync_kind kind, struct err *err)
{
    enum sync_kind got = sync_recv(fd, err);
    if (got == kind) {
        return 0;
    }
    if (got == SYNC_ERROR) {
        return err ? err->code : -EIO;
    }
    return err_set(err, -EPIPE, "the other side of the runtime went away");
}

int fd_send(int socket_fd, int fd, const char *text)
{
    struct iovec iov = {.iov_base = (void *)text, .iov_len = strlen(text)};
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(sizeof(int))];
    } control = {.room = {0}};
    struct msghdr msg = {.msg_iov = &iov,
                         .msg_iovlen = 1,
                         .msg_control = control.room,
                         .msg_controllen = sizeof(control.room)};
    struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);
    cmsg->cmsg_level = SOL_SOCKET;
    cmsg->cmsg_type = SCM_RIGHTS;
    cmsg->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(cmsg), &fd, sizeof(fd));
    return sendmsg(socket_fd, &msg, MSG_NOSIGNAL) < 0 ? -errno : 0;
}

int unix_connect(const char *path)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    auto_close int at = -1;
    if (strlen(path) < sizeof(addr.sun_path)) {
        memcpy(addr.sun_path, path, strlen(path) + 1);
    } else {
        struct fd_path buffer;
        at = open(path, O_PATH | O_CLOEXEC);
        if (at < 0) {
            return -errno;
        }
        snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", fd_path(at, &buffer));
    }
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        return -errno;
    }
    if (connect(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0) {
        int code = -errno;
        close(fd);
        return code;
    }
    return fd;
}
