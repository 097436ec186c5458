/* The contract of block.h on raw files: bounds, completion, locks, odd alignment under O_DIRECT, error
 * policy. */
#include "tests/unit/unit.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "block/block_provider.h"

static char path[] = "test_block_core.XXXXXX";
static enum blk_engine engine;
static struct blk_loop *loop;

static int setup(void **state)
{
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, 1 << 20), 0);
    close(fd);
    return blk_loop_new(engine, &loop, NULL);
}

static int teardown(void **state)
{
    blk_loop_free(loop);
    unlink(path);
    strcpy(strrchr(path, '.'), ".XXXXXX");
    return 0;
}

static struct blk_node *open_raw(enum blk_cache cache, unsigned flags, const char *format)
{
    struct blk_open_options options = {.format = format, .cache = cache, .flags = flags};
    struct blk_node *node = NULL;
    struct err err = {0};
    if (blk_open(loop, path, &options, &node, &err) < 0) {
        print_message("%s\n", err.text);
    }
    return node;
}

static int flush_error; /* what fdatasync() fails with, on threads */

int fdatasync(int fd)
{
    if (flush_error) {
        errno = flush_error;
        return -1;
    }
    return (int)syscall(SYS_fdatasync, fd);
}

static void count_done(struct blk_req *req, int error)
{
    *(int *)req->opaque = error ? error : 1;
}

static void done_runs_from_poll_only(void **state)
{
    struct blk_node *node = open_raw(BLK_CACHE_WRITEBACK, BLK_OPEN_RDWR, "raw");
    int result = 0;
    struct blk_req req = {.op = BLK_FLUSH, .done = count_done, .opaque = &result};
    blk_submit(node, &req);
    assert_int_equal(result, 0);
    assert_int_equal(blk_in_flight(node), 1);
    blk_drain(node);
    assert_int_equal(result, 1);
    struct blk_req beyond = {
        .op = BLK_DISCARD, .offset = 1 << 20, .bytes = 1, .done = count_done, .opaque = &result};
    blk_submit(node, &beyond);
    assert_int_equal(result, 1);
    blk_drain(node);
    assert_int_equal(result, -EINVAL);
    assert_int_equal(blk_close(node), 0);
}

static void bad_requests_fail(void **state)
{
    struct blk_node *node = open_raw(BLK_CACHE_WRITEBACK, 0, "raw");
    uint8_t buf[16];
    struct iovec iov = {buf, sizeof(buf)};
    struct blk_req wrong_sum = {.op = BLK_READ, .bytes = 17, .iov = &iov, .iov_count = 1};
    assert_int_equal(blk_co_io(node, &wrong_sum), -EINVAL);
    assert_int_equal(blk_pread(node, (1 << 20) - 15, buf, 16), -EINVAL);
    assert_int_equal(blk_pread(node, UINT64_MAX, buf, 16), -EINVAL);
    assert_int_equal(blk_pwrite(node, 0, buf, 16), -EROFS);
    struct blk_req unknown = {.op = (enum blk_op)77};
    assert_int_equal(blk_co_io(node, &unknown), -EINVAL);
    assert_int_equal(blk_pread(node, 1 << 20, buf, 0), 0);
    blk_close(node);
}

