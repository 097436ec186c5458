/* The state of a machine on disk, and connections to it. */
#include "guest/host/host.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/util.h"
#include "control/client.h"

#define ANSWER_S  20 /* until an init that does not answer is given up */
#define CALL_MS   5000
#define HELLO_MAX 32

int link_open(const struct options *o, struct err *err)
{
    char path[PATH_MAX];
    snprintf(path, sizeof(path), "%s/%s", o->root, o->id);
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return fd >= 0 ? fd : err_sys(err, -errno, "machine '%s'", o->id);
}

void link_path(int dir, const char *name, char buf[static 64])
{
    snprintf(buf, 64, "/proc/self/fd/%d/%.32s", dir, name);
}

json_t *link_load(int dir, const char *file, struct err *err)
{
    char bundle[PATH_MAX], path[PATH_MAX + 32];
    json_error_t why;
    auto_close int fd = openat(dir, "bundle", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, bundle, sizeof(bundle) - 1);
    if (n <= 0) {
        err_set(err, -EIO, "the state of the machine is damaged: its file 'bundle' is missing");
        return NULL;
    }
    bundle[n] = '\0';
    snprintf(path, sizeof(path), "%s/%s", bundle, file);
    json_t *json = json_load_file(path, 0, &why);
    if (!json_is_object(json)) {
        json_decref(json);
        err_set(err, -EINVAL, "cannot read '%s': %s", path, why.text);
        return NULL;
    }
    return json;
}

int link_keeper(int dir)
{
    char text[16] = "";
    auto_close int fd = openat(dir, "lock", O_RDWR | O_CLOEXEC);
    if (fd < 0 || flock(fd, LOCK_EX | LOCK_NB) == 0) {
        return 0;
    }
    return pread(fd, text, sizeof(text) - 1, 0) > 0 ? atoi(text) : 0;
}

static int no_answer(struct err *err, int code)
{
    return err_sys(err, code, "the machine's init does not answer");
}

/* fonda-vmm's words (dev/virtio/vsock.h): "CONNECT port\n", answered by "OK port\n". */
int link_connect(int dir, struct wire *wire, struct err *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct timeval wait = {.tv_sec = ANSWER_S};
    char path[64], hello[HELLO_MAX];
    auto_close int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    link_path(dir, "v", path);
    snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
        return no_answer(err, -errno);
    }
    (void)setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof(wait));
    int len = snprintf(hello, sizeof(hello), "CONNECT %u\n", WIRE_GUEST_PORT);
    if (send(fd, hello, (size_t)len, MSG_NOSIGNAL) != len) {
        return no_answer(err, -errno);
    }
    for (size_t n = 0; n < sizeof(hello); n++) {
        ssize_t got = recv(fd, hello + n, 1, 0);
        if (got <= 0) {
            return no_answer(err, got < 0 ? -errno : -ECONNRESET);
        }
        if (hello[n] == '\n') {
            if (strncmp(hello, "OK ", 3) != 0) {
                break;
            }
            wire_init(wire, take_fd(&fd));
            return 0;
        }
    }
    return no_answer(err, -ECONNREFUSED);
}

void link_clean(const uint8_t *data, size_t size, char *buf, size_t room)
{
    size_t n = MIN(size, room - 1);
    for (size_t i = 0; i < n; i++) {
        buf[i] = data[i] >= ' ' && data[i] < 127 ? (char)data[i] : '?';
    }
    buf[n] = '\0';
}

int link_ask(int dir, const struct wire_texts *request, struct wire_texts *ret_reply, struct err *err)
{
    static struct wire wire;
    struct wire_frame frame;
    struct wire_texts reply = {0};
    int rc = link_connect(dir, &wire, err);
    if (rc < 0) {
        return rc;
    }
    rc = wire_send_request(&wire, request);
    bool done = false;
    while (rc == 0 && !done) {
        rc = wire_wait(&wire, true, ANSWER_S * 1000, &frame);
        if (rc < 0) {
            break;
        }
        rc = 0;
        if (frame.kind == WIRE_OUTPUT && reply.size + frame.size <= WIRE_REQUEST_MAX) {
            char *more = realloc(reply.bytes, reply.size + frame.size + 1);
            if (more) {
                memcpy(more + reply.size, frame.data, frame.size);
                reply.bytes = more;
                reply.size += frame.size;
            }
            rc = more ? 0 : -ENOMEM;
        } else if (frame.kind == WIRE_FAILED) {
            char text[ERR_TEXT_MAX];
            link_clean(frame.data + MIN(frame.size, 1u), frame.size - MIN(frame.size, 1u), text,
                       sizeof(text));
            rc = err_set(err, -EINVAL, "%s", text);
            done = true;
        } else {
            done = frame.kind == WIRE_EXIT;
            rc = done ? 0 : -EPROTO;
        }
        wire_take(&wire, &frame);
    }
    wire_done(&wire);
    if (rc < 0 && !done) {
        no_answer(err, rc);
    }
    if (rc == 0 && !wire_texts_good(&reply)) {
        rc = err_set(err, -EPROTO, "the machine's init answers with what is no answer");
    }
    if (rc < 0 || !ret_reply) {
        wire_texts_done(&reply);
        return rc;
    }
    *ret_reply = reply;
    return 0;
}

int link_vmm(int dir, const char *method, json_t **ret_result, struct err *err)
{
    struct control_client *client = NULL;
    char path[64];
    link_path(dir, "c", path);
    int rc = control_connect(path, &client, err);
    rc = rc < 0 ? rc : control_client_call(client, method, NULL, CALL_MS, ret_result, err);
    control_client_free(client);
    return rc;
}

pid_t link_vmm_pid(int dir)
{
    struct control_client *client = NULL;
    struct ucred peer = {.pid = 0};
    socklen_t len = sizeof(peer);
    char path[64];
    link_path(dir, "c", path);
    if (control_connect(path, &client, NULL) < 0) {
        return 0;
    }
    int rc = getsockopt(control_client_fd(client), SOL_SOCKET, SO_PEERCRED, &peer, &len);
    control_client_free(client);
    return rc < 0 ? 0 : peer.pid;
}
