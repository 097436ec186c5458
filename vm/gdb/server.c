/* See server.h. A client that leaves GDB_UNSENT_MAX bytes unread is cut. */
#include "vm/gdb/server.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "base/util.h"
#include "mem/mem.h"
#include "vm/debug.h"
#include "vm/gdb/session.h"
#include "vm/gdb/where.h"
#include "vm/machine.h"
#include "vm/status.h"

#define GDB_UNSENT_MAX (1u << 20)
#define INPUT_BYTES    4096u

struct gdb_server {
    struct machine *machine;
    struct mem *mem;
    struct gdb *gdb;
    uv_loop_t *loop;
    union {
        uv_stream_t stream;
        uv_tcp_t tcp;
        uv_pipe_t pipe;
    } listener;
    bool listening;
    uv_async_t async;
    bool async_open;
    uv_stream_t *client; /* NULL: none */
    char *unix_path;
    uint8_t input[INPUT_BYTES];
};

struct client_write {
    uv_write_t request;
    uint8_t bytes[];
};

/* --- the machine as a target --- */

static bool target_halt(void *opaque)
{
    struct gdb_server *s = opaque;
    return machine_debug_halt(s->machine) == 0;
}

static void take_stops(struct gdb_server *s)
{
    unsigned cpu;
    struct engine_stop stop;
    if (gdb_is_running(s->gdb) && machine_debug_stopped(s->machine, &cpu, &stop)) {
        if (machine_debug_halt(s->machine) < 0) {
            log_warning("--gdb: a vCPU does not stop");
        }
        gdb_stopped(s->gdb, cpu, GDB_SIGTRAP, &stop);
    }
}

static int target_resume(void *opaque, const enum gdb_action *actions, const struct engine_point *points,
                         unsigned count)
{
    struct gdb_server *s = opaque;
    struct engine_debug debug = {.count = count};
    memcpy(debug.points, points, count * sizeof(*points));
    for (unsigned i = 0; i < machine_cpus(s->machine); i++) {
        debug.step = actions[i] == GDB_STEP;
        int rc = machine_debug_set(s->machine, i, &debug, actions[i] == GDB_HOLD);
        if (rc < 0) {
            return rc;
        }
    }
    machine_debug_run(s->machine);
    return 0;
}

static int target_try_points(void *opaque, const struct engine_point *points, unsigned count)
{
    struct gdb_server *s = opaque;
    struct engine_debug debug = {.count = count};
    memcpy(debug.points, points, count * sizeof(*points));
    return machine_debug_set(s->machine, 0, &debug, false);
}

static void target_detach(void *opaque)
{
    struct gdb_server *s = opaque;
    static const struct engine_debug off;
    if (machine_debug_halt(s->machine) < 0) {
        log_warning("--gdb: a vCPU does not stop");
        return;
    }
    for (unsigned i = 0; i < machine_cpus(s->machine); i++) {
        machine_debug_set(s->machine, i, &off, false);
    }
    machine_debug_run(s->machine);
}

static void target_kill(void *opaque)
{
    struct gdb_server *s = opaque;
    machine_request_stop(s->machine, VM_STATUS_KILLED);
}

static int target_get_state(void *opaque, unsigned cpu, struct x86_state *ret_state, uint64_t *ret_cr8)
{
    struct gdb_server *s = opaque;
    *ret_cr8 = machine_debug_cr8(s->machine, cpu);
    return machine_get_state(s->machine, cpu, ret_state);
}

static int target_set_state(void *opaque, unsigned cpu, const struct x86_state *state)
{
    struct gdb_server *s = opaque;
    return machine_debug_set_state(s->machine, cpu, state);
}

static int target_read(void *opaque, uint64_t gpa, void *buf, size_t len)
{
    struct gdb_server *s = opaque;
    return mem_read(s->mem, GPA(gpa), buf, len);
}

static int target_write(void *opaque, uint64_t gpa, const void *buf, size_t len)
{
    struct gdb_server *s = opaque;
    return mem_write(s->mem, GPA(gpa), buf, len);
}

