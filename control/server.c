/*
 * The listening socket: who may connect, and how it comes and goes. Connections are conn.c's.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>

#include "base/util.h"
#include "control/control_int.h"

#define BACKLOG 64

int64_t control_time_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

void control_unref(struct control *control)
{
    if (--control->refs == 0) {
        control_jobs_free(control);
        free(control);
    }
}

/* Whether somebody accepts connections there. */
static bool is_alive(const struct sockaddr_un *address)
{
    auto_close int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    return fd >= 0 &&
           (connect(fd, (const struct sockaddr *)address, sizeof(*address)) == 0 || errno == EAGAIN);
}

/* Makes way for bind: removes a socket that its process left behind, and nothing else. */
static int clear_path(const struct sockaddr_un *address, struct err *err)
{
    struct stat st;
    if (lstat(address->sun_path, &st) < 0) {
        return errno == ENOENT ? 0 : err_sys(err, -errno, "cannot look at '%s'", address->sun_path);
    }
    if (!S_ISSOCK(st.st_mode)) {
        return err_set(err, -EEXIST, "'%s' exists and is not a socket", address->sun_path);
    }
    if (is_alive(address)) {
        return err_set(err, -EADDRINUSE, "another process listens on '%s'", address->sun_path);
    }
    return unlink(address->sun_path) < 0 && errno != ENOENT
               ? err_sys(err, -errno, "cannot remove '%s', which nobody listens on", address->sun_path)
               : 0;
}

/* Mode 0600 from the first moment: other threads may make files meanwhile, so by fchmod before bind (Linux
 * takes the socket's mode for the file's), not by umask. */
static int open_socket(struct control *control, struct err *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    memcpy(address.sun_path, control->path, sizeof(control->path));
    int rc = clear_path(&address, err);
    if (rc < 0) {
        return rc;
    }
    auto_close int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        return err_sys(err, -errno, "cannot make a socket");
    }
    struct stat st;
    if (fchmod(fd, 0600) < 0 || bind(fd, (const struct sockaddr *)&address, sizeof(address)) < 0 ||
        lstat(control->path, &st) < 0 || listen(fd, BACKLOG) < 0) {
        return err_sys(err, -errno, "cannot listen on '%s'", control->path);
    }
    control->path_dev = st.st_dev;
    control->path_ino = st.st_ino;
    int own = fd;
    fd = -1;
    return own;
}

static void on_connection(uv_stream_t *listener, int status)
{
    struct control *control = listener->data;
    if (status == 0 && !control->closing) {
        conn_accept(control);
    }
}

static void on_listener_closed(uv_handle_t *handle)
{
    control_unref(handle->data);
}

int control_new(const struct control_config *config, struct control **ret_control, struct err *err)
{
    size_t len = strlen(config->path);
    if (len == 0 || len >= sizeof(((struct control *)NULL)->path)) {
        return err_set(err, -ENAMETOOLONG, "'%s' is no path for a socket: 1 to 107 bytes", config->path);
    }
    struct control *control = calloc(1, sizeof(*control));
    if (!control) {
        return err_sys(err, -ENOMEM, "cannot make the control socket");
    }
    memcpy(control->path, config->path, len);
    control->loop = config->loop;
    control->methods = config->methods;
    control->method_count = config->method_count;
    control->opaque = config->opaque;
    control->refs = 2;
    int fd = open_socket(control, err);
    if (fd < 0) {
        free(control);
        return fd;
    }
    uv_pipe_init(control->loop, &control->listener, 0);
    control->listener.data = control;
    int rc = uv_pipe_open(&control->listener, fd);
    if (rc < 0) {
        close(fd);
    } else {
        rc = uv_listen((uv_stream_t *)&control->listener, BACKLOG, on_connection);
    }
    if (rc < 0) {
        err_sys(err, rc, "cannot listen on '%s'", control->path);
        control_free(control);
        return rc;
    }
    *ret_control = control;
    return 0;
}

void control_free(struct control *control)
{
    if (!control) {
        return;
    }
    control->closing = true;
    struct stat st;
    if (lstat(control->path, &st) == 0 && st.st_dev == control->path_dev && st.st_ino == control->path_ino) {
        unlink(control->path);
    }
    uv_close((uv_handle_t *)&control->listener, on_listener_closed);
    for (struct control_conn *conn = control->conns, *next; conn; conn = next) {
        next = conn->next;
        conn_close(conn);
    }
    control_unref(control);
}

void control_event(struct control *control, const char *name, json_t *data)
{
    json_t *event = json_pack("{s:s, s:I, s:o}", "event", name, "time_ns", (json_int_t)control_time_ns(),
                              "data", data ? data : json_object());
    for (struct control_conn *conn = control->conns, *next; conn; conn = next) {
        next = conn->next;
        if (conn->subscribed) {
            conn_send(conn, json_incref(event));
        }
    }
    json_decref(event);
}
