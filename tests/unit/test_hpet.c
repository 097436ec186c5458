/* dev/legacy/hpet.c: counter, one-shot and periodic comparators of both widths, levels, legacy replacement.
 */
#include "dev/legacy/hpet.h"

#include "base/clock.h"
#include "tests/unit/rig.h"

#define BASE HPET_DEFAULT_BASE
#define PIN  20u

static struct rig rig;
static struct hpet *hpet;
static bool replaced;

static void on_legacy(void *opaque, bool on)
{
    replaced = on;
}

static int setup(void **state)
{
    rig_open(&rig);
    replaced = false;
    struct hpet_config config = {.mem = rig.mem,
                                 .clock = rig.clock,
                                 .base = BASE,
                                 .route_mask = 0x00f00000,
                                 .pins = rig_line(&rig, 0),
                                 .legacy_irq0 = rig_line(&rig, 0),
                                 .legacy_irq8 = rig_line(&rig, 8),
                                 .legacy = on_legacy};
    hpet = hpet_new(&config, NULL);
    assert_non_null(hpet);
    return 0;
}

static int teardown(void **state)
{
    rig_close(&rig, hpet_device(hpet));
    return 0;
}

static uint64_t rd(unsigned reg)
{
    return mmio(&rig, BASE + reg, 8);
}

static void wr(unsigned reg, uint64_t value)
{
    mmio_out(&rig, BASE + reg, 8, value);
}

static void wr32(unsigned reg, uint32_t value)
{
    mmio_out(&rig, BASE + reg, 4, value);
}

static void test_registers(void **state)
{
    assert_true(rd(0) == 0x009896808086a201ull); /* 10 ns, 64 bits, 3 timers, legacy capable */
    assert_int_equal(mmio(&rig, BASE + 4, 4), 10000000);
    wr(0, 0);
    assert_int_equal(mmio(&rig, BASE, 4), HPET_ID);
    assert_true(rd(0x100) == 0x00f0000000000030ull);
    wr(0x100, UINT64_MAX);
    assert_true(rd(0x100) == 0x00f0000000003f7eull); /* no FSB, capabilities stay */
    wr(0x100, 0);
    wr(0x110, UINT64_MAX);
    assert_int_equal(rd(0x110), 0);
    wr(0x3f8, 1);
    assert_int_equal(rd(0x3f8), 0);
}

static void test_counter(void **state)
{
    clock_advance(rig.clock, 1000000);
    assert_int_equal(rd(0xf0), 0);
    wr(0x10, 1);
    clock_advance(rig.clock, 1000000);
    assert_int_equal(rd(0xf0), 100000);
    wr(0xf0, 5); /* not while it runs */
    assert_int_equal(rd(0xf0), 100000);
    wr(0x10, 0);
    clock_advance(rig.clock, 1000000);
    assert_int_equal(rd(0xf0), 100000);
    wr(0xf0, 0xfffffffff0ull);
    wr(0x10, 1);
    clock_advance(rig.clock, 320);
    assert_true(rd(0xf0) == 0x10000000010ull);
    assert_int_equal(mmio(&rig, BASE + 0xf4, 4), 0x100);
}

static void test_one_shot(void **state)
{
    wr(0x10, 1);
    wr(0x100, 4 | PIN << 9);
    wr(0x108, rd(0xf0) + 100000);
    clock_advance(rig.clock, 999999);
    assert_int_equal(rig.rises[PIN], 0);
    clock_advance(rig.clock, 1);
    assert_int_equal(rig.rises[PIN], 1);
    assert_false(rig.level[PIN]);
    clock_advance(rig.clock, 100000000);
    assert_int_equal(rig.rises[PIN], 1);
    wr(0x108, rd(0xf0) + 100000);
    wr(0x100, PIN << 9); /* disabled */
    clock_advance(rig.clock, 2000000);
    assert_int_equal(rig.rises[PIN], 1);
    wr(0x100, 4 | 3u << 9); /* not a pin of ours */
    wr(0x108, rd(0xf0) + 100000);
    clock_advance(rig.clock, 2000000);
    /* 32 bits: wraps and matches again */
    wr(0x10, 0);
    wr(0xf0, 0xffffff00);
    wr(0x100, 0x104 | PIN << 9);
    wr(0x108, 0x100);
    wr(0x10, 1);
    clock_advance(rig.clock, 0x200 * 10);
    assert_int_equal(rig.rises[PIN], 2);
    clock_advance(rig.clock, 0x100000000ull * 10);
    assert_int_equal(rig.rises[PIN], 3);
}

