/* The words between host and machine (guest/wire.h), and what the host makes of a machine's answers and of a
 * bundle. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/util.h"
#include "guest/host/host.h"

static struct wire a, b;

static void make_pair(void)
{
    int fds[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    wire_init(&a, fds[0]);
    wire_init(&b, fds[1]);
}

static void test_frames(void **state)
{
    struct wire_frame frame;
    make_pair();
    assert_int_equal(wire_put(&a, WIRE_OUTPUT, "text", 4), 0);
    assert_int_equal(wire_put(&a, WIRE_EXIT, "\x07", 1), 0);
    assert_int_equal(wire_wait(&b, true, 1000, &frame), 1);
    assert_int_equal(frame.kind, WIRE_OUTPUT);
    assert_memory_equal(frame.data, "text", 4);
    wire_take(&b, &frame);
    assert_int_equal(wire_wait(&b, true, 1000, &frame), 1);
    assert_int_equal(frame.kind, WIRE_EXIT);
    assert_int_equal(frame.data[0], 7);
    wire_take(&b, &frame);
    assert_int_equal(wire_wait(&b, true, 1, &frame), -ETIMEDOUT);
    wire_done(&a);
    assert_int_equal(wire_wait(&b, true, 1000, &frame), -EPIPE);
    wire_done(&b);
}

/* What is of the wrong side, too long, or has bytes set that are zero. */
static void test_bad_frames(void **state)
{
    static const uint8_t bad[][WIRE_HEAD] = {
        {WIRE_REQUEST},
        {0},
        {WIRE_FAILED + 1},
        {WIRE_OUTPUT, 1},
        {WIRE_OUTPUT, 0, 0, 0, 1, 0x80},
        {255, 0, 0, 0, 255, 255, 255, 255},
    };
    struct wire_frame frame;
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        struct wire *w = &a;
        *w = (struct wire){.fd = -1, .have = WIRE_HEAD};
        memcpy(w->in, bad[i], WIRE_HEAD);
        assert_int_equal(wire_next(w, true, &frame), -EPROTO);
    }
    a = (struct wire){.fd = -1, .have = WIRE_HEAD, .in = {WIRE_OUTPUT, 0, 0, 0, 0, 0x80}}; /* the largest */
    assert_int_equal(wire_next(&a, true, &frame), 0);
    a.in[0] = WIRE_OUTPUT;
    assert_int_equal(wire_next(&a, false, &frame), -EPROTO); /* the host sends no output */
}

/* A full end refuses what does not fit, and keeps the rest in order. */
static void test_full(void **state)
{
    static uint8_t data[WIRE_DATA_MAX];
    struct wire_frame frame;
    unsigned sent = 0, got = 0;
    make_pair();
    while (wire_room(&a)) {
        memset(data, (int)sent, sizeof(data));
        assert_int_equal(wire_put(&a, WIRE_OUTPUT, data, sizeof(data)), 0);
        sent++;
    }
    while (wire_put(&a, WIRE_OUTPUT, data, sizeof(data)) == 0) {
    }
    assert_int_equal(wire_put(&a, WIRE_OUTPUT, data, sizeof(data)), -ENOBUFS);
    assert_int_equal(wire_put(&a, WIRE_OUTPUT, data, sizeof(data) + 1), -EMSGSIZE);
    while (got < sent) {
        wire_flush(&a);
        assert_int_equal(wire_wait(&b, true, 1000, &frame), 1);
        assert_int_equal(frame.size, sizeof(data));
        assert_int_equal(frame.data[sizeof(data) - 1], (uint8_t)got);
        wire_take(&b, &frame);
        got++;
    }
    wire_done(&a);
    wire_done(&b);
}

