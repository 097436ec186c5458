/*
 * The control socket: requests, errors by name, events, jobs, streams; and hostile, slow, numerous and
 * vanishing clients. The server runs on a loop of its own thread, clients are blocking.
 */
#include "unit.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "base/util.h"
#include "control/client.h"
#include "control/control.h"

#define WAIT_MS 20000

struct fixture {
    uv_loop_t loop;
    uv_async_t stop, poke;
    uv_timer_t timer;
    pthread_t thread;
    struct control *control;
    struct control_call *later; /* of the method "later" */
    struct control_job *job;
    struct control_stream *stream;
    _Atomic unsigned events_wanted, closed;
    _Atomic bool cancelled;
    char dir[64], path[96];
};

/* --- methods -----------------------------------------------------------------------------------------------
 */

static void on_echo(struct control_call *call, json_t *params, void *opaque)
{
    control_reply(call, json_incref(params));
}

static void on_sum(struct control_call *call, json_t *params, void *opaque)
{
    struct {
        uint64_t a, b;
        const char *unit;
        bool twice;
    } p = {0};
    static const struct control_param table[] = {
        {"a", CONTROL_UINT, true, 0, 0, 1000},
        {"b", CONTROL_UINT, false, 8, 5, 1000},
        {"unit", CONTROL_STRING, false, 16, 0, 0},
        {"twice", CONTROL_BOOL, false, 24, 0, 0},
    };
    if (control_params(call, params, table, ARRAY_SIZE(table), &p)) {
        control_reply(call, json_pack("{s:I, s:s}", "sum", (json_int_t)((p.a + p.b) * (p.twice ? 2 : 1)),
                                      "unit", p.unit ? p.unit : ""));
    }
}

static void on_timer(uv_timer_t *timer)
{
    struct fixture *f = timer->data;
    struct control_call *call = f->later;
    f->later = NULL;
    control_reply(call, json_pack("{s:b}", "late", 1));
}

static void on_later(struct control_call *call, json_t *params, void *opaque)
{
    struct fixture *f = opaque;
    if (f->later) {
        control_fail(call, "busy", NULL, "one at a time");
        return;
    }
    f->later = call;
    uv_timer_start(&f->timer, on_timer, 50, 0);
}

static void on_cancel(void *opaque)
{
    struct fixture *f = opaque;
    struct err err = {0};
    atomic_store(&f->cancelled, true);
    err_set(&err, -ECANCELED, "the work was cancelled");
    control_job_end(f->job, NULL, &err);
}

static void on_work(struct control_call *call, json_t *params, void *opaque)
{
    struct fixture *f = opaque;
    f->job = control_job_new(f->control, "work", on_cancel, f);
    control_reply_job(call, f->job);
    control_job_progress(f->job, 1, 2);
}

static void on_finish(struct control_call *call, json_t *params, void *opaque)
{
    struct fixture *f = opaque;
    control_job_end(f->job, json_pack("{s:i}", "made", 7), NULL);
    control_reply(call, NULL);
}

static void on_many_jobs(struct control_call *call, json_t *params, void *opaque)
{
    struct fixture *f = opaque;
    for (unsigned i = 0; i < 3 * CONTROL_JOBS_MAX; i++) {
        control_job_end(control_job_new(f->control, "small", NULL, NULL), NULL, NULL);
    }
    unsigned made = 0;
    struct control_job *jobs[CONTROL_JOBS_MAX + 1];
    while (made < ARRAY_SIZE(jobs) && (jobs[made] = control_job_new(f->control, "runs", NULL, NULL))) {
        made++;
    }
    for (unsigned i = 0; i < made; i++) {
        control_job_end(jobs[i], NULL, NULL);
    }
    control_reply(call, json_pack("{s:i}", "made", (int)made));
}

/* An echo that takes no more than three bytes at a time. */
static size_t on_stream_input(void *opaque, const uint8_t *bytes, size_t len)
{
    struct fixture *f = opaque;
    control_stream_write(f->stream, bytes, MIN(len, 3u));
    return MIN(len, 3u);
}