static void any_alignment_in_every_cache_mode(void **state)
{
    static uint8_t model[1 << 20], now[1 << 20];
    uint64_t rng = unit_seed();
    memset(model, 0, sizeof(model));
    for (int cache = BLK_CACHE_WRITEBACK; cache <= BLK_CACHE_UNSAFE; cache++) {
        struct blk_node *node = open_raw((enum blk_cache)cache, BLK_OPEN_RDWR, "raw");
        assert_non_null(node);
        for (int i = 0; i < 60; i++) {
            uint64_t bytes = 1 + unit_random(&rng) % 20000,
                     offset = unit_random(&rng) % (sizeof(model) - bytes);
            if (i % 6 == 5) {
                memset(model + offset, 0, bytes);
                assert_int_equal(blk_write_zeroes(node, offset, bytes, i & 1 ? BLK_REQ_UNMAP : 0), 0);
                continue;
            }
            memset(model + offset, i + 1, bytes);
            assert_int_equal(blk_pwrite(node, offset, model + offset, bytes), 0);
        }
        assert_int_equal(blk_flush(node), 0);
        assert_int_equal(blk_pread(node, 0, now, sizeof(now)), 0);
        assert_memory_equal(now, model, sizeof(now));
        assert_int_equal(blk_size(node), 1 << 20);
        assert_int_equal(blk_close(node), 0);
    }
}

static void two_writers_never(void **state)
{
    struct blk_node *writer = open_raw(BLK_CACHE_WRITEBACK, BLK_OPEN_RDWR, "raw"), *second = NULL;
    struct blk_open_options options = {.format = "raw", .flags = BLK_OPEN_RDWR};
    struct err err = {0};
    assert_int_equal(blk_open(loop, path, &options, &second, &err), -EBUSY);
    assert_non_null(strstr(err.text, path));
    options.flags = 0;
    assert_int_equal(blk_open(loop, path, &options, &second, &err), -EBUSY);
    options.flags = BLK_OPEN_NO_LOCK;
    assert_int_equal(blk_open(loop, path, &options, &second, &err), 0);
    blk_close(second);
    blk_close(writer);
    struct blk_node *reader = open_raw(BLK_CACHE_WRITEBACK, 0, "raw"),
                    *other = open_raw(BLK_CACHE_WRITEBACK, 0, "raw");
    assert_non_null(other);
    options.flags = BLK_OPEN_RDWR;
    assert_int_equal(blk_open(loop, path, &options, &second, &err), -EBUSY);
    blk_close(reader);
    blk_close(other);
}

static void a_guest_can_not_forge_a_format(void **state)
{
    uint8_t sector[512] = {'Q', 'F', 'I', 0xfb};
    struct blk_node *node = open_raw(BLK_CACHE_WRITEBACK, BLK_OPEN_RDWR, NULL);
    assert_int_equal(blk_pwrite(node, 0, sector, sizeof(sector)), -EPERM);
    assert_int_equal(blk_pwrite(node, 1, sector + 1, 3), -EPERM);
    assert_int_equal(blk_pwrite(node, 512, sector, sizeof(sector)), 0);
    blk_close(node);
    node = open_raw(BLK_CACHE_WRITEBACK, BLK_OPEN_RDWR, "raw");
    assert_int_equal(blk_pwrite(node, 0, sector, sizeof(sector)), 0);
    blk_close(node);
}

static void throttled_requests_pass(void **state)
{
    struct blk_open_options options = {.format = "raw",
                                       .throttle = {.iops = 1000000, .bytes_per_s = 1 << 30}};
    struct blk_node *node = NULL;
    uint8_t buf[512];
    struct blk_stats stats;
    assert_int_equal(blk_open(loop, path, &options, &node, NULL), 0);
    assert_int_equal(blk_pread(node, 0, buf, sizeof(buf)), 0);
    blk_get_stats(node, &stats);
    assert_int_equal(stats.ops[BLK_READ], 1);
    assert_int_equal(stats.read_bytes, sizeof(buf));
    blk_close(node);
}

static void add_one(void *arg)
{
    ++*(int *)arg;
}

static void posts_run_on_the_loop(void **state)
{
    int count = 0;
    assert_int_equal(blk_loop_post(loop, add_one, &count), 0);
    assert_int_equal(count, 0);
    while (!count) {
        blk_loop_poll(loop, 1000);
    }
    assert_int_equal(count, 1);
}

