/* dev/legacy/i8254.c: modes, latches, read-back, BCD, channel 2 through port 0x61 as Linux calibrates with
 * it. */
#include "dev/legacy/i8254.h"
#include "tests/unit/rig.h"

static struct rig rig;
static struct i8254 *pit;

static int setup(void **state)
{
    rig_open(&rig);
    struct i8254_config config = {.mem = rig.mem, .clock = rig.clock, .irq = rig_line(&rig, 0)};
    pit = i8254_new(&config, NULL);
    assert_non_null(pit);
    return 0;
}

static int teardown(void **state)
{
    rig_close(&rig, i8254_device(pit));
    return 0;
}

/* Moves on by clock ticks of the PIT since the last call with 0, without rounding drift. */
static void run_ticks(uint64_t ticks)
{
    uint64_t now_ns = clock_now_ns(rig.clock);
    uint64_t at = (uint64_t)((unsigned __int128)now_ns * I8254_HZ / 1000000000);
    uint64_t to_ns = (uint64_t)(((unsigned __int128)(at + ticks) * 1000000000 + I8254_HZ - 1) / I8254_HZ);
    clock_advance(rig.clock, to_ns - now_ns);
}

static unsigned read_latched(unsigned channel)
{
    out8(&rig, 0x43, channel << 6);
    unsigned low = in8(&rig, (uint16_t)(0x40 + channel));
    return low | (unsigned)in8(&rig, (uint16_t)(0x40 + channel)) << 8;
}

static void load(unsigned channel, unsigned control, unsigned count)
{
    out8(&rig, 0x43, channel << 6 | control);
    out8(&rig, (uint16_t)(0x40 + channel), count & 0xff);
    out8(&rig, (uint16_t)(0x40 + channel), count >> 8);
}

static void test_rate(void **state)
{
    load(0, 0x34, 11932); /* mode 2, 100 Hz */
    assert_int_equal(read_latched(0), 11932);
    clock_advance(rig.clock, 1000000000);
    assert_in_range(rig.rises[0], 99, 100);
    assert_false(rig.level[0]);
    load(0, 0x36, 0); /* mode 3, 18.2 Hz */
    rig.rises[0] = 0;
    clock_advance(rig.clock, 10000000000);
    assert_int_equal(rig.rises[0], 182);
    i8254_set_replaced(pit, true);
    clock_advance(rig.clock, 1000000000);
    assert_int_equal(rig.rises[0], 182);
}

static void test_one_shot(void **state)
{
    load(0, 0x30, 1000); /* mode 0 */
    clock_advance(rig.clock, 830000);
    assert_int_equal(rig.rises[0], 0);
    clock_advance(rig.clock, 10000);
    assert_int_equal(rig.rises[0], 1);
    clock_advance(rig.clock, 1000000000);
    assert_int_equal(rig.rises[0], 1);
    out8(&rig, 0x40, 0xff); /* the first byte stops it */
    clock_advance(rig.clock, 1000000000);
    assert_int_equal(rig.rises[0], 1);
    out8(&rig, 0x40, 0x00);
    clock_advance(rig.clock, 1000000);
    assert_int_equal(rig.rises[0], 2);
    load(0, 0x38, 1000); /* mode 4 */
    clock_advance(rig.clock, 1000000000);
    assert_int_equal(rig.rises[0], 3);
    out8(&rig, 0x43, 0x30); /* as Linux shuts the PIT down */
    out8(&rig, 0x40, 0);
    out8(&rig, 0x40, 0);
    clock_advance(rig.clock, 54000000);
    assert_int_equal(rig.rises[0], 3);
}

static void test_calibrate(void **state)
{
    /* Linux pit_calibrate_tsc(): gate on, speaker off, mode 0, wait for OUT2 */
    out8(&rig, 0x61, (in8(&rig, 0x61) & ~0x02u) | 0x01);
    load(2, 0x30, 59659); /* 50 ms */
    assert_int_equal(in8(&rig, 0x61) & 0x20, 0);
    clock_advance(rig.clock, 49990000);
    assert_int_equal(in8(&rig, 0x61) & 0x20, 0);
    clock_advance(rig.clock, 20000);
    assert_int_equal(in8(&rig, 0x61) & 0x20, 0x20);
    /* quick_pit_calibrate(): reads LSB, MSB on the run, MSB falls by one in 256 ticks */
    load(2, 0x30, 0xffff);
    in8(&rig, 0x42);
    assert_int_equal(in8(&rig, 0x42), 0xff);
    clock_advance(rig.clock, 214600); /* 256 ticks are 214.55 us */
    in8(&rig, 0x42);
    assert_int_equal(in8(&rig, 0x42), 0xfe);
    /* the refresh bit toggles */
    unsigned changes = 0;
    unsigned before = in8(&rig, 0x61) & 0x10;
    for (unsigned i = 0; i < 100; i++) {
        clock_advance(rig.clock, 1000);
        unsigned now = in8(&rig, 0x61) & 0x10;
        changes += now != before;
        before = now;
    }
    assert_in_range(changes, 6, 7);
}

