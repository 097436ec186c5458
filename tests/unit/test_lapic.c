/* dev/irq/lapic*.c: priorities, messages between LAPICs, MSRs and mode transitions, the timer. */
#include "dev/irq/lapic.h"
#include "tests/unit/rig.h"

#define CPUS   4u
#define TSC_HZ 2500000000ull

struct cpu {
    struct lapic *lapic;
    unsigned raised, nmis, inits, sipis;
    uint8_t sipi_vector;
    int extint;
};

static struct rig rig;
static struct lapic_bus *bus;
static struct cpu cpus[CPUS];
static unsigned eois;
static uint8_t eoi_vector;

static void on_raise(void *opaque)
{
    ((struct cpu *)opaque)->raised++;
}

static void on_nmi(void *opaque)
{
    ((struct cpu *)opaque)->nmis++;
}

static void on_init(void *opaque)
{
    ((struct cpu *)opaque)->inits++;
}

static void on_sipi(void *opaque, uint8_t vector)
{
    ((struct cpu *)opaque)->sipis++;
    ((struct cpu *)opaque)->sipi_vector = vector;
}

static int on_extint(void *opaque)
{
    struct cpu *cpu = opaque;
    lapic_set_lint(cpu->lapic, 0, false);
    return cpu->extint;
}

static uint64_t on_tsc(void *opaque)
{
    return clock_now_ns(rig.clock) * (TSC_HZ / 100000000) / 10;
}

static void on_eoi(void *opaque, uint8_t vector)
{
    eois++;
    eoi_vector = vector;
}

static uint32_t rd(unsigned reg)
{
    return (uint32_t)mmio(&rig, LAPIC_BASE + reg, 4);
}

static void wr(unsigned reg, uint32_t value)
{
    mmio_out(&rig, LAPIC_BASE + reg, 4, value);
}

static uint64_t rdmsr(unsigned n, uint32_t msr)
{
    uint64_t value = 0;
    assert_int_equal(lapic_msr_read(cpus[n].lapic, msr, &value), 0);
    return value;
}

static int wrmsr(unsigned n, uint32_t msr, uint64_t value)
{
    return lapic_msr_write(cpus[n].lapic, msr, value);
}

static int setup(void **state)
{
    rig_open(&rig);
    eois = 0;
    memset(cpus, 0, sizeof(cpus));
    struct lapic_bus_config bus_config = {.mem = rig.mem, .clock = rig.clock, .eoi = on_eoi};
    bus = lapic_bus_new(&bus_config, NULL);
    assert_non_null(bus);
    for (unsigned i = 0; i < CPUS; i++) {
        struct lapic_config config = {
            .id = i,
            .bsp = i == 0,
            .virtual_wire = i == 0,
            .x2apic = true,
            .phys_bits = 40,
            .tsc_hz = TSC_HZ,
            .cpu = {&cpus[i], on_raise, on_nmi, on_init, on_sipi, on_extint, on_tsc},
        };
        cpus[i].lapic = lapic_new(bus, &config, NULL);
        assert_non_null(cpus[i].lapic);
        lapic_bind_thread(cpus[i].lapic);
        wr(0xf0, 0x1ff);
    }
    lapic_bind_thread(cpus[0].lapic);
    return 0;
}

static int teardown(void **state)
{
    lapic_bind_thread(NULL);
    assert_int_equal(rd(0x20), 0xffffffff);
    for (unsigned i = 1; i < CPUS; i++) {
        struct device *dev = lapic_device(cpus[i].lapic);
        dev->ops->free(dev);
    }
    rig_close(&rig, lapic_device(cpus[0].lapic));
    lapic_bus_free(bus);
    return 0;
}

static void send(uint32_t dest, bool logical, uint8_t mode, uint8_t vector, bool level)
{
    struct apic_msg msg = {.dest = dest, .logical = logical, .mode = mode, .vector = vector, .level = level};
    lapic_bus_send(bus, &msg);
}

