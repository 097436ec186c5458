/*
 * The local APIC and the I/O APIC in detail: self-IPIs, reserved bits of x2APIC registers, illegal vectors,
 * spurious interrupts, EOI broadcast and remote IRR; and accesses that have one side in a device's page.
 */
#include "rt/rt.h"

#define APIC      0xfee00000ull
#define IOAPIC    0xfec00000ull
#define SVR       0xf0
#define EOI       0xb0
#define ISR       0x100
#define TMR       0x180
#define IRR       0x200
#define ESR       0x280
#define ICR       0x300
#define LVT_TIMER 0x320
#define LVT_LINT0 0x350
#define LVT_ERROR 0x370
#define BOUND     60000000ul

static volatile unsigned hits[256];
static volatile bool send_eoi = true;

static uint32_t apic(unsigned reg)
{
    return *(volatile uint32_t *)(APIC + reg);
}

static void apic_set(unsigned reg, uint32_t value)
{
    *(volatile uint32_t *)(APIC + reg) = value;
}

static uint32_t ioapic(unsigned reg)
{
    *(volatile uint32_t *)IOAPIC = reg;
    return *(volatile uint32_t *)(IOAPIC + 0x10);
}

static void ioapic_set(unsigned reg, uint32_t value)
{
    *(volatile uint32_t *)IOAPIC = reg;
    *(volatile uint32_t *)(IOAPIC + 0x10) = value;
}

static bool on_irq(struct frame *f)
{
    hits[f->vector]++;
    if (send_eoi) {
        apic_set(EOI, 0);
    }
    return true;
}

static void let_in(void)
{
    asm volatile("sti\n nop\n nop\n cli" ::: "memory");
}

static bool bit_of(unsigned reg, unsigned vector)
{
    return apic(reg + (vector / 32) * 0x10) >> (vector % 32) & 1;
}

/* SDM vol. 3A, 11.6.1, 11.5.3: vectors 0-15 are illegal; they set an ESR bit and nothing else. */
static void vectors(void)
{
    apic_set(ESR, 0);
    apic_set(ESR, 0);
    is(apic(ESR), 0, "ESR: a write clears it");
    apic_set(ICR, 0x40005); /* self, vector 5 */
    apic_set(ESR, 0);
    ok(apic(ESR) & 0x60, "an illegal vector in the ICR: an ESR bit");
    let_in();
    is(hits[5], 0, "and no interrupt");
    apic_set(ESR, 0);
}

/* The handler sees ISR; EOI clears the highest. */
static void self_ipi(void)
{
    send_eoi = false;
    hits[0x62] = 0;
    apic_set(ICR, 0x40062);
    ok(bit_of(IRR, 0x62), "self-IPI: pending in IRR");
    ok(!bit_of(TMR, 0x62), "edge-triggered: TMR is clear");
    let_in();
    is(hits[0x62], 1, "delivered");
    ok(bit_of(ISR, 0x62) && !bit_of(IRR, 0x62), "in service");
    apic_set(ICR, 0x40062);
    ok(bit_of(IRR, 0x62) && bit_of(ISR, 0x62), "the same again: pending while in service");
    let_in();
    is(hits[0x62], 1, "and held back by its own class");
    apic_set(EOI, 0);
    ok(!bit_of(ISR, 0x62), "EOI");
    send_eoi = true;
    let_in();
    is(hits[0x62], 2, "then it comes");
    ok(!bit_of(ISR, 0x62), "and is done");
    apic_set(EOI, 0);
    ok(true, "EOI with nothing in service does nothing");
    apic_set(ICR, 0x80062); /* all including self */
    let_in();
    is(hits[0x62], 3, "shorthand: all including self");
    apic_set(ICR, 0xc0062); /* all excluding self */
    let_in();
    is(hits[0x62], 3, "shorthand: all but self");
    is(apic(ICR) >> 12 & 1, 0, "delivery status is idle");
}

