/* mem/mem.c: RAM segments, region tables, access splitting, the write hook, refusal of impossible sizes. */
#include "base/util.h"
#include "mem/mem.h"
#include "tests/unit/unit.h"

#include <errno.h>
#include <string.h>

struct chip {
    uint64_t offset;
    unsigned size;
    uint64_t value;
    unsigned reads;
    unsigned writes;
    uint8_t bytes[16];
};

static uint64_t chip_read(void *opaque, uint64_t offset, unsigned size)
{
    struct chip *chip = opaque;
    uint64_t value = UINT64_MAX; /* what a register lacks in width has to be masked by mem */
    memcpy(&value, &chip->bytes[offset], size);
    chip->offset = offset;
    chip->size = size;
    chip->reads++;
    return value;
}

static void chip_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct chip *chip = opaque;
    memcpy(&chip->bytes[offset], &value, size);
    chip->offset = offset;
    chip->size = size;
    chip->value = value;
    chip->writes++;
}

static const struct mem_io_ops chip_ops = {chip_read, chip_write};

static void test_ram(void **state)
{
    struct mem *mem;
    assert_int_equal(mem_new(2 * MiB, &mem, NULL), 0);
    assert_int_equal(mem_ram_bytes(mem), 2 * MiB);
    assert_int_equal(mem_ram_low_bytes(mem), 2 * MiB);
    assert_true(mem_ram_fd(mem) >= 0);
    uint64_t avail = 0;
    assert_ptr_equal(mem_ram_ptr(mem, GPA(0x1000), &avail), mem_ram_base(mem) + 0x1000);
    assert_int_equal(avail, 2 * MiB - 0x1000);
    assert_null(mem_ram_ptr(mem, GPA(2 * MiB), NULL));
    assert_null(mem_ram_ptr(mem, GPA(MEM_HIGH_RAM), NULL));
    assert_null(mem_ram_ptr(mem, GPA(UINT64_MAX), NULL));
    assert_true(mem_ram_offset(mem, GPA(2 * MiB)) == UINT64_MAX);

    uint32_t word = 0x11223344;
    assert_int_equal(mem_write(mem, GPA(2 * MiB - 4), &word, 4), 0);
    assert_int_equal(mem_write(mem, GPA(2 * MiB - 3), &word, 4), -EFAULT);
    assert_int_equal(mem_read(mem, GPA(UINT64_MAX), &word, 4), -EFAULT);
    assert_int_equal(mem_read(mem, GPA(0x1000), &word, UINT64_MAX), -EFAULT);
    assert_int_equal(mem_read(mem, GPA(2 * MiB - 4), &word, 4), 0);
    assert_int_equal(word, 0x11223344);
    mem_free(mem);
}

static void test_high_ram(void **state)
{
    struct mem *mem;
    struct err err = {0};
    int ret = mem_new(3 * GiB + 2 * MiB, &mem, &err);
    if (ret == -ENOMEM) {
        assert_non_null(strstr(err.text, "the host has"));
        skip(); /* a small host */
    }
    assert_int_equal(ret, 0);
    assert_int_equal(mem_ram_low_bytes(mem), 3 * GiB);
    assert_null(mem_ram_ptr(mem, GPA(3 * GiB), NULL));
    assert_null(mem_ram_ptr(mem, GPA(MEM_HIGH_RAM - 1), NULL));
    assert_ptr_equal(mem_ram_ptr(mem, GPA(MEM_HIGH_RAM + 5), NULL), mem_ram_base(mem) + 3 * GiB + 5);
    assert_int_equal(mem_ram_offset(mem, GPA(MEM_HIGH_RAM + 5)), 3 * GiB + 5);
    assert_int_equal(mem_ram_gpa(mem, 3 * GiB + 5).v, MEM_HIGH_RAM + 5);
    assert_int_equal(mem_ram_gpa(mem, 3 * GiB - 1).v, 3 * GiB - 1);
    assert_null(mem_ram_ptr(mem, GPA(MEM_HIGH_RAM + 2 * MiB), NULL));
    char buf[8];
    assert_int_equal(mem_read(mem, GPA(3 * GiB - 4), buf, 8), -EFAULT);
    struct chip chip = {0};
    assert_int_equal(mem_add_mmio(mem, GPA(MEM_HIGH_RAM + MiB), 16, &chip_ops, &chip, "x", NULL), -EEXIST);
    mem_free(mem);
}

