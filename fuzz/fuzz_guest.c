/*
 * Fuzz target: what the host takes from a hostile machine: frames (guest/wire.c), answers to "stats" and
 * "top" (guest/host/numbers.c), and a program's streams (guest/host/relay.c). The first byte chooses: 'p' the
 * streams of a program, whose frames come over a socket; else an answer, of which JSON is made.
 *
 * A frame may never be larger than its bound, text for people holds nothing but printable ASCII, and a relay
 * ends.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "fuzz/fuzz.h"
#include "guest/host/host.h"

static struct wire wire;

static void relay(const uint8_t *data, size_t size)
{
    int pair[2], null = open("/dev/null", O_RDWR | O_CLOEXEC);
    struct err err = {.code = 0};
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0) {
        abort();
    }
    (void)fcntl(pair[1], F_SETFL, O_NONBLOCK);
    (void)!write(pair[1], data, size);
    shutdown(pair[1], SHUT_WR);
    wire_init(&wire, pair[0]);
    struct relay r = {
        .wire = &wire, .in = -1, .out = null, .err = null, .signal_fd = -1, .watch_fd = -1, .terminal = -1};
    int status = relay_run(&r, &err);
    if (status > 255) {
        abort();
    }
    for (const char *c = err.text; *c; c++) {
        if (*c < ' ' || *c > 126) {
            abort();
        }
    }
    wire_done(&wire);
    close(pair[1]);
    close(null);
}

static void take_answer(const uint8_t *data, size_t size)
{
    struct wire_texts texts = {0};
    struct wire_frame frame;
    wire = (struct wire){.fd = -1};
    for (size_t at = 0; at < size || wire.have;) {
        size_t n = sizeof(wire.in) - wire.have < size - at ? sizeof(wire.in) - wire.have : size - at;
        memcpy(wire.in + wire.have, data + at, n);
        wire.have += n;
        at += n;
        int rc = wire_next(&wire, true, &frame);
        if (rc <= 0) {
            break;
        }
        if (frame.size > WIRE_DATA_MAX) {
            abort();
        }
        char *more = frame.kind == WIRE_OUTPUT ? realloc(texts.bytes, texts.size + frame.size + 1) : NULL;
        if (more) {
            memcpy(more + texts.size, frame.data, frame.size);
            texts.bytes = more;
            texts.size += frame.size;
        }
        wire_take(&wire, &frame);
    }
    if (wire_texts_good(&texts)) {
        json_decref(numbers_guest(&texts));
        json_t *list = numbers_processes(&texts);
        char *text = json_dumps(list, JSON_COMPACT);
        if (!text) { /* text that is no UTF-8 must not get this far */
            abort();
        }
        free(text);
        json_decref(list);
    }
    wire_texts_done(&texts);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size && data[0] == 'p') {
        relay(data + 1, size - 1);
    } else if (size) {
        take_answer(data + 1, size - 1);
    }
    return 0;
}
