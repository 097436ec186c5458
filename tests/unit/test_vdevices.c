/* dev/virtio: console ports, balloon, 9P and vsock, as their drivers use them, and hostile rings for each. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "dev/virtio/balloon.h"
#include "dev/virtio/console.h"
#include "dev/virtio/p9.h"
#include "dev/virtio/v9p.h"
#include "dev/virtio/vsock.h"
#include "tests/unit/vdrv.h"

#define BUFFER(i) (VDRV_DATA + 0x1000 * (i))

static struct vdrv drv;

static void put_out(unsigned queue, uint64_t gpa, uint32_t len)
{
    const struct vdrv_buf buf = {gpa, len, false};
    vdrv_add(&drv, queue, &buf, 1);
}

static void put_in(unsigned queue, uint64_t gpa, uint32_t len)
{
    const struct vdrv_buf buf = {gpa, len, true};
    vdrv_add(&drv, queue, &buf, 1);
}

/* --- console --- */

static char sink_bytes[64];
static size_t sink_len, sink_room;
static unsigned rooms;

static size_t sink(void *opaque, const uint8_t *bytes, size_t len)
{
    size_t n = MIN(len, MIN(sink_room, sizeof(sink_bytes) - sink_len));
    memcpy(sink_bytes + sink_len, bytes, n);
    sink_len += n;
    sink_room -= n;
    return n;
}

static void room(void *opaque)
{
    rooms++;
}

static int open_console(void **state)
{
    static const struct vcon_port ports[] = {{.sink = sink, .room = room},
                                             {.name = "agent", .sink = sink, .room = room}};
    sink_len = 0;
    sink_room = SIZE_MAX;
    vdrv_open_bus(&drv);
    vdrv_open(&drv, vcon_new(drv.mem, ports, 2, NULL));
    return 0;
}

static int close_device(void **state)
{
    vdrv_close(&drv);
    return 0;
}

static void control(uint32_t port, unsigned event, unsigned value)
{
    vdrv_put(&drv, BUFFER(0), port | (uint64_t)event << 32 | (uint64_t)value << 48, 8);
    put_out(3, BUFFER(0), 8);
    vdrv_kick(&drv, 3);
}

static void test_console(void **state)
{
    uint32_t used = 0;
    vdrv_start(&drv, UINT64_MAX);
    assert_int_equal(vdrv_in(&drv, C_SPACE + 4, 4), 2);
    for (unsigned i = 0; i < 8; i++) {
        put_in(2, BUFFER(8 + i), 80);
    }
    vdrv_kick(&drv, 2);
    control(0, 0, 1); /* the device answers with its ports */
    assert_true(vdrv_used(&drv, 2, &used) && vdrv_used(&drv, 2, &used));
    assert_true(vdrv_get(&drv, BUFFER(9), 8) == (1 | 1ull << 32 | 1ull << 48));
    control(1, 3, 1); /* port ready: its name, and that it is open */
    assert_true(vdrv_used(&drv, 2, &used));
    assert_int_equal(used, 8 + 5);
    assert_true(vdrv_get(&drv, BUFFER(10) + 8, 5) == 0x746e656761);
    control(99, 3, 1);
    assert_int_equal(vcon_input(drv.dev, 1, (const uint8_t *)"x", 1), 0); /* not open */
    control(1, 6, 1);
    assert_int_equal(vcon_input(drv.dev, 1, (const uint8_t *)"x", 1), 0); /* no buffer */
    put_in(4, BUFFER(20), 4);
    unsigned before = rooms;
    vdrv_kick(&drv, 4);
    assert_int_equal(rooms, before + 1);
    assert_int_equal(vcon_input(drv.dev, 1, (const uint8_t *)"hello", 5), 4);
    assert_int_equal(vdrv_get(&drv, BUFFER(20), 4), 0x6c6c6568);
}

