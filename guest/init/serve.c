/*
 * One connection of the host's. What concerns the first program (its start, signals) goes as an order to the
 * process that has it: "g", answered by "s" or "f" and a text; "k" and a signal, answered by one byte.
 */
#include "guest/init/init.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/util.h"
#include "core/room/copy.h"

static int take_request(struct wire *wire, struct wire_texts *ret_request)
{
    struct wire_frame frame;
    int rc;
    while ((rc = wire_wait(wire, false, -1, &frame)) > 0 && frame.kind == WIRE_REQUEST) {
        struct wire_texts *r = ret_request;
        char *more =
            r->size + frame.size > WIRE_REQUEST_MAX ? NULL : realloc(r->bytes, r->size + frame.size + 1);
        if (!more) {
            return -ENOMEM;
        }
        memcpy(more + r->size, frame.data, frame.size);
        r->bytes = more;
        r->size += frame.size;
        wire_take(wire, &frame);
    }
    if (rc <= 0 || frame.kind != WIRE_GO || !wire_texts_good(ret_request)) {
        return rc < 0 ? rc : -EPROTO;
    }
    wire_take(wire, &frame);
    return 0;
}

static void end(struct wire *wire, const char *failure)
{
    static const unsigned char zero;
    if (failure) {
        wire_fail(wire, 1, failure);
        return;
    }
    (void)wire_put(wire, WIRE_EXIT, &zero, 1);
    (void)wire_drain(wire);
}

static void numbers(struct wire *wire, void (*make)(struct wire_texts *reply))
{
    struct wire_texts reply = {0};
    make(&reply);
    for (size_t at = 0; at < reply.size;) {
        size_t n = MIN(reply.size - at, (size_t)WIRE_DATA_MAX);
        if (wire_put(wire, WIRE_OUTPUT, reply.bytes + at, n) < 0 || wire_drain(wire) < 0) {
            break;
        }
        at += n;
    }
    end(wire, NULL);
}

static void start(struct wire *wire, int orders)
{
    char reply[ERR_TEXT_MAX + 1] = "f";
    ssize_t n = send(orders, "g", 1, MSG_NOSIGNAL) == 1 ? recv(orders, reply, sizeof(reply) - 1, 0) : -1;
    reply[MAX(n, (ssize_t)0)] = '\0';
    end(wire, reply[0] == 's' ? NULL : n > 1 ? reply + 1 : "the program has ended already");
}

static void signal_first(struct wire *wire, const struct wire_texts *request, int orders)
{
    unsigned char order[2] = {'k', (unsigned char)wire_number(request, "signal")}, reply = 0;
    bool good = send(orders, order, 2, MSG_NOSIGNAL) == 2 && recv(orders, &reply, 1, 0) == 1 && reply;
    end(wire, good ? NULL : "the program has ended already");
}

/* A copy is a program too: this one, in a process with the streams of one. */
static void copy(struct wire *wire, const struct wire_texts *request, bool out)
{
    int data[2], errors[2], status = 0;
    const char *path = wire_one(request, "path");
    if (!path || pipe2(data, O_CLOEXEC) < 0 || pipe2(errors, O_CLOEXEC) < 0) {
        end(wire, "cannot make a pipe");
        return;
    }
    pid_t pid = fork();
    if (pid == 0) {
        struct err err = {.code = 0};
        dup2(data[out ? 1 : 0], out ? 1 : 0);
        close(data[0]);
        close(data[1]);
        int root = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        int rc = out ? room_export(root, path, &err) : room_import(root, path, &err);
        if (rc < 0) {
            (void)!write(errors[1], err.text, strlen(err.text));
        }
        _exit(rc < 0);
    }
    close(errors[1]);
    close(data[out ? 1 : 0]);
    (void)wire_put(wire, WIRE_STARTED, NULL, 0);
    struct wire_frame frame;
    uint8_t buf[WIRE_DATA_MAX];
    ssize_t n;
    while (out && (n = read(data[0], buf, sizeof(buf))) > 0) {
        if (wire_put(wire, WIRE_OUTPUT, buf, (size_t)n) < 0 || wire_drain(wire) < 0) {
            break;
        }
    }
    while (!out && wire_wait(wire, false, -1, &frame) > 0) {
        bool more = frame.kind == WIRE_INPUT && frame.size;
        for (uint32_t done = 0; more && done < frame.size; done += (uint32_t)n) {
            n = write(data[1], frame.data + done, frame.size - done);
            if (n < 0) { /* the rest is taken and dropped: the reason comes from the child */
                break;
            }
        }
        bool last = frame.kind == WIRE_INPUT && !frame.size;
        wire_take(wire, &frame);
        if (last) {
            break;
        }
    }
    close(data[out ? 0 : 1]);
    n = read(errors[0], buf, ERR_TEXT_MAX - 1);
    buf[MAX(n, (ssize_t)0)] = '\0';
    waitpid(pid, &status, 0);
    end(wire, status == 0 ? NULL : buf[0] ? (const char *)buf : "the copy ended early");
}

int serve(int fd, bool first, int orders)
{
    static struct wire wire;
    struct wire_texts request = {0};
    struct err err = {.code = 0};
    int status = 125;
    wire_init(&wire, fd);
    const char *verb = take_request(&wire, &request) < 0 ? NULL : wire_one(&request, "verb");
    if (!verb) {
        return status;
    }
    if (first && strcmp(verb, "first") == 0) {
        if (setup_room(&request, &err) < 0) {
            end(&wire, err.text);
        } else {
            status = program_run(&wire, &request, true, orders);
        }
    } else if (strcmp(verb, "exec") == 0) {
        status = program_run(&wire, &request, false, -1);
    } else if (strcmp(verb, "start") == 0) {
        start(&wire, orders);
    } else if (strcmp(verb, "kill") == 0) {
        signal_first(&wire, &request, orders);
    } else if (strcmp(verb, "stats") == 0) {
        numbers(&wire, numbers_stats);
    } else if (strcmp(verb, "top") == 0) {
        numbers(&wire, numbers_top);
    } else if (strcmp(verb, "export") == 0 || strcmp(verb, "import") == 0) {
        copy(&wire, &request, verb[0] == 'e');
    } else {
        end(&wire, "the machine's init does not know this request");
    }
    wire_finish(&wire);
    wire_texts_done(&request);
    return status;
}