/* IOAPIC pin 2 carries the 8254's output; mode 0 keeps it high. SDM vol. 3A, 11.8.5; 82093AA, 3.2.4. */
static void level(void)
{
    const unsigned pin = 2, vector = 0x73;
    send_eoi = false;
    ioapic_set(0x11 + 2 * pin, apic(0x20) & 0xff000000);
    outb(0x43, 0x30), outb(0x40, 0), outb(0x40, 0); /* OUT low */
    ioapic_set(0x10 + 2 * pin, 0x8000 | vector);    /* level, active high */
    ok(!(ioapic(0x10 + 2 * pin) & 0x4000), "remote IRR is clear while the line is low");
    outb(0x43, 0x30), outb(0x40, 200), outb(0x40, 0);
    for (uint64_t i = 0; i < BOUND / 100 && !bit_of(IRR, vector); i++) {
    }
    ok(bit_of(IRR, vector), "the line rises: pending");
    ok(bit_of(TMR, vector), "TMR says level");
    ok(ioapic(0x10 + 2 * pin) & 0x4000, "remote IRR is set");
    ioapic_set(0x10 + 2 * pin, 0x8000 | vector);
    ok(ioapic(0x10 + 2 * pin) & 0x4000, "a write of the entry leaves remote IRR");
    let_in();
    is(hits[vector], 1, "delivered");
    ok(ioapic(0x10 + 2 * pin) & 0x4000, "still set while in service");
    outb(0x43, 0x30), outb(0x40, 0), outb(0x40, 0); /* OUT low */
    apic_set(EOI, 0);
    ok(!(ioapic(0x10 + 2 * pin) & 0x4000), "the EOI's broadcast clears it");
    let_in();
    is(hits[vector], 1, "and with the line low it does not come again");
    /* Masking while it is in service: the EOI still clears remote IRR, and nothing comes again. */
    outb(0x43, 0x30), outb(0x40, 200), outb(0x40, 0);
    for (uint64_t i = 0; i < BOUND / 100 && !bit_of(IRR, vector); i++) {
    }
    let_in();
    is(hits[vector], 2, "the second");
    ioapic_set(0x10 + 2 * pin, 0x18000 | vector);
    apic_set(EOI, 0);
    let_in();
    is(hits[vector], 2, "masked in service: none behind the EOI");
    outb(0x43, 0x30);
    ioapic_set(0x10 + 2 * pin, 0x10000);
    /* An edge-triggered one's EOI is not broadcast. */
    send_eoi = true;
}

/* SDM vol. 3A, 11.9: the vector of SVR is delivered without ISR when there is nothing to deliver any more. */
static void spurious(void)
{
    apic_set(SVR, 0x1ef);
    is(apic(SVR), 0x1ef, "SVR reads back");
    apic_set(SVR, 0x0ef);
    hits[0x64] = 0;
    apic_set(ICR, 0x40064);
    let_in();
    is(hits[0x64], 0, "software-disabled: a self-IPI is not accepted");
    apic_set(SVR, 0x1ff);
    let_in();
    is(hits[0x64], 0, "nor is it kept");
    apic_set(LVT_ERROR, 0x65);
    is(apic(LVT_ERROR), 0x65, "LVT error, enabled");
    hits[0x65] = 0;
    apic_set(ICR, 0x40003);
    let_in();
    is(hits[0x65], 1, "an illegal vector raises the error interrupt");
    apic_set(LVT_ERROR, 0x10000);
}

/* An operand that starts in RAM and ends in a device's page: each part goes where it belongs. */
SNIPPET(m_load, "mov (%rbx), %rax");
SNIPPET(m_store, "mov %rax, (%rbx)");

static void crossing(void)
{
    uint64_t va = RT_ARENA + 0x400000;
    uint8_t *ram = page_alloc();
    map(va, (uint64_t)ram, PTE_P | PTE_W);
    map(va + 0x1000, APIC, PTE_P | PTE_W);
    invlpg(va);
    invlpg(va + 0x1000);
    memset(ram, 0xa5, 4096);
    struct frame f = rt_kernel(m_load);
    f.rbx = va + 0xffc;
    rt_run(&f);
    ok(rt_done(f, m_load) && (uint32_t)f.rax == 0xa5a5a5a5,
       "a load from RAM into a device's page: RAM's half");
    f = rt_kernel(m_store);
    f.rbx = va + 0xffc;
    f.rax = 0x1122334455667788;
    rt_run(&f);
    ok(rt_done(f, m_store) && ram[0xffc] == 0x88 && ram[0xfff] == 0x55, "a store: RAM's half");
    /* The device's side missing: nothing is stored in RAM. */
    *pte_of(va + 0x1000, 1) = 0;
    invlpg(va + 0x1000);
    f = rt_kernel(m_store);
    f.rbx = va + 0xffc;
    f.rax = 0;
    rt_run(&f);
    ok(f.vector == PF && f.cr2 == va + 0x1000 && ram[0xffc] == 0x88,
       "the device's page gone: #PF, and nothing stored");
}