static void test_refused(void **state)
{
    struct mem *mem;
    struct err err = {0};
    assert_int_equal(mem_new(900000 * GiB, &mem, &err), -ENOMEM);
    assert_non_null(strstr(err.text, "machine needs 900000 GiB of memory, the host has "));
    assert_int_equal(mem_new(UINT64_MAX & ~0xfffull, &mem, &err), -ENOMEM);
    assert_int_equal(mem_new(0, &mem, &err), -EINVAL);
    assert_int_equal(mem_new(4097, &mem, &err), -EINVAL);
    mem_free(NULL);
}

static void test_mmio(void **state)
{
    struct mem *mem;
    struct err err = {0};
    struct chip chip[3] = {0};
    struct mem_counters counters;
    assert_int_equal(mem_new(MiB, &mem, NULL), 0);
    assert_int_equal(mem_add_mmio(mem, GPA(0xfee00000), 16, &chip_ops, &chip[0], "b", &err), 0);
    assert_int_equal(mem_add_mmio(mem, GPA(0xfec00000), 16, &chip_ops, &chip[1], "a", &err), 0);
    assert_int_equal(mem_add_mmio(mem, GPA(0xfee00010), 6, &chip_ops, &chip[2], "c", &err), 0);
    assert_int_equal(mem_add_mmio(mem, GPA(0xfee0000f), 1, &chip_ops, &chip[2], "d", &err), -EEXIST);
    assert_non_null(strstr(err.text, "region 'd' at 0xfee0000f overlaps region 'b'"));
    assert_int_equal(mem_add_mmio(mem, GPA(MiB - 1), 2, &chip_ops, &chip[2], "d", &err), -EEXIST);
    assert_int_equal(mem_add_mmio(mem, GPA(UINT64_MAX), 2, &chip_ops, &chip[2], "d", &err), -EINVAL);
    assert_int_equal(mem_add_mmio(mem, GPA(0xfe000000), 0, &chip_ops, &chip[2], "d", &err), -EINVAL);

    mem_mmio_write(mem, GPA(0xfee00004), 4, 0xffffffff12345678ull);
    assert_int_equal(chip[0].value, 0x12345678);
    assert_int_equal(chip[0].offset, 4);
    assert_int_equal(mem_mmio_read(mem, GPA(0xfee00004), 4), 0x12345678);
    assert_int_equal(mem_mmio_read(mem, GPA(0xfee00004), 2), 0x5678);
    mem_mmio_write(mem, GPA(0xfec00008), 8, 0x0102030405060708ull);
    assert_int_equal(chip[1].writes, 1);
    assert_true(mem_mmio_read(mem, GPA(0xfec00008), 8) == 0x0102030405060708ull);

    /* across the border of two regions, past an end, of odd size */
    mem_mmio_write(mem, GPA(0xfee0000e), 4, 0xa1b2c3d4);
    assert_int_equal(chip[0].bytes[14], 0xd4);
    assert_int_equal(chip[0].bytes[15], 0xc3);
    assert_int_equal(chip[2].bytes[0], 0xb2);
    assert_int_equal(chip[2].bytes[1], 0xa1);
    assert_int_equal(mem_mmio_read(mem, GPA(0xfee0000e), 4), 0xa1b2c3d4);
    assert_int_equal(mem_mmio_read(mem, GPA(0xfee00014), 4), 0xffff0000);
    assert_int_equal(mem_mmio_read(mem, GPA(0xfee0000e), 3), 0xb2c3d4);
    assert_int_equal(mem_mmio_read(mem, GPA(0xfebffffe), 4), 0x0000ffff);

    /* RAM, and the border between RAM and nothing */
    mem_mmio_write(mem, GPA(0x100), 8, 0x1122334455667788ull);
    assert_true(mem_mmio_read(mem, GPA(0x100), 8) == 0x1122334455667788ull);
    mem_mmio_write(mem, GPA(MiB - 2), 4, 0xdeadbeef);
    assert_int_equal(mem_mmio_read(mem, GPA(MiB - 2), 4), 0xffffbeef);

    mem_get_counters(mem, &counters);
    uint64_t unclaimed = counters.unclaimed;
    assert_int_equal(mem_mmio_read(mem, GPA(0xd0000000), 4), 0xffffffff);
    assert_true(mem_mmio_read(mem, GPA(UINT64_MAX - 3), 8) != 0);
    mem_mmio_write(mem, GPA(0xd0000000), 4, 1);
    mem_get_counters(mem, &counters);
    assert_int_equal(counters.unclaimed, unclaimed + 3);
    mem_free(mem);
}

