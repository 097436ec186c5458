/* dev/legacy/watchdog.c: countdown, feeding, firing, reset. */
#include "dev/legacy/watchdog.h"
#include "tests/unit/rig.h"

#define PERIOD_NS (WATCHDOG_PERIOD_MS * 1000000ull)

static struct rig rig;
static struct watchdog *dog;
static unsigned bites;

static void on_fired(void *opaque)
{
    bites++;
}

static int setup(void **state)
{
    rig_open(&rig);
    bites = 0;
    const struct watchdog_config config = {rig.mem, rig.clock, on_fired, NULL};
    dog = watchdog_new(&config, NULL);
    assert_non_null(dog);
    return 0;
}

static int teardown(void **state)
{
    rig_close(&rig, watchdog_device(dog));
    return 0;
}

static uint32_t rd(unsigned reg)
{
    return mem_pio_read(rig.mem, (uint16_t)(WATCHDOG_BASE + reg), 4);
}

static void wr(unsigned reg, uint32_t value)
{
    mem_pio_write(rig.mem, (uint16_t)(WATCHDOG_BASE + reg), 4, value);
}

static void test_sleeps_until_started(void **state)
{
    wr(WATCHDOG_COUNT, 1);
    clock_advance(rig.clock, 1000 * PERIOD_NS);
    assert_int_equal(bites, 0);
    assert_int_equal(rd(WATCHDOG_CONTROL), 0);
    assert_int_equal(rd(WATCHDOG_REMAINS), 1);
}

static void test_fires_unless_fed(void **state)
{
    wr(WATCHDOG_COUNT, 10);
    wr(WATCHDOG_CONTROL, 1);
    for (unsigned i = 0; i < 5; i++) {
        clock_advance(rig.clock, 9 * PERIOD_NS);
        assert_int_equal(rd(WATCHDOG_REMAINS), 1);
        wr(WATCHDOG_REMAINS, 1);
        assert_int_equal(rd(WATCHDOG_REMAINS), 10);
    }
    clock_advance(rig.clock, 10 * PERIOD_NS - 1);
    assert_int_equal(bites, 0);
    assert_int_equal(rd(WATCHDOG_STATUS), 0);
    clock_advance(rig.clock, 1);
    assert_int_equal(bites, 1);
    assert_int_equal(rd(WATCHDOG_CONTROL), 0);
    clock_advance(rig.clock, 1000 * PERIOD_NS);
    assert_int_equal(bites, 1);
}

static void test_stops(void **state)
{
    wr(WATCHDOG_COUNT, 2);
    wr(WATCHDOG_CONTROL, 1);
    clock_advance(rig.clock, PERIOD_NS);
    wr(WATCHDOG_CONTROL, 0);
    clock_advance(rig.clock, 1000 * PERIOD_NS);
    assert_int_equal(bites, 0);
}

/* A reset stops it, and leaves the trace that it fired. */
static void test_reset(void **state)
{
    wr(WATCHDOG_COUNT, 0); /* as short as it gets */
    wr(WATCHDOG_CONTROL, 1);
    clock_advance(rig.clock, PERIOD_NS);
    assert_int_equal(bites, 1);
    watchdog_device(dog)->ops->reset(watchdog_device(dog));
    assert_int_equal(rd(WATCHDOG_STATUS), 1);
    wr(WATCHDOG_STATUS, 0);
    assert_int_equal(rd(WATCHDOG_STATUS), 0);
    wr(WATCHDOG_STATUS, 1); /* can't be faked */
    assert_int_equal(rd(WATCHDOG_STATUS), 0);
}

static void test_odd_accesses(void **state)
{
    for (uint16_t port = WATCHDOG_BASE; port < WATCHDOG_BASE + WATCHDOG_PORTS; port++) {
        mem_pio_write(rig.mem, port, 1, 0xff);
        mem_pio_write(rig.mem, port, 2, 0xffff);
        mem_pio_read(rig.mem, port, 1);
        mem_pio_read(rig.mem, port, 2);
    }
    assert_int_equal(rd(WATCHDOG_CONTROL), 0);
    wr(WATCHDOG_COUNT, 0xffffffff);
    assert_int_equal(rd(WATCHDOG_COUNT), WATCHDOG_COUNT_MAX);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_sleeps_until_started, setup, teardown),
        cmocka_unit_test_setup_teardown(test_fires_unless_fed, setup, teardown),
        cmocka_unit_test_setup_teardown(test_stops, setup, teardown),
        cmocka_unit_test_setup_teardown(test_reset, setup, teardown),
        cmocka_unit_test_setup_teardown(test_odd_accesses, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