static void test_periodic_linux(void **state)
{
    /* hpet_clkevt_set_state_periodic(): 32-bit writes, comparator, then period */
    wr32(0x10, 0);
    wr32(0x100, 0x4 | 0x8 | 0x40 | 0x100);
    wr32(0x108, 100000);
    wr32(0x108, 100000);
    wr32(0x10, 3);
    assert_true(replaced);
    clock_advance(rig.clock, 10000000);
    assert_int_equal(rig.rises[0], 10);
    wr32(0x10, 1); /* no replacement: routed to pin 0, which it can't */
    assert_false(replaced);
    clock_advance(rig.clock, 10000000);
    assert_int_equal(rig.rises[0], 10);
}

/* Linux leaves its tick's comparator running with the interrupt off: the host's timers must not wake for it.
 */
static void test_silent_periodic(void **state)
{
    wr32(0x10, 0);
    wr32(0x100, 0x8 | 0x40 | 0x100);
    wr32(0x108, 100000);
    wr32(0x108, 100000);
    wr32(0x10, 3);
    assert_true(clock_next_deadline(rig.clock) == CLOCK_NEVER);
    clock_advance(rig.clock, 10500000);
    assert_int_equal(rig.rises[0], 0);
    assert_int_equal(rd(0x108), 1100000); /* moved on by itself */
    wr32(0x100, 0x4 | 0x8 | 0x100);
    assert_true(clock_next_deadline(rig.clock) == 11000000); /* on its grid */
    clock_advance(rig.clock, 1000000);
    assert_int_equal(rig.rises[0], 1);
    wr32(0x100, 0x8 | 0x100);
    assert_true(clock_next_deadline(rig.clock) == CLOCK_NEVER);
}

static void test_periodic_64(void **state)
{
    wr(0x10, 1);
    wr(0x120, 0x4 | 0x8 | 0x40 | PIN << 9);
    wr(0x128, 1000000);
    wr(0x128, 100000);
    clock_advance(rig.clock, 9999999);
    assert_int_equal(rig.rises[PIN], 0);
    clock_advance(rig.clock, 3000001);
    assert_int_equal(rig.rises[PIN], 4);
    wr(0x128, 1); /* drowns nobody */
    unsigned rises = rig.rises[PIN];
    clock_advance(rig.clock, 100000000);
    assert_in_range(rig.rises[PIN] - rises, 10, 6000);
}

static void test_level(void **state)
{
    wr(0x10, 1);
    wr(0x140, 0x6 | PIN << 9);
    wr(0x148, 1000);
    clock_advance(rig.clock, 10000);
    assert_true(rig.level[PIN]);
    assert_int_equal(rd(0x20), 4);
    wr(0x20, 3);
    assert_true(rig.level[PIN]);
    wr(0x20, 4);
    assert_false(rig.level[PIN]);
    assert_int_equal(rd(0x20), 0);
    wr(0x148, 3000);
    clock_advance(rig.clock, 100000);
    assert_true(rig.level[PIN]);
    wr(0x140, 0); /* switching it off lets go of the line */
    assert_false(rig.level[PIN]);
}

static void test_legacy(void **state)
{
    wr(0x120, 0x4);
    wr(0x128, 1000);
    wr(0x10, 3);
    clock_advance(rig.clock, 10000);
    assert_int_equal(rig.rises[8], 1);
    struct device *dev = hpet_device(hpet);
    dev->ops->reset(dev);
    assert_false(replaced);
}

static void test_hammer(void **state)
{
    rig_hammer_mmio(&rig, BASE, 0x180);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {T(test_registers),       T(test_counter),     T(test_one_shot),
                                       T(test_periodic_linux),  T(test_periodic_64), T(test_level),
                                       T(test_silent_periodic), T(test_legacy),      T(test_hammer)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