static void test_pio(void **state)
{
    struct mem *mem;
    struct chip chip[2] = {0};
    struct mem_counters counters;
    assert_int_equal(mem_new(MiB, &mem, NULL), 0);
    assert_int_equal(mem_add_pio(mem, 0x60, 1, &chip_ops, &chip[0], "kbd", NULL), 0);
    assert_int_equal(mem_add_pio(mem, 0x61, 1, &chip_ops, &chip[1], "gate", NULL), 0);
    assert_int_equal(mem_add_pio(mem, 0x5f, 2, &chip_ops, &chip[1], "x", NULL), -EEXIST);
    assert_int_equal(mem_add_pio(mem, 0xfff0, 17, &chip_ops, &chip[1], "x", NULL), -EINVAL);
    assert_int_equal(mem_add_pio(mem, 0xfff0, 0, &chip_ops, &chip[1], "x", NULL), -EINVAL);
    assert_int_equal(mem_add_pio(mem, 0xffff, 1, &chip_ops, &chip[1], "end", NULL), 0);
    mem_pio_write(mem, 0x60, 1, 0x1234);
    assert_int_equal(chip[0].value, 0x34);
    mem_pio_write(mem, 0x60, 2, 0xabcd);
    assert_int_equal(chip[0].bytes[0], 0xcd);
    assert_int_equal(chip[1].bytes[0], 0xab);
    assert_int_equal(mem_pio_read(mem, 0x60, 4), 0xffffabcd);
    chip[1].bytes[0] = 7;
    assert_int_equal(mem_pio_read(mem, 0xffff, 4), 0xffffff07);
    assert_int_equal(mem_pio_read(mem, 0x80, 1), 0xff);
    assert_int_equal(mem_pio_read(mem, 0x80, 4), 0xffffffff);
    mem_pio_write(mem, 0x80, 4, 0);
    mem_get_counters(mem, &counters);
    assert_int_equal(counters.pio_writes, 3);
    assert_int_equal(counters.pio_reads, 4);
    assert_int_equal(counters.unclaimed, 5);
    mem_free(mem);
}

struct hook_log {
    uint64_t offset;
    uint64_t len;
    unsigned calls;
};

static void hook(void *opaque, uint64_t ram_offset, uint64_t len)
{
    struct hook_log *log = opaque;
    log->offset = ram_offset;
    log->len = len;
    log->calls++;
}

static void test_hook(void **state)
{
    struct mem *mem;
    struct hook_log log = {0};
    assert_int_equal(mem_new(MiB, &mem, NULL), 0);
    mem_set_write_hook(mem, hook, &log);
    char buf[100] = {0};
    mem_write(mem, GPA(0x2345), buf, sizeof(buf));
    assert_int_equal(log.offset, 0x2345);
    assert_int_equal(log.len, 100);
    mem_mmio_write(mem, GPA(0x10), 4, 1);
    assert_int_equal(log.offset, 0x10);
    assert_int_equal(log.calls, 2);
    mem_read(mem, GPA(0x10), buf, 4);
    mem_write(mem, GPA(MiB), buf, 4);
    assert_int_equal(log.calls, 2);
    mem_free(mem);
}

static void test_table_full(void **state)
{
    struct mem *mem;
    static struct chip chip;
    struct err err = {0};
    assert_int_equal(mem_new(MiB, &mem, NULL), 0);
    for (unsigned i = 0; i < MEM_REGIONS_MAX; i++) {
        /* from the top down, so that each insertion moves the rest */
        uint64_t base = 0xf0000000ull + (uint64_t)(MEM_REGIONS_MAX - i) * 0x1000;
        assert_int_equal(mem_add_mmio(mem, GPA(base), 16, &chip_ops, &chip, "r", &err), 0);
        assert_int_equal(mem_add_pio(mem, (uint16_t)(0x1000 + i), 1, &chip_ops, &chip, "r", &err), 0);
    }
    assert_int_equal(mem_add_mmio(mem, GPA(0xe0000000), 16, &chip_ops, &chip, "r", &err), -ENOSPC);
    assert_int_equal(mem_add_pio(mem, 0x10, 1, &chip_ops, &chip, "r", &err), -ENOSPC);
    uint64_t rng = unit_seed();
    for (unsigned i = 0; i < 10000; i++) {
        uint64_t at = 0xf0000000ull + unit_random(&rng) % ((MEM_REGIONS_MAX + 2) * 0x1000);
        bool inside = at >= 0xf0001000 && at < 0xf0001000 + MEM_REGIONS_MAX * 0x1000ull && (at & 0xfff) < 16;
        assert_int_equal(mem_mmio_read(mem, GPA(at), 1), inside ? 0 : 0xff);
    }
    mem_free(mem);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ram),        cmocka_unit_test(test_high_ram), cmocka_unit_test(test_refused),
        cmocka_unit_test(test_mmio),       cmocka_unit_test(test_pio),      cmocka_unit_test(test_hook),
        cmocka_unit_test(test_table_full),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