static void test_texts(void **state)
{
    struct wire_texts texts = {0};
    size_t at = 0;
    wire_add(&texts, "arg", "a");
    wire_add(&texts, "env", "A=1");
    wire_add(&texts, "arg", "");
    wire_add_number(&texts, "uid", 1000);
    assert_true(wire_texts_good(&texts));
    assert_string_equal(wire_get(&texts, "arg", &at), "a");
    assert_string_equal(wire_get(&texts, "arg", &at), "");
    assert_null(wire_get(&texts, "arg", &at));
    assert_string_equal(wire_one(&texts, "env"), "A=1");
    assert_int_equal(wire_number(&texts, "uid"), 1000);
    assert_null(wire_one(&texts, "en"));
    texts.size--; /* without its last NUL */
    assert_false(wire_texts_good(&texts));
    wire_texts_done(&texts);
    char *large = malloc(WIRE_REQUEST_MAX);
    memset(large, 'x', WIRE_REQUEST_MAX - 1);
    large[WIRE_REQUEST_MAX - 1] = '\0';
    wire_add(&texts, "arg", large);
    assert_true(texts.failed);
    wire_texts_done(&texts);
    free(large);
}

static void test_answers(void **state)
{
    struct wire_texts texts = {0};
    wire_add(&texts, "memory_total", "1000");
    wire_add(&texts, "processes", "-1");
    wire_add(&texts, "uptime_s", "99999999999999999999");
    wire_add(&texts, "surprise", "1");
    wire_add(&texts, "process", "1 /init");
    wire_add(&texts, "process", "0 none");
    wire_add(&texts, "process", "x");
    wire_add(&texts, "process", "7 \x1b[31mred\xff");
    json_t *guest = numbers_guest(&texts), *list = numbers_processes(&texts);
    assert_int_equal(json_object_size(guest), 1);
    assert_int_equal(json_integer_value(json_object_get(guest, "memory_total")), 1000);
    assert_int_equal(json_array_size(list), 2);
    assert_string_equal(json_string_value(json_object_get(json_array_get(list, 1), "command")), "?[31mred?");
    json_decref(guest);
    json_decref(list);
    wire_texts_done(&texts);
}

static void test_request(void **state)
{
    struct wire_texts request = {0};
    struct err err = {.code = 0};
    char **shares = NULL;
    json_t *config =
        json_pack("{s:{s:[s, s], s:[s], s:s, s:{s:i, s:i, s:[i]}, s:b}, s:{s:b}, s:s, s:[{s:s, s:s, s:s, "
                  "s:[s]}, {s:s, s:s, s:s, s:[s]}, {s:s, "
                  "s:s, s:s, s:[]}]}",
                  "process", "args", "sh", "-c", "env", "A=1", "cwd", "/w", "user", "uid", 5, "gid", 6,
                  "additionalGids", 7, "terminal", 1, "root", "readonly", 1, "hostname", "h", "mounts",
                  "destination", "/t", "type", "tmpfs", "source", "tmpfs", "options", "size=1m",
                  "destination", "/d", "type", "bind", "source", "/tmp", "options", "rro", "destination",
                  "/proc", "type", "proc", "source", "proc", "options");
    assert_non_null(config);
    assert_int_equal(request_first(config, &request, &err), 0);
    assert_string_equal(wire_one(&request, "verb"), "first");
    assert_string_equal(wire_one(&request, "tmpfs"), "size=1m /t");
    assert_string_equal(wire_one(&request, "share"), "fonda0 ro /d");
    assert_string_equal(wire_one(&request, "read_only"), "1");
    assert_int_equal(wire_number(&request, "group"), 7);
    assert_int_equal(request_shares(config, &shares, &err), 0);
    assert_string_equal(shares[0], "/tmp:fonda0:ro");
    assert_null(shares[1]);
    free(shares[0]);
    free(shares);
    wire_texts_done(&request);
    json_decref(config);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_frames), cmocka_unit_test(test_bad_frames), cmocka_unit_test(test_full),
        cmocka_unit_test(test_texts),  cmocka_unit_test(test_answers),    cmocka_unit_test(test_request),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