static void test_registers(void **state)
{
    assert_int_equal(rd(0x20), 0);
    assert_int_equal(rd(0x30), 0x01050014);
    assert_int_equal(rd(0xe0), 0xffffffff);
    wr(0xe0, 0);
    assert_int_equal(rd(0xe0), 0x0fffffff);
    wr(0xd0, 0xffffffff);
    assert_int_equal(rd(0xd0), 0xff000000);
    assert_int_equal(rd(0x350), 0x700);
    wr(0x320, 0xffffffff);
    assert_int_equal(rd(0x320), 0x700ff);
    wr(0x370, 0xffffffff);
    assert_int_equal(rd(0x370), 0x100ff);
    wr(0x360, 0xffffffff);
    assert_int_equal(rd(0x360), 0x1a7ff);
    wr(0xf0, 0xff); /* software disable masks everything */
    assert_int_equal(rd(0x350), 0x10700);
    wr(0x350, 0x700);
    assert_int_equal(rd(0x350), 0x10700);
    lapic_bind_thread(cpus[3].lapic);
    assert_int_equal(rd(0x20), 3u << 24);
    assert_int_equal(rd(0x350), 0x10000);
}

static void test_priority(void **state)
{
    struct lapic *lapic = cpus[0].lapic;
    assert_false(lapic_irq_pending(lapic));
    assert_int_equal(lapic_irq_ack(lapic), -1);
    send(0, false, APIC_MODE_FIXED, 0x31, false);
    assert_true(lapic_irq_pending(lapic));
    assert_int_equal(cpus[0].raised, 1);
    send(0, false, APIC_MODE_FIXED, 0x42, false);
    assert_int_equal(rd(0x210), 1u << 0x11);
    assert_int_equal(rd(0x220), 1u << 2);
    assert_int_equal(lapic_irq_ack(lapic), 0x42);
    assert_int_equal(rd(0xa0), 0x40);
    assert_int_equal(rd(0x120), 1u << 2);
    assert_false(lapic_irq_pending(lapic));
    send(0, false, APIC_MODE_FIXED, 0x4f, false); /* the same class waits */
    assert_false(lapic_irq_pending(lapic));
    send(0, false, APIC_MODE_FIXED, 0x50, false);
    assert_true(lapic_irq_pending(lapic));
    assert_int_equal(lapic_irq_ack(lapic), 0x50);
    wr(0xb0, 0);
    wr(0xb0, 0);
    assert_int_equal(lapic_irq_ack(lapic), 0x4f);
    wr(0xb0, 0);
    lapic_cr8_write(lapic, 3);
    assert_int_equal(rd(0x80), 0x30);
    assert_int_equal(lapic_cr8_read(lapic), 3);
    assert_false(lapic_irq_pending(lapic));
    unsigned raised = cpus[0].raised;
    lapic_cr8_write(lapic, 2);
    assert_true(lapic_irq_pending(lapic));
    assert_int_equal(cpus[0].raised, raised + 1);
    wr(0x80, 0x35);
    assert_int_equal(rd(0xa0), 0x35);
    assert_false(lapic_irq_pending(lapic));
    wr(0x80, 0);
    assert_int_equal(lapic_irq_ack(lapic), 0x31);
    wr(0xb0, 0);
    wr(0xb0, 0); /* an EOI too many is harmless */
    assert_int_equal(eois, 0);
}

static void test_eoi_broadcast(void **state)
{
    send(0, false, APIC_MODE_FIXED, 0x91, true);
    assert_int_equal(rd(0x1c0), 1u << 0x11);
    assert_int_equal(lapic_irq_ack(cpus[0].lapic), 0x91);
    wr(0xb0, 0);
    assert_int_equal(eois, 1);
    assert_int_equal(eoi_vector, 0x91);
    wr(0xf0, 0x11ff); /* suppressed */
    send(0, false, APIC_MODE_FIXED, 0x91, true);
    assert_int_equal(lapic_irq_ack(cpus[0].lapic), 0x91);
    wr(0xb0, 0);
    assert_int_equal(eois, 1);
    wr(0xf0, 0x1ff);
    send(0, false, APIC_MODE_FIXED, 0x91, false);
    assert_int_equal(rd(0x1c0), 0);
}

static void test_extint(void **state)
{
    struct lapic *lapic = cpus[0].lapic;
    cpus[0].extint = 0x33;
    lapic_set_lint(lapic, 0, true);
    assert_true(lapic_irq_pending(lapic));
    assert_int_equal(lapic_irq_ack(lapic), 0x33);
    assert_false(lapic_irq_pending(lapic));
    wr(0x350, 0x10700);
    lapic_set_lint(lapic, 0, true);
    assert_false(lapic_irq_pending(lapic));
    wr(0x350, 0x700);
    assert_true(lapic_irq_pending(lapic));
    lapic_set_lint(lapic, 0, false);
    assert_false(lapic_irq_pending(lapic));
    send(0, false, APIC_MODE_EXTINT, 0, false);
    assert_int_equal(lapic_irq_ack(lapic), 0x33);
    /* off altogether: LINT0 is INTR and LINT1 is NMI */
    assert_int_equal(wrmsr(0, 0x1b, 0xfee00100), 0);
    assert_int_equal(rd(0x20), 0xffffffff);
    lapic_set_lint(lapic, 0, true);
    assert_int_equal(lapic_irq_ack(lapic), 0x33);
    lapic_set_lint(lapic, 1, true);
    assert_int_equal(cpus[0].nmis, 1);
    lapic_set_lint(lapic, 2, true);
}