static void on_stream_closed(void *opaque)
{
    struct fixture *f = opaque;
    f->stream = NULL;
    atomic_fetch_add(&f->closed, 1);
}

static void on_attach(struct control_call *call, json_t *params, void *opaque)
{
    static const struct control_stream_ops ops = {on_stream_input, on_stream_closed};
    struct fixture *f = opaque;
    f->stream = control_attach(call, json_pack("{s:s}", "channel", "echo"), &ops, f);
    if (f->stream) {
        control_stream_write(f->stream, (const uint8_t *)"hello ", 6);
    }
}

static const struct control_method methods[] = {
    {"echo", "its parameters", on_echo},     {"sum", "a + b", on_sum},
    {"later", "answers in 50 ms", on_later}, {"work", "begins a job", on_work},
    {"finish", "ends it", on_finish},        {"many_jobs", "", on_many_jobs},
    {"attach", "an echo", on_attach},
};

/* --- the server's thread -----------------------------------------------------------------------------------
 */

static void on_poke(uv_async_t *async)
{
    struct fixture *f = async->data;
    char text[1001];
    memset(text, 'x', 1000);
    text[1000] = '\0';
    for (unsigned n = atomic_exchange(&f->events_wanted, 0); n > 0; n--) {
        control_event(f->control, "state", json_pack("{s:s, s:i}", "text", text, "left", (int)n));
    }
}

static void close_all(uv_handle_t *handle, void *arg)
{
    if (!uv_is_closing(handle)) {
        uv_close(handle, NULL);
    }
}

static void on_stop(uv_async_t *async)
{
    struct fixture *f = async->data;
    control_free(f->control);
    if (f->later) {
        uv_timer_stop(&f->timer);
        control_reply(f->later, NULL);
    }
    uv_close((uv_handle_t *)&f->stop, NULL);
    uv_close((uv_handle_t *)&f->poke, NULL);
    uv_close((uv_handle_t *)&f->timer, NULL);
}

static void *server_main(void *opaque)
{
    struct fixture *f = opaque;
    uv_run(&f->loop, UV_RUN_DEFAULT);
    return NULL;
}

static int setup(void **state)
{
    signal(SIGPIPE, SIG_IGN);
    struct fixture *f = calloc(1, sizeof(*f));
    struct err err = {0};
    snprintf(f->dir, sizeof(f->dir), "/tmp/fonda-control-XXXXXX");
    assert_non_null(mkdtemp(f->dir));
    snprintf(f->path, sizeof(f->path), "%s/control.sock", f->dir);
    uv_loop_init(&f->loop);
    uv_async_init(&f->loop, &f->stop, on_stop);
    uv_async_init(&f->loop, &f->poke, on_poke);
    uv_timer_init(&f->loop, &f->timer);
    f->stop.data = f->poke.data = f->timer.data = f;
    const struct control_config config = {&f->loop, f->path, methods, ARRAY_SIZE(methods), f};
    assert_int_equal(control_new(&config, &f->control, &err), 0);
    pthread_create(&f->thread, NULL, server_main, f);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    uv_async_send(&f->stop);
    pthread_join(f->thread, NULL);
    uv_walk(&f->loop, close_all, NULL);
    uv_run(&f->loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&f->loop), 0);
    assert_int_equal(access(f->path, F_OK), -1);
    rmdir(f->dir);
    free(f);
    return 0;
}

static struct control_client *client_of(const struct fixture *f)
{
    struct control_client *client = NULL;
    struct err err = {0};
    if (control_connect(f->path, &client, &err) < 0) {
        fail_msg("%s", err.text);
    }
    return client;
}

static int raw(const struct fixture *f)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof(address.sun_path), "%s", f->path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    return fd;
}