static int target_walk(void *opaque, unsigned cpu, uint64_t va, uint64_t *ret_gpa)
{
    struct gdb_server *s = opaque;
    gpa_t gpa;
    int rc = machine_debug_walk(s->machine, cpu, va, &gpa);
    *ret_gpa = rc == 0 ? gpa.v : 0;
    return rc;
}

static const char *target_describe(void *opaque, unsigned cpu)
{
    struct gdb_server *s = opaque;
    return machine_debug_describe(s->machine, cpu);
}

static int target_translation(void *opaque, unsigned cpu, uint64_t va, char *buf, size_t size)
{
    struct gdb_server *s = opaque;
    return machine_debug_translation(s->machine, cpu, va, buf, size);
}

static int target_count_blocks(void *opaque, bool on)
{
    struct gdb_server *s = opaque;
    return machine_debug_count_blocks(s->machine, on);
}

/* --- the client --- */

static void free_handle(uv_handle_t *handle)
{
    free(handle);
}

static void drop_client(struct gdb_server *s)
{
    uv_stream_t *client = s->client;
    if (client) {
        s->client = NULL;
        uv_close((uv_handle_t *)client, free_handle);
    }
}

static void on_written(uv_write_t *request, int status)
{
    free(request->data);
}

static void client_send(void *opaque, const void *bytes, size_t len)
{
    struct gdb_server *s = opaque;
    if (!s->client || uv_stream_get_write_queue_size(s->client) > GDB_UNSENT_MAX) {
        return;
    }
    struct client_write *write = malloc(sizeof(*write) + len);
    if (!write) {
        return;
    }
    memcpy(write->bytes, bytes, len);
    write->request.data = write;
    uv_buf_t buf = uv_buf_init((char *)write->bytes, (unsigned)len);
    if (uv_write(&write->request, s->client, &buf, 1, on_written) < 0) {
        free(write);
    }
}

static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buf)
{
    struct gdb_server *s = handle->data;
    *buf = uv_buf_init((char *)s->input, sizeof(s->input));
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf)
{
    struct gdb_server *s = stream->data;
    if (n == 0 || stream != s->client) {
        return;
    }
    bool goes_on = n > 0 && gdb_input(s->gdb, (const uint8_t *)buf->base, (size_t)n);
    if (!goes_on || uv_stream_get_write_queue_size(stream) > GDB_UNSENT_MAX) {
        drop_client(s);
        gdb_gone(s->gdb);
    }
}

static uv_stream_t *new_client(struct gdb_server *s)
{
    union {
        uv_tcp_t tcp;
        uv_pipe_t pipe;
    } *handle = calloc(1, sizeof(*handle));
    if (!handle) {
        return NULL;
    }
    if (s->unix_path) {
        uv_pipe_init(s->loop, &handle->pipe, 0);
    } else {
        uv_tcp_init(s->loop, &handle->tcp);
    }
    ((uv_handle_t *)handle)->data = s;
    return (uv_stream_t *)handle;
}

static void on_connection(uv_stream_t *listener, int status)
{
    struct gdb_server *s = listener->data;
    uv_stream_t *client = status < 0 ? NULL : new_client(s);
    if (!client) {
        return;
    }
    /* One at a time; and none once the vCPUs don't stop. */
    if (uv_accept(listener, client) < 0 || s->client || machine_debug_halt(s->machine) < 0) {
        uv_close((uv_handle_t *)client, free_handle);
        return;
    }
    if (!s->unix_path) {
        uv_tcp_nodelay((uv_tcp_t *)client, 1);
    }
    s->client = client;
    gdb_attached(s->gdb);
    uv_read_start(client, on_alloc, on_read);
}

/* --- set-up --- */

