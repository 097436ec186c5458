/* dev/virtio/blk: requests, errors, discard, read-only, resets with requests in flight, hostile rings. */
#include <errno.h>

#include "dev/virtio/blk.h"
#include "tests/unit/vdrv.h"

#define DISK_BYTES (64 * KiB)
#define S_OK       0
#define S_IOERR    1
#define S_UNSUPP   2
#define HEADER     VDRV_DATA
#define STATUS     (VDRV_DATA + 64)
#define BUFFER     (VDRV_DATA + 4096)

static struct vdrv drv;
static uint8_t bytes[DISK_BYTES];
static bool hold; /* completions wait for drain */
static int fail;
static unsigned flushes, discards, zeroes, freed;
static struct vblk_io *held;

static void complete(struct vblk_io *io)
{
    uint64_t at = io->offset;
    io->result = fail;
    for (unsigned i = 0; i < io->iov_count && !fail; i++) {
        if (io->op == VBLK_READ) {
            memcpy(io->iov[i].iov_base, bytes + at, io->iov[i].iov_len);
        } else {
            memcpy(bytes + at, io->iov[i].iov_base, io->iov[i].iov_len);
        }
        at += io->iov[i].iov_len;
    }
    flushes += io->op == VBLK_FLUSH;
    discards += io->op == VBLK_DISCARD;
    zeroes += io->op == VBLK_WRITE_ZEROES;
    io->done(io);
}

static void submit(struct vblk_backend *backend, struct vblk_io *io)
{
    assert_true(io->offset <= DISK_BYTES && io->bytes <= DISK_BYTES - io->offset);
    io->next = held;
    held = io;
}

static void drain(struct vblk_backend *backend)
{
    while (held) {
        struct vblk_io *io = held;
        held = io->next;
        complete(io);
    }
}

static void free_backend(struct vblk_backend *backend)
{
    assert_null(held);
    freed++;
}

static const struct vblk_backend_ops ops = {submit, drain, free_backend};
static struct vblk_backend backend;

static void run(unsigned queue)
{
    vdrv_kick(&drv, queue);
    while (!hold && held) {
        drain(&backend);
        vdrv_run(&drv);
    }
}

static void open_disk(bool read_only)
{
    hold = false;
    fail = 0;
    flushes = discards = zeroes = 0;
    backend = (struct vblk_backend){&ops, DISK_BYTES, 512, read_only, true};
    vdrv_open_bus(&drv);
    const struct vblk_config config = {
        .mem = drv.mem, .backend = &backend, .queues = 2, .serial = "a-serial-number-that-is-too-long"};
    vdrv_open(&drv, vblk_new(&config, NULL));
    vdrv_start(&drv, UINT64_MAX);
}

static int setup(void **state)
{
    open_disk(false);
    return 0;
}

static int setup_read_only(void **state)
{
    open_disk(true);
    return 0;
}

static int teardown(void **state)
{
    unsigned before = freed;
    vdrv_close(&drv);
    assert_int_equal(freed, before + 1);
    return 0;
}

static void add(unsigned queue, uint32_t type, uint64_t sector, uint32_t len, bool to_device)
{
    vdrv_put(&drv, HEADER, type, 8);
    vdrv_put(&drv, HEADER + 8, sector, 8);
    vdrv_put(&drv, STATUS, 0xee, 1);
    struct vdrv_buf bufs[3] = {{HEADER, 16, false}, {BUFFER, len, !to_device}, {STATUS, 1, true}};
    if (len == 0) {
        bufs[1] = bufs[2];
    }
    vdrv_add(&drv, queue, bufs, len ? 3 : 2);
}

static unsigned request(uint32_t type, uint64_t sector, uint32_t len, bool to_device, uint32_t *ret_used)
{
    uint32_t used = 0;
    add(0, type, sector, len, to_device);
    run(0);
    assert_true(vdrv_used(&drv, 0, &used));
    if (ret_used) {
        *ret_used = used;
    }
    return (unsigned)vdrv_get(&drv, STATUS, 1);
}

static void test_read_write(void **state)
{
    uint32_t used = 0;
    assert_int_equal(vdrv_in(&drv, C_SPACE, 8), DISK_BYTES / 512);
    assert_int_equal(vdrv_in(&drv, C_SPACE + 34, 2), 2); /* queues */
    vdrv_put(&drv, BUFFER + 1000, 0x1122334455667788, 8);
    assert_int_equal(request(1, 3, 2048, true, &used), S_OK);
    assert_int_equal(used, 1);
    assert_int_equal(bytes[3 * 512 + 1000], 0x88);
    vdrv_put(&drv, BUFFER + 1000, 0, 8);
    assert_int_equal(request(0, 3, 2048, false, &used), S_OK);
    assert_int_equal(used, 2049);
    assert_true(vdrv_get(&drv, BUFFER + 1000, 8) == 0x1122334455667788);
    assert_int_equal(request(4, 0, 0, false, NULL), S_OK);
    assert_int_equal(flushes, 1);
    assert_int_equal(request(8, 0, 20, false, &used), S_OK);
    char serial[21] = "";
    mem_read(drv.mem, GPA(BUFFER), serial, 20);
    assert_string_equal(serial, "a-serial-number-that");
    assert_int_equal(used, 21);
    assert_true(drv.msi_count[1] > 0);
}