/* The guest hears of a port's other end coming and going, and at its own start of what is there then. */
static void test_console_open(void **state)
{
    uint32_t used = 0;
    vdrv_start(&drv, UINT64_MAX);
    vcon_set_open(drv.dev, 1, false); /* nobody asked yet: nothing to tell */
    for (unsigned i = 0; i < 8; i++) {
        put_in(2, BUFFER(8 + i), 80);
    }
    vdrv_kick(&drv, 2);
    control(1, 3, 1);
    assert_true(vdrv_used(&drv, 2, &used)); /* the name */
    assert_false(vdrv_used(&drv, 2, &used));
    vcon_set_open(drv.dev, 1, true);
    assert_true(vdrv_used(&drv, 2, &used));
    assert_true(vdrv_get(&drv, BUFFER(9), 8) == (1 | 6ull << 32 | 1ull << 48));
    vcon_set_open(drv.dev, 1, true);
    assert_false(vdrv_used(&drv, 2, &used));
    vcon_set_open(drv.dev, 1, false);
    assert_true(vdrv_used(&drv, 2, &used));
    assert_true(vdrv_get(&drv, BUFFER(10), 8) == (1 | 6ull << 32));
}

static void test_console_output(void **state)
{
    uint32_t used = 0;
    vdrv_start(&drv, UINT64_MAX);
    vdrv_put(&drv, BUFFER(0), 0x6f6c6c6568, 8);
    sink_room = 2;
    put_out(1, BUFFER(0), 5);
    put_out(1, BUFFER(0), 5);
    vdrv_kick(&drv, 1);
    assert_false(vdrv_used(&drv, 1, &used)); /* the sink is full: the chain waits, with what is done of it */
    sink_room = SIZE_MAX;
    vcon_room(drv.dev, 0);
    vdrv_run(&drv);
    assert_true(vdrv_used(&drv, 1, &used) && vdrv_used(&drv, 1, &used));
    assert_int_equal(sink_len, 10);
    assert_memory_equal(sink_bytes, "hellohello", 10);
    vcon_resize(drv.dev, 120, 40);
    assert_int_equal(vdrv_in(&drv, C_SPACE, 4), 120 | 40 << 16);
}

static void test_console_hammer(void **state)
{
    sink_room = 0;
    vdrv_hammer(&drv, UINT64_MAX, 40);
}

/* --- balloon --- */

static int open_balloon(void **state)
{
    vdrv_open_bus(&drv);
    vdrv_open(&drv, vbal_new(drv.mem, NULL));
    return 0;
}

static bool resident(uint64_t gpa)
{
    int fd = mem_ram_fd(drv.mem);
    off_t data = lseek(fd, (off_t)gpa, SEEK_DATA);
    return data == (off_t)gpa;
}

static void test_balloon(void **state)
{
    struct vbal_info info;
    vdrv_start(&drv, UINT64_MAX);
    vbal_set_target(drv.dev, 8192);
    assert_int_equal(drv.msi_count[0], 1);
    assert_int_equal(vdrv_in(&drv, C_SPACE, 4), 2);
    vdrv_put(&drv, 0x800000, 1, 1);
    vdrv_put(&drv, 0x801000, 1, 1);
    vdrv_put(&drv, 0x802000, 1, 1);
    assert_true(resident(0x801000));
    vdrv_put(&drv, BUFFER(0), 0x801, 4);
    vdrv_put(&drv, BUFFER(0) + 4, 0x800, 4);
    vdrv_put(&drv, BUFFER(0) + 8, 0xfffffff0, 4); /* not RAM */
    put_out(0, BUFFER(0), 12);
    vdrv_kick(&drv, 0);
    vdrv_out(&drv, C_SPACE + 4, 4, 2);
    vdrv_out(&drv, C_SPACE, 4, 77); /* ours */
    assert_false(resident(0x800000) || resident(0x801000));
    assert_true(resident(0x802000));
    assert_int_equal(vdrv_get(&drv, 0x800000, 1), 0);
    vbal_get_info(drv.dev, &info);
    assert_int_equal(info.given_bytes, 8192);
    assert_int_equal(info.actual_pages, 2);
    assert_int_equal(info.target_pages, 2);
}