/* Everything until the server closes; the caller frees. */
static char *read_all(int fd)
{
    size_t used = 0, size = 1 << 16;
    char *buf = malloc(size);
    for (;;) {
        struct pollfd poll_fd = {fd, POLLIN, 0};
        assert_int_equal(poll(&poll_fd, 1, WAIT_MS), 1);
        ssize_t n = read(fd, buf + used, size - used - 1);
        if (n <= 0) {
            break;
        }
        used += (size_t)n;
        if (size - used < 4096) {
            size *= 2;
            buf = realloc(buf, size);
        }
    }
    buf[used] = '\0';
    return buf;
}

/* Sends text and closes the sending side; all that comes back. */
static char *exchange(const struct fixture *f, const char *text, size_t len)
{
    int fd = raw(f);
    size_t sent = 0;
    while (sent < len) {
        ssize_t n = send(fd, text + sent, len - sent, MSG_NOSIGNAL);
        if (n <= 0) {
            break;
        }
        sent += (size_t)n;
    }
    shutdown(fd, SHUT_WR);
    char *out = read_all(fd);
    close(fd);
    return out;
}

/* --- tests -------------------------------------------------------------------------------------------------
 */

static void test_call(void **state)
{
    struct control_client *client = client_of(*state);
    struct err err = {0};
    json_t *result = NULL;
    assert_int_equal(control_client_call(client, "echo", json_pack("{s:i}", "x", 5), WAIT_MS, &result, &err),
                     0);
    assert_int_equal(json_integer_value(json_object_get(result, "x")), 5);
    json_decref(result);
    assert_int_equal(control_client_call(client, "later", NULL, WAIT_MS, &result, &err), 0);
    assert_true(json_is_true(json_object_get(result, "late")));
    json_decref(result);
    assert_int_equal(control_client_call(client, "methods", NULL, WAIT_MS, &result, &err), 0);
    assert_non_null(json_object_get(json_object_get(result, "methods"), "job_wait"));
    assert_non_null(json_object_get(json_object_get(result, "methods"), "sum"));
    json_decref(result);
    control_client_free(client);
}

static void test_params(void **state)
{
    static const struct {
        const char *params, *says;
    } bad[] = {
        {"{}", "the parameter 'a' is missing"},
        {"{\"a\":1,\"c\":2}", "unknown parameter 'c'"},
        {"{\"a\":-1}", "'a' is not a whole number from 0 to 1000"},
        {"{\"a\":1001}", "'a' is not a whole number"},
        {"{\"a\":1.5}", "'a' is not a whole number"},
        {"{\"a\":1,\"b\":4}", "'b' is not a whole number from 5 to 1000"},
        {"{\"a\":1,\"unit\":1}", "'unit' is not a string"},
        {"{\"a\":1,\"twice\":1}", "'twice' is not true or false"},
        {"{\"a\":null}", "'a' is not a whole number"},
    };
    struct control_client *client = client_of(*state);
    struct err err = {0};
    json_t *result;
    assert_int_equal(
        control_client_call(client, "sum",
                            json_pack("{s:i, s:i, s:s, s:b}", "a", 1, "b", 9, "unit", "m", "twice", 1),
                            WAIT_MS, &result, &err),
        0);
    assert_int_equal(json_integer_value(json_object_get(result, "sum")), 20);
    json_decref(result);
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        json_t *params = json_loads(bad[i].params, 0, NULL);
        assert_int_equal(control_client_call(client, "sum", params, WAIT_MS, NULL, &err), -EREMOTEIO);
        assert_string_equal(control_client_code(client), "bad_params");
        assert_non_null(strstr(err.text, bad[i].says));
    }
    assert_int_equal(control_client_call(client, "nothing", NULL, WAIT_MS, NULL, &err), -EREMOTEIO);
    assert_string_equal(control_client_code(client), "unknown_method");
    control_client_free(client);
}