static void test_bad_requests(void **state)
{
    assert_int_equal(request(0, DISK_BYTES / 512, 512, false, NULL), S_IOERR);
    assert_int_equal(request(0, DISK_BYTES / 512 - 1, 1024, false, NULL), S_IOERR);
    assert_int_equal(request(1, UINT64_MAX, 512, true, NULL), S_IOERR);
    assert_int_equal(request(1, UINT64_MAX / 512 + 2, 512, true, NULL), S_IOERR);
    assert_int_equal(request(0, 0, 100, false, NULL), S_IOERR);
    assert_int_equal(request(0, 0, 0, false, NULL), S_IOERR);
    assert_int_equal(request(99, 0, 512, false, NULL), S_UNSUPP);
    fail = -EIO;
    assert_int_equal(request(0, 0, 512, false, NULL), S_IOERR);
    assert_int_equal(request(4, 0, 0, false, NULL), S_IOERR);
    assert_false(vdrv_needs_reset(&drv));
}

static unsigned range(uint32_t type, uint64_t sector, uint32_t sectors, uint32_t flags, uint32_t len)
{
    vdrv_put(&drv, BUFFER, sector, 8);
    vdrv_put(&drv, BUFFER + 8, sectors, 4);
    vdrv_put(&drv, BUFFER + 12, flags, 4);
    return request(type, 0, len, true, NULL);
}

static void test_ranges(void **state)
{
    assert_int_equal(range(11, 8, 8, 0, 16), S_OK);
    assert_int_equal(range(13, 8, 8, 1, 16), S_OK);
    assert_int_equal(discards, 1);
    assert_int_equal(zeroes, 1);
    assert_int_equal(range(11, 8, 8, 1, 16), S_UNSUPP);
    assert_int_equal(range(13, 8, 8, 2, 16), S_UNSUPP);
    assert_int_equal(range(13, 8, 8, 0, 32), S_UNSUPP);
    assert_int_equal(range(11, DISK_BYTES / 512, 1, 0, 16), S_IOERR);
    assert_int_equal(range(11, 0, UINT32_MAX, 0, 16), S_IOERR);
}

static void test_read_only(void **state)
{
    assert_true(vdrv_offered(&drv) & BIT64(5));
    assert_int_equal(request(1, 0, 512, true, NULL), S_IOERR);
    assert_int_equal(range(13, 0, 1, 0, 16), S_UNSUPP);
    assert_int_equal(request(0, 0, 512, false, NULL), S_OK);
}

static void test_malformed(void **state)
{
    const struct vdrv_buf no_status = {HEADER, 16, false};
    vdrv_add(&drv, 0, &no_status, 1);
    vdrv_kick(&drv, 0);
    assert_true(vdrv_needs_reset(&drv));
    vdrv_start(&drv, UINT64_MAX);
    const struct vdrv_buf short_header[2] = {{HEADER, 15, false}, {STATUS, 1, true}};
    vdrv_add(&drv, 1, short_header, 2);
    vdrv_kick(&drv, 1);
    assert_true(vdrv_needs_reset(&drv));
    vdrv_start(&drv, UINT64_MAX);
    assert_int_equal(request(0, 0, 512, false, NULL), S_OK);
}

/* Status does not read as 0 before the backend has let go of guest memory, and old requests answer nobody. */
static void test_reset_in_flight(void **state)
{
    uint32_t used = 0;
    hold = true;
    add(0, 0, 0, 512, false);
    run(0);
    assert_non_null(held);
    vdrv_out(&drv, C_STATUS, 1, 0);
    vdrv_run(&drv);
    assert_int_not_equal(vdrv_in(&drv, C_STATUS, 1), 0);
    vdrv_out(&drv, C_STATUS, 1, 3); /* takes no orders */
    drain(&backend);
    assert_int_equal(vdrv_in(&drv, C_STATUS, 1), 0);
    hold = false;
    vdrv_start(&drv, UINT64_MAX);
    assert_false(vdrv_used(&drv, 0, &used));
    assert_int_equal(request(0, 0, 512, false, NULL), S_OK);
    hold = true; /* the machine's reset waits */
    add(1, 0, 0, 512, false);
    run(1);
    virtio_pci_device(drv.vp)->ops->reset(virtio_pci_device(drv.vp));
    assert_null(held);
}

static void test_resize(void **state)
{
    backend.size_bytes = DISK_BYTES / 2;
    vblk_resized(drv.dev);
    assert_int_equal(vdrv_in(&drv, C_SPACE, 8), DISK_BYTES / 1024);
    assert_int_equal(drv.msi_count[0], 1);
    assert_int_equal(request(0, DISK_BYTES / 1024, 512, false, NULL), S_IOERR);
}

static void test_hammer(void **state)
{
    for (unsigned i = 0; i < 5; i++) {
        vdrv_hammer(&drv, UINT64_MAX, 10);
        drain(&backend);
    }
}

static int hammer_teardown(void **state)
{
    drain(&backend);
    return teardown(state);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(test_read_write), T(test_bad_requests),
        T(test_ranges),     cmocka_unit_test_setup_teardown(test_read_only, setup_read_only, teardown),
        T(test_malformed),  T(test_reset_in_flight),
        T(test_resize),     cmocka_unit_test_setup_teardown(test_hammer, setup, hammer_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