static void test_balloon_reporting(void **state)
{
    struct vbal_info info;
    uint32_t used = 0;
    vdrv_start(&drv, UINT64_MAX);
    for (uint64_t at = 0xa00000; at < 0xa10000; at += 4096) {
        vdrv_put(&drv, at, 1, 1);
    }
    put_in(4, 0xa00000, 0x8000);
    vdrv_kick(&drv, 4);
    assert_true(vdrv_used(&drv, 4, &used));
    assert_false(resident(0xa07000));
    assert_true(resident(0xa08000));
    /* Hinting: not before the guest has answered with the round's ID. */
    put_in(3, 0xa08000, 0x1000);
    vdrv_kick(&drv, 3);
    assert_true(resident(0xa08000));
    assert_true(vbal_trim(drv.dev));
    assert_false(vbal_trim(drv.dev));
    vdrv_put(&drv, BUFFER(0), vdrv_in(&drv, C_SPACE + 8, 4), 4);
    vdrv_put(&drv, BUFFER(1), 0, 4);
    put_out(3, BUFFER(0), 4);
    put_in(3, 0xa08000, 0x1000);
    put_out(3, BUFFER(1), 4);
    put_in(3, 0xa09000, 0x1000);
    vdrv_kick(&drv, 3);
    assert_false(resident(0xa08000));
    assert_true(resident(0xa09000));
    assert_int_equal(vdrv_in(&drv, C_SPACE + 8, 4), 1); /* done */
    vbal_get_info(drv.dev, &info);
    assert_int_equal(info.reported_bytes, 0x8000);
    assert_int_equal(info.hinted_bytes, 0x1000);
}

static void test_balloon_stats(void **state)
{
    struct vbal_info info;
    uint32_t used = 0;
    vdrv_start(&drv, UINT64_MAX);
    vdrv_put(&drv, BUFFER(0), 4, 2); /* free memory */
    vdrv_put(&drv, BUFFER(0) + 2, 123456, 8);
    vdrv_put(&drv, BUFFER(0) + 10, 9999, 2);
    put_out(2, BUFFER(0), 20);
    vdrv_kick(&drv, 2);
    vbal_get_info(drv.dev, &info);
    assert_int_equal(info.stats[4], 123456);
    assert_true(info.stats[5] == UINT64_MAX);
    assert_false(vdrv_used(&drv, 2, &used)); /* kept until we ask */
    vbal_ask_stats(drv.dev);
    assert_true(vdrv_used(&drv, 2, &used));
    vbal_ask_stats(drv.dev);
    assert_false(vdrv_used(&drv, 2, &used));
}

static void test_balloon_hammer(void **state)
{
    vdrv_hammer(&drv, UINT64_MAX, 30);
}

/* --- 9P --- */

static char dir[64];
static struct p9 *p9;
static uint8_t message[8192], answer[8192];
static uint32_t message_len;

static void path_of(const char *name, char *buf)
{
    snprintf(buf, 128, "%s/%s", dir, name);
}

static void make_dir(void)
{
    char path[128];
    strcpy(dir, "/tmp/fonda-test-9p-XXXXXX");
    assert_non_null(mkdtemp(dir));
    path_of("tree", path);
    mkdir(path, 0755);
    path_of("secret", path);
    close(open(path, O_CREAT | O_WRONLY, 0644));
    path_of("tree/out", path);
    assert_int_equal(symlink("..", path), 0);
    path_of("tree/abs", path);
    assert_int_equal(symlink("/etc/passwd", path), 0);
    path_of("tree/file", path);
    int fd = open(path, O_CREAT | O_WRONLY, 0644);
    assert_int_equal(write(fd, "contents", 8), 8);
    close(fd);
    path_of("tree/pipe", path);
    assert_int_equal(mkfifo(path, 0644), 0);
}

static int remove_dir(void **state)
{
    char command[128];
    p9_free(p9);
    p9 = NULL;
    snprintf(command, sizeof(command), "rm -rf %s", dir);
    return system(command);
}

static void open_tree(bool read_only)
{
    char path[128];
    make_dir();
    path_of("tree", path);
    p9 = p9_new(path, read_only, NULL);
    assert_non_null(p9);
}

static int open_rw(void **state)
{
    open_tree(false);
    return 0;
}

static int open_ro(void **state)
{
    open_tree(true);
    return 0;
}