static void test_gate(void **state)
{
    out8(&rig, 0x61, 0); /* gate off: nothing counts */
    load(2, 0x30, 1000);
    clock_advance(rig.clock, 10000000);
    assert_int_equal(read_latched(2), 1000);
    out8(&rig, 0x61, 1);
    run_ticks(400);
    unsigned counter = read_latched(2);
    assert_in_range(counter, 599, 601);
    out8(&rig, 0x61, 0);
    clock_advance(rig.clock, 10000000);
    assert_in_range(read_latched(2), counter - 1, counter + 1);
    out8(&rig, 0x61, 1);
    run_ticks(605);
    assert_int_equal(in8(&rig, 0x61) & 0x20, 0x20);
    /* mode 1: each rising gate triggers */
    load(2, 0x32, 100);
    assert_int_equal(in8(&rig, 0x61) & 0x20, 0x20);
    out8(&rig, 0x61, 0);
    out8(&rig, 0x61, 1);
    assert_int_equal(in8(&rig, 0x61) & 0x20, 0);
    run_ticks(101);
    assert_int_equal(in8(&rig, 0x61) & 0x20, 0x20);
    /* mode 2 starts over with the gate */
    load(2, 0x34, 1000);
    run_ticks(300);
    out8(&rig, 0x61, 0);
    out8(&rig, 0x61, 1);
    assert_int_equal(read_latched(2), 1000);
}

static void test_square(void **state)
{
    out8(&rig, 0x61, 1);
    load(2, 0x36, 100);
    assert_int_equal(in8(&rig, 0x61) & 0x20, 0x20);
    run_ticks(10);
    assert_in_range(read_latched(2), 78, 82); /* counts down by two */
    run_ticks(42);
    assert_int_equal(in8(&rig, 0x61) & 0x20, 0);
    run_ticks(50);
    assert_int_equal(in8(&rig, 0x61) & 0x20, 0x20);
}

static void test_latch(void **state)
{
    load(0, 0x34, 50000);
    out8(&rig, 0x43, 0x00);
    run_ticks(1000);
    out8(&rig, 0x43, 0x00); /* a second latch before the read changes nothing */
    unsigned low = in8(&rig, 0x40);
    assert_int_equal(low | (unsigned)in8(&rig, 0x40) << 8, 50000);
    assert_in_range(read_latched(0), 48999, 49001);
    /* read-back: status first, then the count */
    out8(&rig, 0x43, 0xc2);
    assert_int_equal(in8(&rig, 0x40), 0xb4);
    low = in8(&rig, 0x40);
    assert_in_range(low | (unsigned)in8(&rig, 0x40) << 8, 48998, 49001);
    out8(&rig, 0x43, 0x30);
    out8(&rig, 0x43, 0xe2); /* status: no count was written, output low */
    assert_int_equal(in8(&rig, 0x40), 0x70);
    assert_int_equal(in8(&rig, 0x43), 0xff);
    /* one byte only */
    out8(&rig, 0x43, 0x14);
    out8(&rig, 0x40, 0x80);
    assert_int_equal(in8(&rig, 0x40), 0x80);
    assert_int_equal(in8(&rig, 0x40), 0x80);
    out8(&rig, 0x43, 0x24);
    out8(&rig, 0x40, 0x12);
    assert_int_equal(in8(&rig, 0x40), 0x12);
}

static void test_bcd(void **state)
{
    load(0, 0x31, 0x1234);
    assert_int_equal(read_latched(0), 0x1234);
    run_ticks(235);
    assert_in_range(read_latched(0), 0x0998, 0x1000);
    load(0, 0x35, 0); /* 10,000 */
    rig.rises[0] = 0;
    clock_advance(rig.clock, 1000000000);
    assert_int_equal(rig.rises[0], 119);
}

static void test_bounded(void **state)
{
    out8(&rig, 0x43, 0x14);
    out8(&rig, 0x40, 1);
    clock_advance(rig.clock, 1000000000);
    assert_in_range(rig.rises[0], 1000, 60000);
}

static void test_hammer(void **state)
{
    static const uint16_t ports[] = {0x40, 0x61};
    static const uint16_t counts[] = {4, 1};
    rig_hammer_ports(&rig, ports, counts, 2);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {T(test_rate), T(test_one_shot), T(test_calibrate),
                                       T(test_gate), T(test_square),   T(test_latch),
                                       T(test_bcd),  T(test_bounded),  T(test_hammer)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