static void test_lint(void **state)
{
    struct lapic *lapic = cpus[0].lapic;
    lapic_set_lint(lapic, 1, true);
    lapic_set_lint(lapic, 1, true);
    assert_int_equal(cpus[0].nmis, 1);
    wr(0x350, 0x8061); /* level, fixed */
    lapic_set_lint(lapic, 0, true);
    assert_int_equal(rd(0x350), 0xc061);
    assert_int_equal(lapic_irq_ack(lapic), 0x61);
    wr(0xb0, 0);
    assert_int_equal(lapic_irq_ack(lapic), 0x61); /* still asserted */
    lapic_set_lint(lapic, 0, false);
    wr(0xb0, 0);
    assert_int_equal(rd(0x350), 0x8061);
    assert_int_equal(lapic_irq_ack(lapic), -1);
    wr(0x350, 0x62);
    lapic_set_lint(lapic, 0, true);
    assert_int_equal(lapic_irq_ack(lapic), 0x62);
}

static void icr(uint32_t dest, uint32_t low)
{
    wr(0x310, dest << 24);
    wr(0x300, low);
}

static unsigned pending_set(void)
{
    unsigned set = 0;
    for (unsigned i = 0; i < CPUS; i++) {
        if (lapic_irq_pending(cpus[i].lapic)) {
            set |= 1u << i;
            lapic_irq_ack(cpus[i].lapic);
            struct lapic *self = cpus[0].lapic;
            lapic_bind_thread(cpus[i].lapic);
            wr(0xb0, 0);
            lapic_bind_thread(self);
        }
    }
    return set;
}

static void test_icr(void **state)
{
    icr(2, 0x4050);
    assert_int_equal(pending_set(), 4);
    assert_int_equal(rd(0x300), 0x4050);
    assert_int_equal(rd(0x310), 2u << 24);
    icr(0xff, 0x4050);
    assert_int_equal(pending_set(), 15);
    icr(9, 0x4050);
    assert_int_equal(pending_set(), 0);
    icr(0, 0x44050); /* self */
    assert_int_equal(pending_set(), 1);
    icr(0, 0x84050); /* all */
    assert_int_equal(pending_set(), 15);
    icr(0, 0xc4050); /* all but self */
    assert_int_equal(pending_set(), 14);
    icr(1, 0x4400);
    assert_int_equal(cpus[1].nmis, 1);
    icr(1, 0xc500); /* INIT */
    icr(1, 0x8500); /* de-assert */
    assert_int_equal(cpus[1].inits, 1);
    icr(1, 0x469a);
    assert_int_equal(cpus[1].sipis, 1);
    assert_int_equal(cpus[1].sipi_vector, 0x9a);
    icr(1, 0x4050); /* after INIT it is disabled in software */
    assert_int_equal(pending_set(), 0);
    icr(2, 0x4005); /* illegal vector */
    assert_int_equal(rd(0x280), 0);
    wr(0x280, 0);
    assert_int_equal(rd(0x280), 0x20);
    wr(0x280, 0);
    assert_int_equal(rd(0x280), 0);
}

static void test_logical(void **state)
{
    for (unsigned i = 0; i < CPUS; i++) {
        lapic_bind_thread(cpus[i].lapic);
        wr(0xd0, 1u << (24 + i));
    }
    lapic_bind_thread(cpus[0].lapic);
    icr(0x0a, 0x4850);
    assert_int_equal(pending_set(), 0x0a);
    icr(0xff, 0x4850);
    assert_int_equal(pending_set(), 0x0f);
    /* lowest priority: equals take turns, the busy one is left alone */
    unsigned first = 0;
    send(0x0c, true, APIC_MODE_LOWEST, 0x50, false);
    first = pending_set();
    assert_true(first == 4 || first == 8);
    send(0x0c, true, APIC_MODE_LOWEST, 0x50, false);
    assert_int_equal(pending_set(), 12 - first);
    lapic_cr8_write(cpus[2].lapic, 4);
    for (unsigned i = 0; i < 3; i++) {
        send(0x0c, true, APIC_MODE_LOWEST, 0x50, false);
        assert_int_equal(pending_set(), 8);
    }
    /* cluster model */
    for (unsigned i = 0; i < CPUS; i++) {
        lapic_bind_thread(cpus[i].lapic);
        lapic_cr8_write(cpus[i].lapic, 0);
        wr(0xe0, 0x0fffffff);
        wr(0xd0, ((i / 2) << 4 | 1u << (i % 2)) << 24);
    }
    lapic_bind_thread(cpus[0].lapic);
    icr(0x13, 0x4850);
    assert_int_equal(pending_set(), 0x0c);
    icr(0x02, 0x4850);
    assert_int_equal(pending_set(), 0x02);
    icr(0xff, 0x4850);
    assert_int_equal(pending_set(), 0x0f);
}