static void begin(uint8_t type)
{
    memset(message, 0, 7);
    message[4] = type;
    message[5] = 0x34;
    message_len = 7;
}

static void add_int(uint64_t value, unsigned bytes)
{
    memcpy(message + message_len, &value, bytes);
    message_len += bytes;
}

static void add_text(const char *text)
{
    add_int(strlen(text), 2);
    memcpy(message + message_len, text, strlen(text));
    message_len += (uint32_t)strlen(text);
}

/* Sends; returns 0 or the error's number. */
static unsigned call(void)
{
    uint32_t error;
    memcpy(message, &message_len, 4);
    uint32_t n = p9_handle(p9, message, message_len, answer, sizeof(answer));
    assert_true(n >= 7);
    assert_int_equal(answer[5], 0x34);
    memcpy(&error, answer + 7, 4);
    return answer[4] == 7 ? error : 0;
}

static void attach(void)
{
    begin(104);
    add_int(1, 4);
    add_int(UINT32_MAX, 4);
    add_text("root");
    add_text("");
    add_int(0, 4);
    assert_int_equal(call(), 0);
}

static unsigned walk(uint32_t from, uint32_t to, const char *name)
{
    begin(110);
    add_int(from, 4);
    add_int(to, 4);
    add_int(1, 2);
    add_text(name);
    return call();
}

static unsigned open_fid(uint32_t fid, uint32_t flags)
{
    begin(12);
    add_int(fid, 4);
    add_int(flags, 4);
    return call();
}

static unsigned named(uint8_t type, uint32_t fid, const char *name, unsigned ints)
{
    begin(type);
    add_int(fid, 4);
    add_text(name);
    for (unsigned i = 0; i < ints; i++) {
        add_int(0, 4);
    }
    return call();
}

static void test_9p_files(void **state)
{
    begin(100);
    add_int(8192, 4);
    add_text("9P2000.L");
    assert_int_equal(call(), 0);
    attach();
    assert_int_equal(walk(1, 2, "file"), 0);
    begin(116);
    add_int(2, 4);
    add_int(0, 8);
    add_int(100, 4);
    assert_int_equal(call(), EBADF); /* not open */
    assert_int_equal(open_fid(2, 2), 0);
    begin(116);
    add_int(2, 4);
    add_int(3, 8);
    add_int(100, 4);
    assert_int_equal(call(), 0);
    assert_memory_equal(answer + 11, "tents", 5);
    begin(118);
    add_int(2, 4);
    add_int(0, 8);
    add_int(3, 4);
    add_int(0x585858, 3);
    assert_int_equal(call(), 0);
    begin(118);
    add_int(2, 4);
    add_int(0, 8);
    add_int(5000, 4); /* more than the message has */
    assert_int_equal(call(), EBADF);
    assert_int_equal(named(72, 1, "sub", 2), 0);
    assert_int_equal(walk(1, 3, "sub"), 0);
    assert_int_equal(named(14, 3, "new", 3), 0); /* the fid becomes the file */
    assert_int_equal(named(76, 1, "file", 1), 0);
    assert_int_equal(walk(1, 4, "file"), ENOENT);
    begin(120);
    add_int(3, 4);
    assert_int_equal(call(), 0);
    assert_int_equal(call(), EBADF);
}