static void a_full_host_stops_the_machine(void **state)
{
    assert_int_equal(blk_error_action(BLK_ON_ERROR_ENOSPC, BLK_WRITE, -ENOSPC), BLK_ACTION_STOP);
    assert_int_equal(blk_error_action(BLK_ON_ERROR_ENOSPC, BLK_FLUSH, -EDQUOT), BLK_ACTION_STOP);
    assert_int_equal(blk_error_action(BLK_ON_ERROR_ENOSPC, BLK_WRITE, -EIO), BLK_ACTION_REPORT);
    assert_int_equal(blk_error_action(BLK_ON_ERROR_STOP, BLK_READ, -EIO), BLK_ACTION_STOP);
    assert_int_equal(blk_error_action(BLK_ON_ERROR_REPORT, BLK_WRITE, -ENOSPC), BLK_ACTION_REPORT);
    assert_int_equal(blk_error_action(BLK_ON_ERROR_IGNORE, BLK_FLUSH, -EIO), BLK_ACTION_IGNORE);
    struct blk_node *node = open_raw(BLK_CACHE_WRITEBACK, 0, "raw");
    char text[256];
    blk_error_text(node, BLK_WRITE, -ENOSPC, text, sizeof(text));
    assert_non_null(strstr(text, "no space left on the host for image"));
    blk_close(node);
}

/* Past the page cache a flush that finds no room works once there is some; through it, the data may be gone.
 */
static void a_flush_without_room(void **state)
{
    static const struct {
        enum blk_cache cache;
        int error, later;
    } cases[] = {
        {BLK_CACHE_NONE, ENOSPC, 0},      {BLK_CACHE_NONE, EDQUOT, 0},         {BLK_CACHE_NONE, EIO, -EIO},
        {BLK_CACHE_WRITEBACK, EIO, -EIO}, {BLK_CACHE_WRITEBACK, ENOSPC, -EIO},
    };
    if (engine != BLK_ENGINE_THREADS) {
        skip(); /* io_uring does not call fdatasync() */
    }
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct blk_node *node = open_raw(cases[i].cache, BLK_OPEN_RDWR, "raw");
        assert_non_null(node);
        assert_int_equal(blk_flush(node), 0);
        flush_error = cases[i].error;
        assert_int_equal(blk_flush(node), -cases[i].error);
        flush_error = 0;
        assert_int_equal(blk_flush(node), cases[i].later);
        blk_close(node);
    }
}

static void engines_are_chosen_and_forced(void **state)
{
    struct blk_loop *other;
    assert_int_equal(blk_loop_new(BLK_ENGINE_THREADS, &other, NULL), 0);
    assert_string_equal(blk_loop_engine_name(other), "threads");
    blk_loop_free(other);
    setenv("FONDA_BLOCK_ENGINE", "threads", 1);
    assert_int_equal(blk_loop_new(BLK_ENGINE_AUTO, &other, NULL), 0);
    assert_string_equal(blk_loop_engine_name(other), "threads");
    blk_loop_free(other);
    setenv("FONDA_BLOCK_ENGINE", "punched cards", 1);
    assert_int_equal(blk_loop_new(BLK_ENGINE_AUTO, &other, NULL), -EINVAL);
    unsetenv("FONDA_BLOCK_ENGINE");
}

#define CASE(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(done_runs_from_poll_only),
        CASE(bad_requests_fail),
        CASE(any_alignment_in_every_cache_mode),
        CASE(two_writers_never),
        CASE(a_guest_can_not_forge_a_format),
        CASE(throttled_requests_pass),
        CASE(posts_run_on_the_loop),
        CASE(a_full_host_stops_the_machine),
        CASE(a_flush_without_room),
        CASE(engines_are_chosen_and_forced),
    };
    engine = BLK_ENGINE_THREADS;
    int failed = cmocka_run_group_tests_name("threads", tests, NULL, NULL);
    engine = BLK_ENGINE_AUTO; /* io_uring, where the host has it */
    return failed + cmocka_run_group_tests_name("auto", tests, NULL, NULL);
}
