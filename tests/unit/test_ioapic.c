/* dev/irq/ioapic.c: redirection entries, edge and level pins, EOI, the registers of the data sheet. */
#include "dev/irq/ioapic.h"
#include "tests/unit/rig.h"

#define BASE IOAPIC_DEFAULT_BASE

static struct rig rig;
static struct ioapic *ioapic;
static struct apic_msg last;
static bool taken;

static bool record(void *opaque, const struct apic_msg *msg)
{
    last = *msg;
    rig.calls[0]++;
    return taken;
}

static int setup(void **state)
{
    rig_open(&rig);
    taken = true;
    struct ioapic_config config = {.mem = rig.mem, .base = BASE, .id = 5, .send = record};
    ioapic = ioapic_new(&config, NULL);
    assert_non_null(ioapic);
    return 0;
}

static int teardown(void **state)
{
    rig_close(&rig, ioapic_device(ioapic));
    return 0;
}

static uint32_t reg(unsigned index)
{
    mmio_out(&rig, BASE, 4, index);
    return (uint32_t)mmio(&rig, BASE + 0x10, 4);
}

static void set_reg(unsigned index, uint32_t value)
{
    mmio_out(&rig, BASE, 4, index);
    mmio_out(&rig, BASE + 0x10, 4, value);
}

static void test_registers(void **state)
{
    assert_int_equal(reg(0), 5u << 24);
    set_reg(0, 0xff000000);
    assert_int_equal(reg(0), 0x0f000000);
    assert_int_equal(reg(1), 0x00170020);
    set_reg(1, 0);
    assert_int_equal(reg(1), 0x00170020);
    assert_int_equal(reg(0x10), 0x10000);
    assert_int_equal(reg(0x3e), 0x10000);
    assert_int_equal(reg(0x40), 0);
    assert_int_equal(reg(0x80), 0);
    set_reg(0x10, 0xffffffff);
    assert_int_equal(reg(0x10), 0x0001afff); /* delivery status and remote IRR are read-only */
    assert_int_equal(mmio(&rig, BASE + 0x20, 4), 0);
    assert_int_equal(mmio(&rig, BASE, 1), 0x10);
}

static void test_edge(void **state)
{
    ioapic_set_irq(ioapic, 2, true);
    assert_int_equal(rig.calls[0], 0); /* masked: lost */
    set_reg(0x14, 0x30);
    set_reg(0x15, 3u << 24);
    assert_int_equal(rig.calls[0], 0);
    ioapic_set_irq(ioapic, 2, true);
    assert_int_equal(rig.calls[0], 0); /* no new edge */
    ioapic_set_irq(ioapic, 2, false);
    ioapic_set_irq(ioapic, 2, true);
    assert_int_equal(rig.calls[0], 1);
    assert_int_equal(last.vector, 0x30);
    assert_int_equal(last.dest, 3);
    assert_false(last.level);
    assert_false(last.logical);
    assert_int_equal(reg(0x14), 0x30);
    ioapic_set_irq(ioapic, 24, true);
    ioapic_set_irq(ioapic, UINT32_MAX, true);
    assert_int_equal(rig.calls[0], 1);
}

static void test_level(void **state)
{
    set_reg(0x2b, 0xffu << 24);
    set_reg(0x2a, 0x8941); /* level, logical, lowest priority */
    ioapic_set_irq(ioapic, 13, true);
    assert_int_equal(rig.calls[0], 1);
    assert_true(last.level);
    assert_true(last.logical);
    assert_int_equal(last.mode, APIC_MODE_LOWEST);
    assert_int_equal(last.dest, 0xff);
    assert_int_equal(reg(0x2a), 0xc941);
    ioapic_set_irq(ioapic, 13, true);
    assert_int_equal(rig.calls[0], 1);
    ioapic_eoi(ioapic, 0x40);
    assert_int_equal(reg(0x2a), 0xc941);
    ioapic_eoi(ioapic, 0x41); /* still asserted */
    assert_int_equal(rig.calls[0], 2);
    ioapic_set_irq(ioapic, 13, false);
    mmio_out(&rig, BASE + 0x40, 4, 0x41); /* the directed EOI */
    assert_int_equal(rig.calls[0], 2);
    assert_int_equal(reg(0x2a), 0x8941);
    set_reg(0x2a, 0x18941);
    ioapic_set_irq(ioapic, 13, true);
    assert_int_equal(rig.calls[0], 2);
    set_reg(0x2a, 0x8941); /* unmasking finds the level */
    assert_int_equal(rig.calls[0], 3);
}

static void test_level_rules(void **state)
{
    taken = false; /* nobody there: no EOI will come, so remote IRR stays off */
    set_reg(0x2a, 0x8041);
    ioapic_set_irq(ioapic, 13, true);
    assert_int_equal(reg(0x2a), 0x8041);
    taken = true;
    set_reg(0x2a, 0x8041);
    assert_int_equal(reg(0x2a), 0xc041);
    set_reg(0x2a, 0x10041); /* the old trick: edge and masked clears remote IRR */
    set_reg(0x2a, 0x18041);
    assert_int_equal(reg(0x2a), 0x18041);
}

static void test_modes(void **state)
{
    set_reg(0x13, 0xffu << 24);
    set_reg(0x12, 0x400);
    ioapic_set_irq(ioapic, 1, true);
    assert_int_equal(last.mode, APIC_MODE_NMI);
    assert_true(last.dest == APIC_BROADCAST);
    ioapic_set_irq(ioapic, 1, false);
    set_reg(0x12, 0x700);
    ioapic_set_irq(ioapic, 1, true);
    assert_int_equal(last.mode, APIC_MODE_EXTINT);
    ioapic_set_irq(ioapic, 1, false);
    set_reg(0x12, 0x8500);
    ioapic_set_irq(ioapic, 1, true);
    assert_int_equal(last.mode, APIC_MODE_INIT);
    assert_false(last.level);
    assert_int_equal(reg(0x12) & 0x4000, 0);
    unsigned calls = rig.calls[0];
    ioapic_set_irq(ioapic, 1, false);
    set_reg(0x12, 0x300); /* reserved mode */
    ioapic_set_irq(ioapic, 1, true);
    assert_int_equal(rig.calls[0], calls);
}

static void test_hammer(void **state)
{
    uint64_t rng = unit_seed();
    for (unsigned i = 0; i < 5000; i++) {
        set_reg((unsigned)unit_random(&rng) & 0x7f, (uint32_t)unit_random(&rng));
        ioapic_set_irq(ioapic, (unsigned)unit_random(&rng) % 26, unit_random(&rng) & 1);
        ioapic_eoi(ioapic, (uint8_t)unit_random(&rng));
    }
    rig_hammer_mmio(&rig, BASE, 0x1000);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {T(test_registers),   T(test_edge),  T(test_level),
                                       T(test_level_rules), T(test_modes), T(test_hammer)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
