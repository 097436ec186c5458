/* dev/legacy/mc146818.c: time of day in all formats, update cycle, alarm, periodic interrupt, CMOS bytes. */
#include "dev/legacy/mc146818.h"
#include "tests/unit/rig.h"

#define LEAP_EVE 1709251195 /* 2024-02-29 23:59:55 UTC, a Thursday */

static struct rig rig;
static struct mc146818 *rtc;

static int setup(void **state)
{
    rig_open(&rig);
    struct mc146818_config config = {.mem = rig.mem,
                                     .clock = rig.clock,
                                     .irq = rig_line(&rig, 8),
                                     .utc_s = LEAP_EVE,
                                     .ram_low_bytes = 3 * GiB,
                                     .ram_high_bytes = GiB};
    rtc = mc146818_new(&config, NULL);
    assert_non_null(rtc);
    return 0;
}

static int teardown(void **state)
{
    out8(&rig, 0x70, 0xb);
    out8(&rig, 0x71, 2);
    rig_close(&rig, mc146818_device(rtc));
    return 0;
}

static uint8_t cmos(unsigned reg)
{
    out8(&rig, 0x70, reg);
    return in8(&rig, 0x71);
}

static void set_cmos(unsigned reg, unsigned value)
{
    out8(&rig, 0x70, reg);
    out8(&rig, 0x71, value);
}

static void check_time(const char *text)
{
    char have[40];
    snprintf(have, sizeof(have), "%02x%02x-%02x-%02x/%x %02x:%02x:%02x", cmos(0x32), cmos(9), cmos(8),
             cmos(7), cmos(6), cmos(4), cmos(2), cmos(0));
    assert_string_equal(have, text);
}

#define SECONDS(n) ((uint64_t)(n)*1000000000ull)

static void test_time(void **state)
{
    check_time("2024-02-29/5 23:59:55");
    clock_advance(rig.clock, SECONDS(5));
    check_time("2024-03-01/6 00:00:00");
    set_cmos(0xb, 6); /* binary */
    assert_int_equal(cmos(0x32), 20);
    assert_int_equal(cmos(9), 24);
    set_cmos(0xb, 0); /* 12 hours, BCD */
    assert_int_equal(cmos(4), 0x12);
    clock_advance(rig.clock, SECONDS(13 * 3600));
    assert_int_equal(cmos(4), 0x81);
    clock_advance(rig.clock, SECONDS(23 * 3600));
    assert_int_equal(cmos(4), 0x92);
    assert_int_equal(cmos(0xd), 0x80);
    assert_int_equal(cmos(0xa), 0x26);
}

static void test_set(void **state)
{
    /* as Linux mach_set_cmos_time(): SET, stop the divider, write, start again */
    set_cmos(0xb, 0x82);
    set_cmos(0xa, 0x70);
    set_cmos(9, 0x31);
    set_cmos(8, 0x12);
    set_cmos(7, 0x31);
    set_cmos(4, 0x23);
    set_cmos(2, 0x59);
    set_cmos(0, 0x58);
    clock_advance(rig.clock, SECONDS(100)); /* stands still */
    assert_int_equal(cmos(0), 0x58);
    set_cmos(0xb, 0x02);
    set_cmos(0xa, 0x26);
    check_time("2031-12-31/4 23:59:58");
    clock_advance(rig.clock, SECONDS(2));
    check_time("2032-01-01/5 00:00:00");
    set_cmos(4, 0x07); /* on the run */
    clock_advance(rig.clock, SECONDS(1));
    check_time("2032-01-01/5 07:00:01");
}

static void test_uip(void **state)
{
    assert_int_equal(cmos(0xa) & 0x80, 0);
    clock_advance(rig.clock, 999700000);
    assert_int_equal(cmos(0xa) & 0x80, 0);
    clock_advance(rig.clock, 100000);
    assert_int_equal(cmos(0xa) & 0x80, 0x80);
    assert_int_equal(cmos(0), 0x55);
    clock_advance(rig.clock, 200000);
    assert_int_equal(cmos(0xa) & 0x80, 0);
    assert_int_equal(cmos(0), 0x56);
    clock_advance(rig.clock, 999800000);
    set_cmos(0xb, 0x82);
    assert_int_equal(cmos(0xa) & 0x80, 0); /* no updates while SET */
}