static void test_9p_confined(void **state)
{
    attach();
    static const char *const bad[] = {"..", ".", "", "sub/..", "/etc", "a/b", "../secret"};
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        assert_int_equal(walk(1, 2, bad[i]), ENOENT);
        assert_int_equal(named(72, 1, bad[i], 2), EINVAL);
        assert_int_equal(named(14, 1, bad[i], 3), EINVAL);
        assert_int_equal(named(76, 1, bad[i], 1), EINVAL);
    }
    assert_int_equal(walk(1, 2, "out"), 0); /* the link itself */
    assert_int_equal(walk(2, 3, "secret"), ENOTDIR);
    assert_int_equal(open_fid(2, 0), EPERM);
    assert_int_equal(named(14, 2, "new", 3), ENOTDIR);
    assert_int_equal(walk(1, 4, "abs"), 0);
    assert_int_equal(open_fid(4, 0), EPERM);
    begin(14); /* creating over a link does not follow it */
    add_int(1, 4);
    add_text("abs");
    add_int(1, 4);
    add_int(0644, 4);
    add_int(0, 4);
    assert_int_equal(call(), ELOOP);
    assert_int_equal(walk(1, 5, "pipe"), 0);
    assert_int_equal(open_fid(5, 0), EPERM);
    begin(18); /* no devices of the host's */
    add_int(1, 4);
    add_text("null");
    add_int(S_IFCHR | 0666, 4);
    add_int(1, 4);
    add_int(3, 4);
    add_int(0, 4);
    assert_int_equal(call(), EPERM);
    /* A directory that is swapped for a link while a fid means it. */
    char path[128], other[128];
    assert_int_equal(named(72, 1, "sub", 2), 0);
    assert_int_equal(walk(1, 6, "sub"), 0);
    path_of("tree/sub", path);
    path_of("tree/moved", other);
    rename(path, other);
    assert_int_equal(symlink("/etc", path), 0);
    assert_int_equal(walk(6, 7, "passwd"), ENOENT);
    assert_int_equal(walk(1, 8, "sub"), 0);
    assert_int_equal(walk(8, 9, "passwd"), ENOTDIR);
}

static void test_9p_read_only(void **state)
{
    attach();
    assert_int_equal(walk(1, 2, "file"), 0);
    assert_int_equal(open_fid(2, 1), EROFS);
    assert_int_equal(open_fid(2, 01000), EROFS);
    assert_int_equal(open_fid(2, 0), 0);
    assert_int_equal(named(72, 1, "sub", 2), EROFS);
    assert_int_equal(named(14, 1, "new", 3), EROFS);
    assert_int_equal(named(76, 1, "file", 1), EROFS);
    begin(26);
    add_int(2, 4);
    assert_int_equal(call(), EROFS);
}

static void test_9p_random(void **state)
{
    static const uint8_t types[] = {8,  12, 14, 16, 18, 22,  24,  26,  40,  50,  52,  54,
                                    70, 72, 74, 76, 99, 100, 104, 108, 110, 116, 118, 120};
    uint64_t rng = unit_seed();
    attach();
    for (unsigned i = 0; i < 30000; i++) {
        begin(types[unit_random(&rng) % sizeof(types)]);
        unsigned words = (unsigned)(unit_random(&rng) % 12);
        for (unsigned w = 0; w < words; w++) {
            uint64_t r = unit_random(&rng);
            switch (r % 4) {
            case 0: add_text((r >> 8) % 2 ? "file" : (r >> 9) % 2 ? "a" : "b"); break;
            case 1: add_int(r >> 32, 1u << (r >> 4) % 4); break;
            default: add_int((r >> 8) % 6, 1u << (r >> 4) % 4); break;
            }
        }
        memcpy(message, &message_len, 4);
        uint32_t room_bytes = unit_random(&rng) % 8 ? sizeof(answer) : (uint32_t)(unit_random(&rng) % 64);
        assert_true(p9_handle(p9, message, message_len, answer, room_bytes) <= room_bytes);
        if (i % 500 == 0) {
            p9_reset(p9);
            attach();
        }
    }
}

static void test_9p_device(void **state)
{
    char path[128];
    struct err err = {0};
    uint32_t used = 0;
    make_dir();
    path_of("tree", path);
    vdrv_open_bus(&drv);
    assert_null(v9p_new(drv.mem, "/nonexistent/dir", "tag", false, &err));
    assert_non_null(strstr(err.text, "/nonexistent/dir"));
    vdrv_open(&drv, v9p_new(drv.mem, path, "tag", true, NULL));
    vdrv_start(&drv, UINT64_MAX);
    assert_int_equal(vdrv_in(&drv, C_SPACE, 4), 0x61740003);
    begin(100);
    add_int(8192, 4);
    add_text("9P2000.L");
    memcpy(message, &message_len, 4);
    mem_write(drv.mem, GPA(BUFFER(0)), message, message_len);
    const struct vdrv_buf bufs[2] = {{BUFFER(0), message_len, false}, {BUFFER(1), 4096, true}};
    vdrv_add(&drv, 0, bufs, 2);
    vdrv_kick(&drv, 0);
    assert_true(vdrv_used(&drv, 0, &used));
    assert_int_equal(used, 7 + 4 + 2 + 8);
    assert_int_equal(vdrv_get(&drv, BUFFER(1) + 4, 1), 101);
    vdrv_add(&drv, 0, bufs, 1); /* no room for an answer */
    vdrv_kick(&drv, 0);
    assert_true(vdrv_needs_reset(&drv));
    vdrv_hammer(&drv, UINT64_MAX, 20);
    vdrv_close(&drv);
    remove_dir(state);
}