static void test_hostile_json(void **state)
{
    static const struct {
        const char *line, *code;
    } bad[] = {
        {"{", "bad_json"},
        {"}", "bad_json"},
        {"{\"id\":1,\"id\":2}", "bad_json"},
        {"\x80\xff", "bad_json"},
        {"{\"id\":1e400,\"method\":\"echo\"}", "bad_json"},
        {"{\"method\":\"\\u0000\"}", "bad_json"},
        {"[]", "bad_request"},
        {"17", "bad_request"},
        {"{\"id\":[],\"method\":\"echo\"}", "bad_request"},
        {"{\"id\":1}", "bad_request"},
        {"{\"id\":1,\"method\":5}", "bad_request"},
        {"{\"id\":1,\"method\":\"echo\",\"params\":[]}", "bad_request"},
        {"{\"id\":1,\"method\":\"\"}", "unknown_method"},
    };
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        char text[512], code[64];
        snprintf(text, sizeof(text), "%s\n{\"id\":\"after\",\"method\":\"echo\"}\n", bad[i].line);
        snprintf(code, sizeof(code), "\"code\":\"%s\"", bad[i].code);
        char *out = exchange(*state, text, strlen(text));
        if (!strstr(out, code) || !strstr(out, "{\"id\":\"after\",\"result\":{}}\n")) {
            fail_msg("%s: %s", bad[i].line, out);
        }
        free(out);
    }
    /* Nesting beyond the parser's limit. */
    char *deep = malloc(100001);
    memset(deep, '[', 100000);
    deep[100000] = '\n';
    char *out = exchange(*state, deep, 100001);
    assert_non_null(strstr(out, "bad_json"));
    free(out);
    free(deep);
}

static void test_long_lines(void **state)
{
    size_t size = CONTROL_LINE_MAX + 4096;
    char *text = malloc(size);
    memset(text, 'x', size);
    char *out = exchange(*state, text, size);
    assert_non_null(strstr(out, "line_too_long"));
    free(out);
    /* The longest that fits goes through. */
    static const char head[] = "{\"id\":1,\"method\":\"sum\",\"params\":{\"a\":3,\"unit\":\"";
    size_t len = CONTROL_LINE_MAX;
    memcpy(text, head, sizeof(head) - 1);
    memcpy(text + len - 4, "\"}}\n", 4);
    out = exchange(*state, text, len);
    assert_non_null(strstr(out, "\"sum\":3"));
    free(out);
    free(text);
}

static void test_pipelined(void **state)
{
    enum { COUNT = 5000 };
    char *text = malloc(COUNT * 64);
    size_t len = 0;
    for (unsigned i = 0; i < COUNT; i++) {
        len += (size_t)sprintf(text + len, "{\"id\":%u,\"method\":\"sum\",\"params\":{\"a\":%u}}\n", i,
                               i % 1000);
    }
    char *out = exchange(*state, text, len);
    unsigned lines = 0;
    for (const char *at = out; (at = strchr(at, '\n')); at++) {
        lines++;
    }
    assert_int_equal(lines, COUNT);
    free(out);
    free(text);
}

/* Requests without end, answers never read: the server reads no more, and serves others. */
static void test_never_reads(void **state)
{
    int fd = raw(*state);
    char line[1100];
    int len =
        snprintf(line, sizeof(line), "{\"id\":1,\"method\":\"echo\",\"params\":{\"x\":\"%01000d\"}}\n", 0);
    size_t total = 0;
    for (unsigned idle = 0; idle < 20 && total < (64u << 20);) {
        ssize_t n = send(fd, line, (size_t)len, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n == len) {
            total += (size_t)n;
            idle = 0;
        } else if (n > 0) { /* a part of a line: the rest would go out of step, which is as well */
            total += (size_t)n;
        } else {
            struct pollfd poll_fd = {fd, POLLOUT, 0};
            idle += poll(&poll_fd, 1, 10) == 0;
        }
    }
    assert_true(total < (8u << 20));
    test_call(state);
    close(fd);
}