static void test_errors(void **state)
{
    wr(0x370, 0xfe);
    send(0, false, APIC_MODE_FIXED, 5, false);
    assert_int_equal(lapic_irq_ack(cpus[0].lapic), 0xfe);
    wr(0xb0, 0);
    rd(0x40);
    wr(0x20, 0x55000000); /* the ID does not change */
    assert_int_equal(rd(0x20), 0);
    wr(0x280, 0);
    assert_int_equal(rd(0x280), 0xc0);
    wr(0x370, 0x05); /* an illegal vector for the error itself must not recurse */
    wr(0x40, 1);
    wr(0x280, 0);
    assert_int_equal(rd(0x280), 0xc0);
    /* accesses that the SDM leaves undefined */
    mmio_out(&rig, LAPIC_BASE + 0x80, 1, 0x50);
    mmio_out(&rig, LAPIC_BASE + 0x84, 4, 0x50);
    assert_int_equal(rd(0x80), 0);
    assert_int_equal(mmio(&rig, LAPIC_BASE + 0x32, 2), 0x0105);
}

static void test_apic_base(void **state)
{
    assert_int_equal(rdmsr(0, 0x1b), 0xfee00900);
    assert_int_equal(rdmsr(1, 0x1b), 0xfee00800);
    assert_int_equal(wrmsr(0, 0x1b, 0xfee00901), -1);       /* reserved */
    assert_int_equal(wrmsr(0, 0x1b, 0x10000000900ull), -1); /* beyond MAXPHYADDR */
    assert_int_equal(wrmsr(0, 0x1b, 0xfee00500), -1);       /* EXTD without EN */
    uint64_t value;
    assert_int_equal(lapic_msr_read(cpus[0].lapic, 0x802, &value), -1); /* not in x2APIC mode */
    assert_int_equal(wrmsr(0, 0x1b, 0xfee00d00), 0);
    assert_int_equal(rdmsr(0, 0x802), 0);
    assert_int_equal(wrmsr(0, 0x1b, 0xfee00900), -1); /* x2APIC to xAPIC */
    assert_int_equal(rd(0x20), 0xffffffff);           /* the page is gone */
    assert_int_equal(wrmsr(0, 0x1b, 0xfee00100), 0);  /* disable */
    assert_int_equal(wrmsr(0, 0x1b, 0xfee00d00), -1); /* disabled to x2APIC */
    assert_int_equal(wrmsr(0, 0x1b, 0xfee00900), 0);
    assert_int_equal(rd(0xf0), 0xff); /* the state was lost */
    assert_int_equal(rdmsr(0, 0x1b), 0xfee00900);
}

