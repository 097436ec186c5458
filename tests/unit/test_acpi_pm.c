/* dev/legacy/acpi_pm.c: timer, events and SCI, sleep, reset register. */
#include "dev/legacy/acpi_pm.h"
#include "tests/unit/rig.h"

#define PM ACPI_PM_DEFAULT

static struct rig rig;
static struct acpi_pm *pm;
static unsigned power_offs, resets;

static void on_power_off(void *opaque)
{
    power_offs++;
}

static void on_reset(void *opaque)
{
    resets++;
}

static int setup(void **state)
{
    rig_open(&rig);
    power_offs = 0;
    resets = 0;
    struct acpi_pm_config config = {.mem = rig.mem,
                                    .clock = rig.clock,
                                    .sci = rig_line(&rig, 9),
                                    .base = PM,
                                    .s5_type = 5,
                                    .power_off = on_power_off,
                                    .reset = on_reset};
    pm = acpi_pm_new(&config, NULL);
    assert_non_null(pm);
    return 0;
}

static int teardown(void **state)
{
    rig_close(&rig, acpi_pm_device(pm));
    return 0;
}

static uint16_t rd(unsigned reg)
{
    return (uint16_t)mem_pio_read(rig.mem, (uint16_t)(PM + reg), 2);
}

static void wr(unsigned reg, unsigned value)
{
    mem_pio_write(rig.mem, (uint16_t)(PM + reg), 2, value);
}

static uint32_t timer(void)
{
    return mem_pio_read(rig.mem, PM + 8, 4);
}

static void test_timer(void **state)
{
    uint32_t before = timer();
    clock_advance(rig.clock, 1000000000);
    assert_int_equal(timer() - before, ACPI_PM_TIMER_HZ);
    clock_advance(rig.clock, 9000000000);
    assert_int_equal(timer(), (10ull * ACPI_PM_TIMER_HZ) & 0xffffff);
    assert_int_equal(mem_pio_read(rig.mem, PM + 9, 1), timer() >> 8 & 0xff);
    mem_pio_write(rig.mem, PM + 8, 4, 0);
    assert_int_equal(timer(), (10ull * ACPI_PM_TIMER_HZ) & 0xffffff);
}

static void test_carry(void **state)
{
    assert_int_equal(rd(0), 0);
    clock_advance(rig.clock, 2343484437); /* bit 23 changes after 2^23 ticks = 2.3434844... s */
    assert_int_equal(rd(0), 0);
    clock_advance(rig.clock, 1000);
    assert_int_equal(rd(0), 1);
    assert_false(rig.level[9]);
    wr(2, 1);
    assert_true(rig.level[9]);
    wr(0, 1);
    assert_int_equal(rd(0), 0);
    assert_false(rig.level[9]);
    clock_advance(rig.clock, 2344000000);
    assert_true(rig.level[9]);
    wr(2, 0);
    assert_false(rig.level[9]);
}

static void test_button(void **state)
{
    acpi_pm_power_button(pm);
    assert_false(rig.level[9]);
    assert_int_equal(rd(0), 0x100);
    wr(2, 0x100);
    assert_true(rig.level[9]);
    wr(0, 0x20);
    assert_true(rig.level[9]);
    mem_pio_write(rig.mem, PM + 1, 1, 0x01); /* a byte, as some guests do */
    assert_false(rig.level[9]);
    wr(2, 0xffff);
    assert_int_equal(rd(2), 0x721);
    /* status and enable at once */
    acpi_pm_power_button(pm);
    assert_int_equal(mem_pio_read(rig.mem, PM, 4), 0x07210100);
    mem_pio_write(rig.mem, PM, 4, 0x00000100);
    assert_int_equal(mem_pio_read(rig.mem, PM, 4), 0);
}

static void test_sleep(void **state)
{
    assert_int_equal(rd(4), 1); /* SCI_EN */
    wr(4, 0);
    assert_int_equal(rd(4), 1);
    wr(4, 3u << 10 | 0x2000);
    assert_int_equal(power_offs, 0);
    wr(4, 5u << 10);
    assert_int_equal(power_offs, 0);
    wr(4, 5u << 10 | 0x2001);
    assert_int_equal(power_offs, 1);
    assert_int_equal(rd(4), 5u << 10 | 1);
    assert_int_equal(rd(6), 0);
}

static void test_reset_register(void **state)
{
    out8(&rig, 0xcf9, 0x02);
    assert_int_equal(resets, 0);
    assert_int_equal(in8(&rig, 0xcf9), 0x02);
    out8(&rig, 0xcf9, 0x06);
    assert_int_equal(resets, 1);
    out8(&rig, 0xcf9, 0x0e);
    assert_int_equal(resets, 1);
    struct device *dev = acpi_pm_device(pm);
    dev->ops->reset(dev);
    out8(&rig, 0xcf9, ACPI_PM_RESET_VALUE);
    assert_int_equal(resets, 2);
}

static void test_hammer(void **state)
{
    static const uint16_t ports[] = {PM, 0xcf9};
    static const uint16_t counts[] = {ACPI_PM_PORTS, 1};
    rig_hammer_ports(&rig, ports, counts, 2);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {T(test_timer), T(test_carry),          T(test_button),
                                       T(test_sleep), T(test_reset_register), T(test_hammer)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