static void test_slow_subscriber(void **state)
{
    struct fixture *f = *state;
    int fd = raw(f);
    static const char subscribe[] = "{\"id\":1,\"method\":\"subscribe\"}\n";
    assert_int_equal(send(fd, subscribe, sizeof(subscribe) - 1, 0), sizeof(subscribe) - 1);
    struct control_client *client = client_of(f);
    struct err err = {0};
    /* The reply is there before the events are. */
    struct pollfd poll_fd = {fd, POLLIN, 0};
    assert_int_equal(poll(&poll_fd, 1, WAIT_MS), 1);
    atomic_store(&f->events_wanted, 8000);
    uv_async_send(&f->poke);
    assert_int_equal(control_client_call(client, "later", NULL, WAIT_MS, NULL, &err), 0);
    char *out = read_all(fd);
    size_t len = strlen(out);
    assert_non_null(strstr(out, "\"event\":\"overflow\""));
    assert_true(len < 4u << 20);
    assert_int_equal(out[len - 1], '\n');
    free(out);
    close(fd);
    control_client_free(client);
}

static void test_many_clients(void **state)
{
    struct control_client *clients[CONTROL_CONNS_MAX];
    struct err err = {0};
    for (unsigned i = 0; i < CONTROL_CONNS_MAX; i++) {
        clients[i] = client_of(*state);
        assert_int_equal(control_client_call(clients[i], "echo", NULL, WAIT_MS, NULL, &err), 0);
    }
    char *out = exchange(*state, "", 0);
    assert_non_null(strstr(out, "too_many_connections"));
    free(out);
    for (unsigned i = 0; i < CONTROL_CONNS_MAX; i++) {
        assert_int_equal(control_client_call(clients[i], "echo", NULL, WAIT_MS, NULL, &err), 0);
        control_client_free(clients[i]);
    }
    /* There is room again as soon as the server has seen them go. */
    int rc = -1;
    for (unsigned i = 0; rc < 0 && i < 1000; i++) {
        struct control_client *client = client_of(*state);
        rc = control_client_call(client, "echo", NULL, WAIT_MS, NULL, &err);
        control_client_free(client);
        poll(NULL, 0, rc < 0 ? 5 : 0);
    }
    assert_int_equal(rc, 0);
}

static void test_vanishing(void **state)
{
    static const char *const lines[] = {
        "{\"id\":1,\"method\":\"later\"}\n", "{\"id\":1,\"meth",
        "{\"id\":1,\"method\":\"attach\"}\nraw bytes",
        "{\"id\":1,\"method\":\"subscribe\"}\n{\"id\":1,\"method\":\"later\"}\n"};
    struct fixture *f = *state;
    for (unsigned i = 0; i < 100; i++) {
        int fd = raw(f);
        const char *line = lines[i % ARRAY_SIZE(lines)];
        send(fd, line, strlen(line), MSG_NOSIGNAL);
        if (i % 3 == 0) { /* with a reset instead of an end of file */
            static const char more[] = "{\"id\":2,\"method\":\"echo\"}\n";
            send(fd, more, sizeof(more) - 1, MSG_NOSIGNAL);
        }
        close(fd);
        atomic_store(&f->events_wanted, 1);
        uv_async_send(&f->poke);
    }
    poll(NULL, 0, 60);
    test_params(state);
}