static void test_x2apic(void **state)
{
    for (unsigned i = 0; i < CPUS; i++) {
        assert_int_equal(wrmsr(i, 0x1b, rdmsr(i, 0x1b) | 0x400), 0);
    }
    assert_int_equal(rdmsr(3, 0x802), 3);
    assert_int_equal(rdmsr(3, 0x80d), 8);
    assert_int_equal(rdmsr(3, 0x803), 0x01050014);
    uint64_t value;
    static const uint32_t absent[] = {0x800, 0x801, 0x809, 0x80b, 0x80c, 0x80e,
                                      0x82f, 0x831, 0x83f, 0x840, 0x8ff};
    for (unsigned i = 0; i < ARRAY_SIZE(absent); i++) {
        assert_int_equal(lapic_msr_read(cpus[0].lapic, absent[i], &value), -1);
    }
    static const uint32_t read_only[] = {0x802, 0x803, 0x80a, 0x80d, 0x810,
                                         0x818, 0x820, 0x839, 0x80e, 0x831};
    for (unsigned i = 0; i < ARRAY_SIZE(read_only); i++) {
        assert_int_equal(wrmsr(0, read_only[i], 0), -1);
    }
    assert_int_equal(wrmsr(0, 0x80b, 1), -1);
    assert_int_equal(wrmsr(0, 0x80b, 0), 0);
    assert_int_equal(wrmsr(0, 0x828, 1), -1);
    assert_int_equal(wrmsr(0, 0x828, 0), 0);
    assert_int_equal(wrmsr(0, 0x808, 0x100), -1);
    assert_int_equal(wrmsr(0, 0x808, 0x20), 0);
    assert_int_equal(lapic_cr8_read(cpus[0].lapic), 2);
    assert_int_equal(wrmsr(0, 0x808, 0), 0);
    assert_int_equal(wrmsr(0, 0x832, 0x1000000), -1);
    assert_int_equal(wrmsr(0, 0x838, 1ull << 32), -1);
    assert_int_equal(wrmsr(0, 0x83e, 4), -1);
    assert_int_equal(wrmsr(0, 0x830, 0x100000), -1);

    assert_int_equal(wrmsr(0, 0x830, 2ull << 32 | 0x4050), 0);
    assert_int_equal(rdmsr(0, 0x830), 2ull << 32 | 0x4050);
    assert_true(lapic_irq_pending(cpus[2].lapic));
    assert_int_equal(lapic_irq_ack(cpus[2].lapic), 0x50);
    assert_int_equal(wrmsr(2, 0x80b, 0), 0);
    assert_int_equal(wrmsr(0, 0x830, 0xffffffffull << 32 | 0x4060), 0);
    for (unsigned i = 0; i < CPUS; i++) {
        assert_int_equal(lapic_irq_ack(cpus[i].lapic), 0x60);
        assert_int_equal(wrmsr(i, 0x80b, 0), 0);
    }
    assert_int_equal(wrmsr(0, 0x830, 0x0000000aull << 32 | 0x4860),
                     0); /* logical: cluster 0, members 1 and 3 */
    assert_false(lapic_irq_pending(cpus[0].lapic));
    assert_true(lapic_irq_pending(cpus[1].lapic));
    assert_true(lapic_irq_pending(cpus[3].lapic));
    assert_int_equal(wrmsr(0, 0x830, 0x0001000full << 32 | 0x4870), 0); /* cluster 1 is empty */
    assert_int_equal(lapic_irq_ack(cpus[1].lapic), 0x60);
    assert_int_equal(wrmsr(0, 0x83f, 0x77), 0);
    assert_int_equal(lapic_irq_ack(cpus[0].lapic), 0x77);
    assert_int_equal(wrmsr(0, 0x83f, 0x100), -1);
    assert_int_equal(wrmsr(0, 0x83f, 3), 0);
    assert_int_equal(wrmsr(0, 0x828, 0), 0);
    assert_int_equal(rdmsr(0, 0x828), 0x20);
}

static void test_timer(void **state)
{
    struct lapic *lapic = cpus[0].lapic;
    wr(0x3e0, 0x3); /* by 16 */
    wr(0x320, 0x40);
    wr(0x380, 1000);
    assert_int_equal(rd(0x390), 1000);
    clock_advance(rig.clock, 8000);
    assert_int_equal(rd(0x390), 500);
    clock_advance(rig.clock, 7999);
    assert_false(lapic_irq_pending(lapic));
    assert_int_equal(rd(0x390), 1);
    clock_advance(rig.clock, 1);
    assert_int_equal(lapic_irq_ack(lapic), 0x40);
    assert_int_equal(rd(0x390), 0);
    wr(0xb0, 0);
    clock_advance(rig.clock, 1000000);
    assert_false(lapic_irq_pending(lapic));

    wr(0x3e0, 0xb);     /* by 1 */
    wr(0x320, 0x20041); /* periodic */
    wr(0x380, 1000000);
    for (unsigned i = 0; i < 5; i++) {
        clock_advance(rig.clock, 1000000);
        assert_int_equal(lapic_irq_ack(lapic), 0x41);
        wr(0xb0, 0);
    }
    clock_advance(rig.clock, 250000);
    assert_int_equal(rd(0x390), 750000);
    wr(0x320, 0x30041); /* masked: runs on, says nothing */
    clock_advance(rig.clock, 5000000);
    assert_false(lapic_irq_pending(lapic));
    assert_int_equal(rd(0x390), 750000);
    wr(0x380, 0);
    assert_int_equal(rd(0x390), 0);
    wr(0x320, 0x20041);
    wr(0x380, 1); /* a period of 1 ns must not drown the loop */
    unsigned raised = cpus[0].raised;
    clock_advance(rig.clock, 10000000);
    assert_in_range(cpus[0].raised - raised, 1, 1000);
}