/* --- vsock --- */

static uv_loop_t loop;
static char socket_path[96];

static int open_vsock(void **state)
{
    strcpy(dir, "/tmp/fonda-test-vsock-XXXXXX");
    assert_non_null(mkdtemp(dir));
    snprintf(socket_path, sizeof(socket_path), "%s/s", dir);
    uv_loop_init(&loop);
    vdrv_open_bus(&drv);
    vdrv_open(&drv, vsock_new(drv.mem, &loop, socket_path, NULL));
    return 0;
}

static int close_vsock(void **state)
{
    vdrv_close(&drv);
    uv_run(&loop, UV_RUN_DEFAULT); /* every handle is closed, or this would not end */
    assert_int_equal(uv_loop_close(&loop), 0);
    return remove_dir(state);
}

static void spin(void)
{
    for (unsigned i = 0; i < 20; i++) {
        uv_run(&loop, UV_RUN_NOWAIT);
        vdrv_run(&drv);
    }
}

static int host_socket(const char *suffix, bool listening)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof(address.sun_path), "%s%s", socket_path, suffix);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (listening) {
        assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
        assert_int_equal(listen(fd, 1), 0);
    } else {
        assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    }
    return fd;
}

static void packet(uint32_t src, uint32_t dst, unsigned op, uint32_t flags, const char *data)
{
    uint32_t len = (uint32_t)strlen(data);
    vdrv_put(&drv, BUFFER(0), VSOCK_GUEST_CID, 8);
    vdrv_put(&drv, BUFFER(0) + 8, 2, 8);
    vdrv_put(&drv, BUFFER(0) + 16, src, 4);
    vdrv_put(&drv, BUFFER(0) + 20, dst, 4);
    vdrv_put(&drv, BUFFER(0) + 24, len, 4);
    vdrv_put(&drv, BUFFER(0) + 28, 1 | op << 16, 4);
    vdrv_put(&drv, BUFFER(0) + 32, flags, 4);
    vdrv_put(&drv, BUFFER(0) + 36, 100000, 4);
    vdrv_put(&drv, BUFFER(0) + 40, 0, 4);
    mem_write(drv.mem, GPA(BUFFER(0) + 44), data, len);
    put_out(1, BUFFER(0), 44 + len);
    vdrv_kick(&drv, 1);
    spin();
}

/* The next packet for the guest: its op, with its data at ret; 0: none. */
static unsigned next_packet(unsigned *index, char *ret)
{
    uint32_t used = 0;
    if (!vdrv_used(&drv, 0, &used)) {
        return 0;
    }
    uint64_t at = BUFFER(8 + (*index)++);
    if (ret) {
        mem_read(drv.mem, GPA(at + 44), ret, used - 44);
        ret[used - 44] = '\0';
    }
    return (unsigned)vdrv_get(&drv, at + 30, 2);
}

static void offer_rx(void)
{
    for (unsigned i = 0; i < 12; i++) {
        put_in(0, BUFFER(8 + i), 4096);
    }
    vdrv_kick(&drv, 0);
}