static void test_jobs(void **state)
{
    struct fixture *f = *state;
    struct control_client *client = client_of(f), *other = client_of(f);
    struct err err = {0};
    json_t *reply, *result, *event;
    assert_int_equal(control_client_call(client, "subscribe", NULL, WAIT_MS, NULL, &err), 0);
    assert_int_equal(control_client_call(client, "work", NULL, WAIT_MS, &reply, &err), 0);
    assert_int_equal(control_client_event(client, WAIT_MS, &event, &err), 0);
    assert_string_equal(json_string_value(json_object_get(event, "event")), "job");
    assert_int_equal(json_integer_value(json_object_get(json_object_get(event, "data"), "total")), 2);
    json_decref(event);
    assert_int_equal(control_client_call(other, "finish", NULL, WAIT_MS, NULL, &err), 0);
    assert_int_equal(control_client_job(client, reply, WAIT_MS, &result, &err), 0);
    assert_int_equal(json_integer_value(json_object_get(result, "made")), 7);
    json_decref(result);
    json_decref(reply);

    assert_int_equal(control_client_call(client, "work", NULL, WAIT_MS, &reply, &err), 0);
    assert_int_equal(control_client_call(other, "job_cancel", json_incref(reply), WAIT_MS, NULL, &err), 0);
    assert_int_equal(control_client_job(client, reply, WAIT_MS, NULL, &err), -EREMOTEIO);
    assert_string_equal(control_client_code(client), "cancelled");
    json_decref(reply);
    assert_int_equal(
        control_client_call(other, "job_status", json_pack("{s:s}", "job", "none"), WAIT_MS, NULL, &err),
        -EREMOTEIO);
    assert_string_equal(control_client_code(other), "not_found");
    control_client_free(client);

    assert_int_equal(control_client_call(other, "many_jobs", NULL, WAIT_MS, &result, &err), 0);
    assert_int_equal(json_integer_value(json_object_get(result, "made")), CONTROL_JOBS_MAX);
    json_decref(result);
    assert_int_equal(control_client_call(other, "jobs", NULL, WAIT_MS, &result, &err), 0);
    assert_int_equal(json_array_size(json_object_get(result, "jobs")), CONTROL_JOBS_MAX);
    json_decref(result);
    control_client_free(other);
}

static void test_attach(void **state)
{
    struct fixture *f = *state;
    struct control_client *client = client_of(f);
    struct err err = {0};
    json_t *result;
    assert_int_equal(control_client_call(client, "attach", NULL, WAIT_MS, &result, &err), 0);
    assert_string_equal(json_string_value(json_object_get(result, "channel")), "echo");
    json_decref(result);
    int fd = control_client_fd(client);
    static const char text[] = "raw bytes, \n not {lines}";
    assert_int_equal(write(fd, text, sizeof(text) - 1), sizeof(text) - 1);
    char got[64];
    size_t want = 6 + sizeof(text) - 1, used = control_client_take(client, got, sizeof(got));
    while (used < want) {
        ssize_t n = read(fd, got + used, sizeof(got) - used);
        assert_true(n > 0);
        used += (size_t)n;
    }
    assert_memory_equal(got, "hello raw bytes, \n not {lines}", want);
    control_client_free(client);
    for (unsigned i = 0; i < 4000 && atomic_load(&f->closed) == 0; i++) {
        poll(NULL, 0, 5);
    }
    assert_int_equal(atomic_load(&f->closed), 1);
}

static void test_socket_file(void **state)
{
    const struct fixture *f = *state;
    struct stat st;
    assert_int_equal(stat(f->path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    uv_loop_t loop;
    uv_loop_init(&loop);
    struct control *second = NULL;
    struct err err = {0};
    struct control_config config = {&loop, f->path, methods, ARRAY_SIZE(methods), NULL};
    assert_int_equal(control_new(&config, &second, &err), -EADDRINUSE);

    char path[200];
    snprintf(path, sizeof(path), "%s/stale", f->dir);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    memcpy(address.sun_path, path, strlen(path) + 1);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    close(fd);
    config.path = path;
    assert_int_equal(control_new(&config, &second, &err), 0);
    control_free(second);
    uv_run(&loop, UV_RUN_DEFAULT);
    assert_int_equal(access(path, F_OK), -1);

    FILE *file = fopen(path, "w");
    fclose(file);
    assert_int_equal(control_new(&config, &second, &err), -EEXIST);
    unlink(path);
    memset(path, 'x', 150);
    path[150] = '\0';
    assert_int_equal(control_new(&config, &second, &err), -ENAMETOOLONG);
    assert_int_equal(uv_loop_close(&loop), 0);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_call),      TEST(test_params),      TEST(test_hostile_json),    TEST(test_long_lines),
        TEST(test_pipelined), TEST(test_never_reads), TEST(test_slow_subscriber), TEST(test_many_clients),
        TEST(test_vanishing), TEST(test_jobs),        TEST(test_attach),          TEST(test_socket_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