static int listen_unix(struct gdb_server *s, const char *path, struct err *err)
{
    s->unix_path = strdup(path);
    if (!s->unix_path) {
        return err_sys(err, -ENOMEM, "--gdb");
    }
    uv_pipe_init(s->loop, &s->listener.pipe, 0);
    s->listening = true;
    s->listener.stream.data = s;
    struct stat status;
    if (lstat(path, &status) == 0 && S_ISSOCK(status.st_mode)) {
        unlink(path); /* left behind by another run */
    }
    mode_t old = umask(0177);
    int rc = uv_pipe_bind(&s->listener.pipe, path);
    umask(old);
    rc = rc < 0 ? rc : uv_listen(&s->listener.stream, 4, on_connection);
    return rc < 0 ? err_sys(err, rc, "--gdb: cannot listen on '%s'", path) : 0;
}

static int listen_tcp(struct gdb_server *s, uint16_t port, struct err *err)
{
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    uv_tcp_init(s->loop, &s->listener.tcp);
    s->listening = true;
    s->listener.stream.data = s;
    int rc = uv_tcp_bind(&s->listener.tcp, (const struct sockaddr *)&address, 0);
    rc = rc < 0 ? rc : uv_listen(&s->listener.stream, 4, on_connection);
    if (rc < 0) {
        return err_sys(err, rc, "--gdb: cannot listen on 127.0.0.1:%u", port);
    }
    int len = sizeof(address);
    uv_tcp_getsockname(&s->listener.tcp, (struct sockaddr *)&address, &len);
    fprintf(stderr, "fonda: gdb: target remote 127.0.0.1:%u\n", ntohs(address.sin_port));
    return 0;
}

static void on_async(uv_async_t *async)
{
    take_stops(async->data);
}

int gdb_server_new(const char *where, bool wait, uv_loop_t *loop, struct machine *machine, struct mem *mem,
                   struct gdb_server **ret_server, struct err *err)
{
    struct gdb_server *s = calloc(1, sizeof(*s));
    const struct gdb_target target = {
        .opaque = s,
        .cpus = machine_cpus(machine),
        .send = client_send,
        .halt = target_halt,
        .resume = target_resume,
        .try_points = target_try_points,
        .detach = target_detach,
        .kill = target_kill,
        .get_state = target_get_state,
        .set_state = target_set_state,
        .read = target_read,
        .write = target_write,
        .walk = target_walk,
        .describe = target_describe,
        .translation = target_translation,
        .count_blocks = target_count_blocks,
    };
    struct gdb *gdb = s ? gdb_new(&target) : NULL;
    if (!gdb) {
        free(s);
        return err_sys(err, -ENOMEM, "--gdb");
    }
    *s = (struct gdb_server){.machine = machine, .mem = mem, .gdb = gdb, .loop = loop};
    *ret_server = s; /* closed and freed by the caller, also after a failure */
    struct gdb_where at = {.path = NULL};
    int rc = gdb_where_parse(where, &at, err);
    if (rc < 0) {
        return rc;
    }
    rc = uv_async_init(loop, &s->async, on_async);
    if (rc < 0) {
        return err_sys(err, rc, "--gdb");
    }
    s->async.data = s;
    s->async_open = true;
    rc = at.path ? listen_unix(s, at.path, err) : listen_tcp(s, at.port, err);
    if (rc == 0 && wait) {
        machine_debug_hold(machine);
    }
    return rc;
}

void gdb_server_notify(struct gdb_server *s)
{
    uv_async_send(&s->async);
}

void gdb_server_ended(struct gdb_server *s, int status)
{
    gdb_ended(s->gdb, status);
}

void gdb_server_close(struct gdb_server *s)
{
    if (!s) {
        return;
    }
    drop_client(s);
    if (s->listening) {
        uv_close((uv_handle_t *)&s->listener, NULL);
        s->listening = false;
    }
    if (s->async_open) {
        uv_close((uv_handle_t *)&s->async, NULL);
        s->async_open = false;
    }
    if (s->unix_path) {
        unlink(s->unix_path);
    }
}

void gdb_server_free(struct gdb_server *s)
{
    if (s) {
        gdb_free(s->gdb);
        free(s->unix_path);
        free(s);
    }
}