SNIPPET(x_rdmsr, "rdmsr");
SNIPPET(x_wrmsr, "wrmsr");

static void x2_case(const char *name, const void *code, uint32_t msr, uint64_t value, bool good)
{
    struct frame f = rt_kernel(code);
    f.rcx = msr;
    f.rax = (uint32_t)value;
    f.rdx = value >> 32;
    rt_run(&f);
    about(name);
    if (good) {
        ok(f.vector == UD, "is fine");
    } else {
        trapped(&f, GP, 0, code, "#GP(0)");
    }
    about(NULL);
}

/* SDM vol. 3A, 11.12.1.2 and table 11-6. Last: the way back leads through a disabled APIC. */
static void x2apic(void)
{
    if (!HAS_X2APIC()) {
        skip("x2APIC", "not in CPUID");
        return;
    }
    wrmsr(0x1b, rdmsr(0x1b) | 0x400);
    x2_case("x2APIC: read of EOI", x_rdmsr, 0x80b, 0, false);
    x2_case("x2APIC: EOI of 1", x_wrmsr, 0x80b, 1, false);
    x2_case("x2APIC: EOI of 0", x_wrmsr, 0x80b, 0, true);
    x2_case("x2APIC: write of the ID", x_wrmsr, 0x802, 0, false);
    x2_case("x2APIC: write of the version", x_wrmsr, 0x803, 0, false);
    x2_case("x2APIC: write of LDR", x_wrmsr, 0x80d, 0, false);
    x2_case("x2APIC: DFR does not exist", x_rdmsr, 0x80e, 0, false);
    x2_case("x2APIC: the upper ICR does not exist", x_rdmsr, 0x831, 0, false);
    x2_case("x2APIC: write of ISR", x_wrmsr, 0x810, 0, false);
    x2_case("x2APIC: TPR, bit 8", x_wrmsr, 0x808, 0x100, false);
    x2_case("x2APIC: TPR, bit 32", x_wrmsr, 0x808, 1ull << 32, false);
    x2_case("x2APIC: SVR, bit 13", x_wrmsr, 0x80f, 0x21ff, false);
    x2_case("x2APIC: ESR of 1", x_wrmsr, 0x828, 1, false);
    x2_case("x2APIC: ESR of 0", x_wrmsr, 0x828, 0, true);
    x2_case("x2APIC: LVT timer, bit 19", x_wrmsr, 0x832, 0x90040, false);
    x2_case("x2APIC: timer's divisor, bit 2", x_wrmsr, 0x83e, 4, false);
    x2_case("x2APIC: timer's current count is read-only", x_wrmsr, 0x839, 0, false);
    x2_case("x2APIC: ICR, bit 20", x_wrmsr, 0x830, 0x140062, false);
    x2_case("x2APIC: SELF IPI, bit 8", x_wrmsr, 0x83f, 0x162, false);
    x2_case("x2APIC: read of SELF IPI", x_rdmsr, 0x83f, 0, false);
    x2_case("x2APIC: a register beyond the last", x_rdmsr, 0x840, 0, false);
    x2_case("x2APIC: back to xAPIC directly", x_wrmsr, 0x1b, (rdmsr(0x1b) & ~0x400ull), false);
    wrmsr(0x1b, rdmsr(0x1b) & ~0xc00ull);
    x2_case("disabled: x2APIC registers fault", x_rdmsr, 0x802, 0, false);
    x2_case("disabled: x2APIC without enabling", x_wrmsr, 0x1b, (rdmsr(0x1b) | 0x400), false);
    wrmsr(0x1b, rdmsr(0x1b) | 0x800);
    x2_case("xAPIC: x2APIC registers fault", x_rdmsr, 0x802, 0, false);
    x2_case("IA32_APIC_BASE: bit 9", x_wrmsr, 0x1b, rdmsr(0x1b) | 0x200, false);
}

void test_main(void)
{
    for (unsigned v = 32; v < 256; v++) {
        rt_on(v, on_irq);
    }
    rt_on(5, on_irq); /* where an illegal vector gets through, the guest goes on */
    rt_on(3, on_irq);
    outb(0x21, 0xff), outb(0xa1, 0xff);
    apic_set(SVR, 0x1ff);
    vectors();
    self_ipi();
    level();
    spurious();
    crossing();
    x2apic();
}