static void test_tsc_deadline(void **state)
{
    struct lapic *lapic = cpus[0].lapic;
    clock_advance(rig.clock, 1000000);
    assert_int_equal(wrmsr(0, 0x6e0, 12345678), 0); /* not in that mode: ignored */
    assert_int_equal(rdmsr(0, 0x6e0), 0);
    wr(0x320, 0x40044);
    wr(0x380, 5); /* ignored in this mode */
    assert_int_equal(rd(0x380), 0);
    uint64_t deadline = on_tsc(NULL) + 2500000; /* one millisecond */
    assert_int_equal(wrmsr(0, 0x6e0, deadline), 0);
    assert_int_equal(rdmsr(0, 0x6e0), deadline);
    clock_advance(rig.clock, 999999);
    assert_false(lapic_irq_pending(lapic));
    clock_advance(rig.clock, 1);
    assert_int_equal(lapic_irq_ack(lapic), 0x44);
    assert_int_equal(rdmsr(0, 0x6e0), 0);
    wr(0xb0, 0);
    assert_int_equal(wrmsr(0, 0x6e0, 1), 0); /* in the past: at once */
    assert_int_equal(lapic_irq_ack(lapic), 0x44);
    wr(0xb0, 0);
    assert_int_equal(wrmsr(0, 0x6e0, on_tsc(NULL) + 1000), 0);
    assert_int_equal(wrmsr(0, 0x6e0, 0), 0); /* disarm */
    clock_advance(rig.clock, 1000000);
    assert_false(lapic_irq_pending(lapic));
    assert_int_equal(wrmsr(0, 0x6e0, on_tsc(NULL) + 1000), 0);
    wr(0x320, 0x44); /* leaving the mode disarms */
    clock_advance(rig.clock, 1000000);
    assert_false(lapic_irq_pending(lapic));
    wr(0x320, 0x40044);
    assert_int_equal(wrmsr(0, 0x6e0, UINT64_MAX), 0);
    clock_advance(rig.clock, 1000000);
    assert_false(lapic_irq_pending(lapic));
}

static void test_bad_config(void **state)
{
    struct err err = {0};
    struct lapic_config config = {.phys_bits = 40};
    assert_null(lapic_new(bus, &config, &err));
    assert_int_not_equal(err.code, 0);
}

static void test_hammer(void **state)
{
    uint64_t rng = unit_seed();
    for (unsigned i = 0; i < 30000; i++) {
        unsigned n = (unsigned)(unit_random(&rng) % CPUS);
        lapic_bind_thread(cpus[n].lapic);
        uint64_t value = unit_random(&rng) >> (unit_random(&rng) % 64);
        unsigned reg = (unsigned)(unit_random(&rng) % 0x40);
        uint64_t ignored;
        switch (unit_random(&rng) % 8) {
        case 0:
            mmio_out(&rig, LAPIC_BASE + unit_random(&rng) % 4096, (unsigned)unit_random(&rng) % 9, value);
            break;
        case 1: mmio(&rig, LAPIC_BASE + unit_random(&rng) % 4096, (unsigned)unit_random(&rng) % 9); break;
        case 2: wrmsr(n, 0x800 + reg, value); break;
        case 3: lapic_msr_read(cpus[n].lapic, 0x800 + reg, &ignored); break;
        case 4: wr(reg << 4, (uint32_t)value); break;
        case 5: lapic_set_lint(cpus[n].lapic, (unsigned)value & 1, value & 2); break;
        case 6:
            if (i % 16 == 0) {
                wrmsr(n, 0x1b, 0xfee00000 | (value & 0xfff));
            }
            wrmsr(n, 0x6e0, value);
            break;
        default: clock_advance(rig.clock, value % 100000); break;
        }
        bool pending = lapic_irq_pending(cpus[n].lapic);
        assert_int_equal(lapic_irq_ack(cpus[n].lapic) >= 0, pending);
    }
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(test_registers), T(test_priority),     T(test_eoi_broadcast), T(test_extint),    T(test_lint),
        T(test_icr),       T(test_logical),      T(test_errors),        T(test_apic_base), T(test_x2apic),
        T(test_timer),     T(test_tsc_deadline), T(test_bad_config),    T(test_hammer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