static void test_vsock_guest_connects(void **state)
{
    char text[64] = "";
    unsigned index = 0;
    vdrv_start(&drv, UINT64_MAX);
    assert_int_equal(vdrv_in(&drv, C_SPACE, 8), VSOCK_GUEST_CID);
    offer_rx();
    packet(700, 51, 1, 0, "");
    assert_int_equal(next_packet(&index, NULL), 3); /* nobody listens */
    int listener = host_socket("_52", true);
    packet(700, 52, 1, 0, "");
    assert_int_equal(next_packet(&index, NULL), 2);
    int fd = accept(listener, NULL, NULL);
    packet(700, 52, 5, 0, "hello");
    assert_int_equal(recv(fd, text, sizeof(text), MSG_DONTWAIT), 5);
    assert_int_equal(send(fd, "world", 5, 0), 5);
    spin();
    assert_int_equal(next_packet(&index, text), 5);
    assert_string_equal(text, "world");
    packet(700, 52, 7, 0, ""); /* credit request */
    assert_int_equal(next_packet(&index, NULL), 6);
    shutdown(fd, SHUT_WR);
    spin();
    assert_int_equal(next_packet(&index, NULL), 4);
    packet(700, 52, 5, 0, "more"); /* the other direction still works */
    assert_int_equal(recv(fd, text, sizeof(text), MSG_DONTWAIT), 4);
    packet(700, 52, 4, 3, "");
    assert_int_equal(next_packet(&index, NULL), 3);
    assert_int_equal(recv(fd, text, sizeof(text), 0), 0);
    close(fd);
    close(listener);
}

static void test_vsock_host_connects(void **state)
{
    char text[64] = "";
    unsigned index = 0;
    vdrv_start(&drv, UINT64_MAX);
    offer_rx();
    int fd = host_socket("", false);
    assert_int_equal(send(fd, "CONNECT 99\nearly", 16, 0), 16);
    spin();
    assert_int_equal(next_packet(&index, NULL), 1);
    uint32_t host_port = (uint32_t)vdrv_get(&drv, BUFFER(8) + 16, 4);
    assert_int_equal(vdrv_get(&drv, BUFFER(8) + 20, 4), 99);
    packet(99, host_port, 2, 0, "");
    assert_true(recv(fd, text, sizeof(text), MSG_DONTWAIT) > 3);
    assert_memory_equal(text, "OK ", 3);
    assert_int_equal(next_packet(&index, text), 5);
    assert_string_equal(text, "early");
    packet(99, host_port, 3, 0, ""); /* reset by the guest */
    assert_int_equal(recv(fd, text, sizeof(text), MSG_DONTWAIT), 0);
    close(fd);
    static const char *const bad[] = {"HELO\n", "CONNECT x\n", "CONNECT 99999999999\n",
                                      "CONNECT 111111111111111111111111111111111111111111\n"};
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        fd = host_socket("", false);
        assert_true(send(fd, bad[i], strlen(bad[i]), 0) > 0);
        spin();
        assert_true(recv(fd, text, sizeof(text), MSG_DONTWAIT) <= 0);
        struct pollfd p = {.fd = fd, .events = POLLIN};
        assert_int_equal(poll(&p, 1, 0), 1);
        close(fd);
    }
}

static void test_vsock_hammer(void **state)
{
    vdrv_hammer(&drv, UINT64_MAX, 20);
    spin();
    int fd = host_socket("", false); /* the guest goes away meanwhile */
    assert_int_equal(send(fd, "CONNECT 5\n", 10, 0), 10);
    vdrv_start(&drv, UINT64_MAX);
    spin();
    vdrv_reset(&drv);
    spin();
    close(fd);
}

#define T(f, open, close) cmocka_unit_test_setup_teardown(f, open, close)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(test_console, open_console, close_device),
        T(test_console_open, open_console, close_device),
        T(test_console_output, open_console, close_device),
        T(test_console_hammer, open_console, close_device),
        T(test_balloon, open_balloon, close_device),
        T(test_balloon_reporting, open_balloon, close_device),
        T(test_balloon_stats, open_balloon, close_device),
        T(test_balloon_hammer, open_balloon, close_device),
        T(test_9p_files, open_rw, remove_dir),
        T(test_9p_confined, open_rw, remove_dir),
        T(test_9p_read_only, open_ro, remove_dir),
        T(test_9p_random, open_rw, remove_dir),
        cmocka_unit_test(test_9p_device),
        T(test_vsock_guest_connects, open_vsock, close_vsock),
        T(test_vsock_host_connects, open_vsock, close_vsock),
        T(test_vsock_hammer, open_vsock, close_vsock),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