static void test_interrupts(void **state)
{
    cmos(0xc);
    clock_advance(rig.clock, SECONDS(1));
    assert_int_equal(cmos(0xc), 0x50); /* flags without enables: no IRQF */
    assert_int_equal(rig.rises[8], 0);
    set_cmos(0xb, 0x12); /* update-ended */
    clock_advance(rig.clock, SECONDS(1));
    assert_true(rig.level[8]);
    clock_advance(rig.clock, SECONDS(1));
    assert_int_equal(rig.rises[8], 1);
    assert_int_equal(cmos(0xc) & 0xb0, 0x90);
    assert_false(rig.level[8]);
    assert_int_equal(cmos(0xc), 0);
    set_cmos(0xb, 0x92); /* SET turns the update interrupt off */
    assert_int_equal(cmos(0xb), 0x82);
    set_cmos(0xb, 0x42); /* periodic, 1,024 Hz */
    cmos(0xc);
    unsigned ticks = 0;
    for (unsigned i = 0; i < 10000; i++) {
        clock_advance(rig.clock, 100000);
        ticks += (cmos(0xc) & 0xc0) == 0xc0;
    }
    assert_in_range(ticks, 1023, 1025);
    set_cmos(0xa, 0x2f); /* 2 Hz */
    cmos(0xc);
    ticks = 0;
    for (unsigned i = 0; i < 100; i++) {
        clock_advance(rig.clock, 100000000);
        ticks += (cmos(0xc) & 0xc0) == 0xc0;
    }
    assert_in_range(ticks, 19, 21);
    set_cmos(0xa, 0x20);
    cmos(0xc);
    clock_advance(rig.clock, SECONDS(10));
    assert_int_equal(cmos(0xc) & 0x40, 0);
    set_cmos(0xa, 0x26);
    mc146818_set_replaced(rtc, true);
    clock_advance(rig.clock, SECONDS(1));
    assert_false(rig.level[8]);
}

static void test_alarm(void **state)
{
    set_cmos(5, 0x00);
    set_cmos(3, 0x00);
    set_cmos(1, 0x10);
    set_cmos(0xb, 0x22);
    cmos(0xc);
    clock_advance(rig.clock, SECONDS(14));
    assert_false(rig.level[8]);
    clock_advance(rig.clock, SECONDS(1));
    assert_true(rig.level[8]);
    assert_int_equal(cmos(0xc) & 0xa0, 0xa0);
    clock_advance(rig.clock, SECONDS(3600));
    assert_false(rig.level[8]);
    set_cmos(5, 0xff); /* every hour */
    clock_advance(rig.clock, SECONDS(3600));
    assert_true(rig.level[8]);
    cmos(0xc);
    set_cmos(0xb, 0x02); /* polled, with a gap of days */
    clock_advance(rig.clock, SECONDS(10 * 86400));
    assert_int_equal(cmos(0xc) & 0xa0, 0x20);
}

static void test_memory(void **state)
{
    assert_int_equal(cmos(0x15) | cmos(0x16) << 8, 640);
    assert_int_equal(cmos(0x17) | cmos(0x18) << 8, 0xffff);
    assert_int_equal(cmos(0x34) | cmos(0x35) << 8, (3 * 1024 - 16) * 16);
    assert_int_equal(cmos(0x5b) | cmos(0x5c) << 8 | cmos(0x5d) << 16, 16384);
    set_cmos(0x7f, 0xa5);
    assert_int_equal(cmos(0x7f), 0xa5);
    assert_false(mc146818_nmi_masked(rtc));
    assert_int_equal(cmos(0xff), 0xa5); /* bit 7 is the NMI mask */
    assert_true(mc146818_nmi_masked(rtc));
    assert_int_equal(in8(&rig, 0x70), 0xff);
}

static void test_reset(void **state)
{
    set_cmos(0xb, 0x72);
    set_cmos(0x40, 7);
    struct device *dev = mc146818_device(rtc);
    dev->ops->reset(dev);
    assert_int_equal(cmos(0xb), 0x02);
    assert_int_equal(cmos(0x40), 7);
    check_time("2024-02-29/5 23:59:55");
}

static void test_hammer(void **state)
{
    static const uint16_t ports[] = {0x70};
    static const uint16_t counts[] = {2};
    rig_hammer_ports(&rig, ports, counts, 1);
    uint64_t rng = unit_seed();
    for (unsigned i = 0; i < 20000; i++) {
        set_cmos((unsigned)unit_random(&rng) % 16, (unsigned)unit_random(&rng) & 0xff);
        cmos((unsigned)unit_random(&rng) % 16);
        if (i % 32 == 0) {
            clock_advance(rig.clock, unit_random(&rng) % 2000000);
        }
    }
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {T(test_time),  T(test_set),    T(test_uip),   T(test_interrupts),
                                       T(test_alarm), T(test_memory), T(test_reset), T(test_hammer)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
