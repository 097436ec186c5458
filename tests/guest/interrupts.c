/*
 * Interrupts and timers: LAPIC (xAPIC and x2APIC), IOAPIC, 8259, 8254, RTC; windows, priorities, halts, NMI.
 *
 * Nothing depends on how long something takes: loops wait for a count with a generous bound.
 */
#include "rt/rt.h"

#define APIC   0xfee00000ull
#define IOAPIC 0xfec00000ull
#define BOUND  60000000ul

enum {
    APIC_ID = 0x20,
    APIC_VERSION = 0x30,
    APIC_TPR = 0x80,
    APIC_PPR = 0xa0,
    APIC_EOI = 0xb0,
    APIC_LDR = 0xd0,
    APIC_SVR = 0xf0,
    APIC_ISR = 0x100,
    APIC_IRR = 0x200,
    APIC_ESR = 0x280,
    APIC_ICR_LO = 0x300,
    APIC_ICR_HI = 0x310,
    APIC_LVT_TIMER = 0x320,
    APIC_LVT_LINT0 = 0x350,
    APIC_TIMER_INIT = 0x380,
    APIC_TIMER_COUNT = 0x390,
    APIC_TIMER_DIV = 0x3e0,
};

static bool x2;

static uint32_t apic_read(unsigned reg)
{
    return x2 ? (uint32_t)rdmsr(0x800 + (reg >> 4)) : *(volatile uint32_t *)(APIC + reg);
}

static void apic_write(unsigned reg, uint32_t value)
{
    if (x2) {
        wrmsr(0x800 + (reg >> 4), value);
    } else {
        *(volatile uint32_t *)(APIC + reg) = value;
    }
}

/* Vectors that arrived, in order. */
static volatile unsigned seen_count;
static volatile uint8_t seen[256];
static volatile bool send_eoi = true;
static volatile uint64_t seen_rip;

static bool on_irq(struct frame *f)
{
    if (seen_count < 256) {
        seen[seen_count] = (uint8_t)f->vector;
    }
    seen_rip = f->rip;
    seen_count++;
    if (send_eoi && f->vector != 0xff) {
        apic_write(APIC_EOI, 0);
    }
    return true;
}

static bool wait_for(unsigned n)
{
    for (uint64_t i = 0; i < BOUND && seen_count < n; i++) {
        asm volatile("pause");
    }
    return seen_count >= n;
}

static void self_ipi(uint8_t vector)
{
    if (x2) {
        wrmsr(0x83f, vector); /* SELF IPI (SDM vol. 3A, 10.12.11) */
    } else {
        apic_write(APIC_ICR_LO, 0x40000u | vector); /* shorthand self, fixed */
    }
}

static void pause_a_while(void)
{
    for (unsigned i = 0; i < 2000; i++) {
        (void)apic_read(APIC_ID);
    }
}

#define STI asm volatile("sti" ::: "memory")
#define CLI asm volatile("cli" ::: "memory")

static void start(void)
{
    seen_count = 0;
    send_eoi = true;
}

static void timers(void)
{
    apic_write(APIC_TIMER_DIV, 0xb); /* divide by 1 */
    start();
    apic_write(APIC_LVT_TIMER, 0x40); /* one-shot */
    apic_write(APIC_TIMER_INIT, 100000);
    STI;
    bool came = wait_for(1);
    pause_a_while();
    CLI;
    ok(came && seen[0] == 0x40, "timer, one-shot: comes");
    is(seen_count, 1, "timer, one-shot: once");
    is(apic_read(APIC_TIMER_COUNT), 0, "its count stays at 0");
    start();
    apic_write(APIC_LVT_TIMER, 0x20041); /* periodic */
    apic_write(APIC_TIMER_INIT, 200000);
    STI;
    came = wait_for(20);
    CLI;
    apic_write(APIC_TIMER_INIT, 0);
    ok(came && seen[19] == 0x41, "timer, periodic: comes 20 times");
    STI;
    pause_a_while();
    CLI;
    start();
    STI;
    pause_a_while();
    CLI;
    is(seen_count, 0, "an initial count of 0 stops it");
    start();
    apic_write(APIC_LVT_TIMER, 0x10042); /* masked */
    apic_write(APIC_TIMER_INIT, 1000);
    STI;
    for (uint64_t i = 0; i < BOUND / 100 && apic_read(APIC_TIMER_COUNT); i++) {
    }
    pause_a_while();
    CLI;
    is(seen_count, 0, "timer, masked: does not come");
    is(apic_read(APIC_TIMER_COUNT), 0, "but counts down");
    apic_write(APIC_LVT_TIMER, 0x43);
    apic_write(APIC_TIMER_INIT, 0xffffffff);
    uint32_t a = apic_read(APIC_TIMER_COUNT);
    pause_a_while();
    uint32_t b = apic_read(APIC_TIMER_COUNT);
    ok(b < a, "the current count falls");
    apic_write(APIC_TIMER_INIT, 0);
    is(apic_read(APIC_TIMER_COUNT), 0, "writing 0 stops it");

    if (!HAS_DEADLINE()) {
        skip("TSC-deadline timer", "not in CPUID");
        return;
    }
    /* SDM vol. 3A, 10.5.4.1. */
    start();
    wrmsr(0x6e0, rdtsc() + 1000);
    is(rdmsr(0x6e0), 0, "IA32_TSC_DEADLINE is 0 when the timer is in another mode");
    apic_write(APIC_LVT_TIMER, 0x40044);
    asm volatile("mfence");
    uint64_t deadline = rdtsc() + 3000000;
    wrmsr(0x6e0, deadline);
    STI;
    came = wait_for(1);
    uint64_t at = rdtsc();
    CLI;
    ok(came && seen[0] == 0x44, "TSC deadline: comes");
    ok(at >= deadline, "not before its time");
    is(rdmsr(0x6e0), 0, "the MSR reads 0 afterwards");
    start();
    wrmsr(0x6e0, 1);
    STI;
    came = wait_for(1);
    CLI;
    ok(came, "a deadline in the past comes at once");
    start();
    wrmsr(0x6e0, rdtsc() + (1ull << 40));
    ok(rdmsr(0x6e0) != 0, "an armed deadline reads back");
    wrmsr(0x6e0, 0);
    STI;
    pause_a_while();
    CLI;
    is(seen_count, 0, "a deadline of 0 disarms");
    apic_write(APIC_LVT_TIMER, 0x10040);
}

static void priorities(void)
{
    /* SDM vol. 3A, 10.8.3. */
    start();
    self_ipi(0x51);
    self_ipi(0x91);
    self_ipi(0x71);
    ok(apic_read(APIC_IRR + 0x40) >> 17 & 1, "IRR has a pending vector (0x51)");
    is(seen_count, 0, "nothing with IF clear");
    STI;
    wait_for(3);
    CLI;
    ok(seen_count == 3 && seen[0] == 0x91 && seen[1] == 0x71 && seen[2] == 0x51,
       "the highest vector comes first");
    start();
    self_ipi(0x55);
    self_ipi(0x55);
    STI;
    pause_a_while();
    CLI;
    is(seen_count, 1, "one vector twice while pending: once");
    /* TPR and CR8 (10.8.6). */
    start();
    apic_write(APIC_TPR, 0x60);
    is(read_cr8(), 6, "CR8 shows TPR");
    self_ipi(0x61);
    self_ipi(0x72);
    STI;
    wait_for(1);
    pause_a_while();
    CLI;
    ok(seen_count == 1 && seen[0] == 0x72, "TPR holds back its class and below");
    is(apic_read(APIC_PPR), 0x60, "PPR is TPR with nothing in service");
    STI;
    write_cr8(5);
    wait_for(2);
    CLI;
    ok(seen_count == 2 && seen[1] == 0x61, "lowering CR8 lets it in");
    is(apic_read(APIC_TPR) & 0xff, 0x50, "TPR shows CR8");
    write_cr8(0);
    /* In service without EOI. */
    start();
    send_eoi = false;
    self_ipi(0x81);
    STI;
    wait_for(1);
    self_ipi(0x75);
    self_ipi(0x85);
    pause_a_while();
    is(seen_count, 1, "while 0x81 is in service, 0x75 and 0x85 wait");
    is(apic_read(APIC_PPR), 0x80, "PPR is the class in service");
    ok(apic_read(APIC_ISR + 0x40) >> 1 & 1, "ISR has 0x81");
    self_ipi(0x92);
    wait_for(2);
    ok(seen_count == 2 && seen[1] == 0x92, "a higher class interrupts");
    apic_write(APIC_EOI, 0);
    pause_a_while();
    is(seen_count, 2, "EOI of 0x92 lets nothing else in");
    send_eoi = true;
    apic_write(APIC_EOI, 0);
    wait_for(4);
    CLI;
    ok(seen_count == 4 && seen[2] == 0x85 && seen[3] == 0x75, "EOI of 0x81 lets in the others");
    is(apic_read(APIC_PPR), 0, "PPR is 0 again");
}

/* The byte behind the shadowed instruction must have run before the interrupt. */
SNIPPET(i_sti, "mov $1, %ebx\n sti\n i_sti_next: mov $2, %ebx\n i_sti_after: mov $3, %ebx\n nop\n nop\n cli");
LABEL(i_sti_after);
SNIPPET(i_movss, "mov %ss, %eax\n sti\n nop\n cli\n mov %ecx, %edx\n sti\n mov %eax, %ss\n i_movss_at: nop\n "
                 "i_movss_after: nop\n cli");
SNIPPET(i_sti_cli, "sti\n cli\n nop");
SNIPPET(i_popf, "pushq $0x202\n popfq\n i_popf_next: nop\n nop\n cli");
LABEL(i_popf_next);
SNIPPET(
    i_iret,
    "mov %ss, %eax\n push %rax\n lea 8(%rsp), %rax\n push %rax\n pushq $0x202\n mov %cs, %eax\n push %rax\n"
    "lea 1f(%rip), %rax\n push %rax\n iretq\n 1: nop\n i_iret_after: nop\n cli");
LABEL(i_iret_after);
SNIPPET(i_hlt, "sti\n hlt\n i_hlt_next: cli");
LABEL(i_hlt_next);

static void windows(void)
{
    struct frame f;
    /* SDM vol. 2B, STI; vol. 3A, 6.8.3. */
    start();
    self_ipi(0x61);
    f = rt_kernel(i_sti);
    rt_run(&f);
    ok(rt_done(f, i_sti) && seen_count == 1, "STI lets an interrupt in");
    is(seen_rip, (uint64_t)i_sti_after, "one instruction later");
    start();
    self_ipi(0x61);
    f = rt_kernel(i_sti_cli);
    rt_run(&f);
    is(seen_count, 0, "STI and CLI: none gets in");
    f = rt_kernel(i_popf);
    rt_run(&f);
    ok(seen_count == 1 && seen_rip == (uint64_t)i_popf_next, "POPF that sets IF: at once");
    start();
    self_ipi(0x61);
    f = rt_kernel(i_iret);
    rt_run(&f);
    ok(seen_count == 1 && seen_rip == (uint64_t)i_iret_after - 1, "IRET that sets IF: at once");
    start();
    f = rt_kernel(i_movss);
    rt_run(&f);
    ok(rt_done(f, i_movss), "STI before MOV SS");
    /* HLT. */
    start();
    self_ipi(0x62);
    f = rt_kernel(i_hlt);
    rt_run(&f);
    ok(seen_count == 1 && seen_rip == (uint64_t)i_hlt_next,
       "STI; HLT with one pending: it wakes, RIP behind the HLT");
    start();
    apic_write(APIC_LVT_TIMER, 0x45);
    apic_write(APIC_TIMER_INIT, 2000000);
    f = rt_kernel(i_hlt);
    rt_run(&f);
    ok(seen_count == 1 && seen[0] == 0x45 && rt_done(f, i_hlt), "HLT is left for the timer");
    bool right = true;
    for (unsigned i = 0; i < 50; i++) {
        start();
        apic_write(APIC_TIMER_INIT, 20000 + i * 97);
        f = rt_kernel(i_hlt);
        rt_run(&f);
        right &= seen_count == 1 && rt_done(f, i_hlt);
    }
    ok(right, "50 halts, each left for the timer");
    /* An interrupt from user mode lands on RSP0 and returns. */
    extern char i_spin[], i_spin_end[];
    start();
    apic_write(APIC_TIMER_INIT, 500000);
    f = rt_user(i_spin);
    f.rflags |= FL_IF;
    f.rbx = rt_alias((void *)&seen_count);
    f.rcx = BOUND;
    rt_run(&f);
    ok(rt_done_at(&f, i_spin_end) && seen_count == 1, "a timer interrupt in a user-mode loop");
    apic_write(APIC_LVT_TIMER, 0x10040);
}
SNIPPET(i_spin, "1: cmpl $0, (%rbx)\n jne 2f\n dec %rcx\n jnz 1b\n 2:");

static volatile unsigned nmis;
static volatile uint64_t nmi_rip;
static volatile unsigned nmis_inside;

static bool on_nmi(struct frame *f)
{
    nmis++;
    nmi_rip = f->rip;
    return true;
}

static void send_nmi(void)
{
    /* Self with the physical destination: the shorthand "self" allows fixed delivery only (SDM vol.
     * 3A, 10.6.1). */
    if (x2) {
        wrmsr(0x830, (uint64_t)apic_read(APIC_ID) << 32 | 0x400);
    } else {
        apic_write(APIC_ICR_HI, apic_read(APIC_ID));
        apic_write(APIC_ICR_LO, 0x400);
    }
}

static bool on_nmi_nested(struct frame *f)
{
    nmis++;
    if (nmis == 1) {
        send_nmi(); /* blocked until IRET (SDM vol. 3A, 6.7.1) */
        pause_a_while();
        nmis_inside = nmis;
    }
    return true;
}

static void nmi(void)
{
    nmis = 0;
    rt_on(NMI, on_nmi);
    send_nmi();
    for (uint64_t i = 0; i < BOUND / 1000 && !nmis; i++) {
        asm volatile("pause");
    }
    is(nmis, 1, "NMI by the ICR comes with IF clear");
    nmis = 0;
    nmis_inside = 99;
    rt_on(NMI, on_nmi_nested);
    rt_gate(NMI, (uint64_t)rt_vectors + 16 * NMI, RT_KCODE64, 0x8e, 0);
    send_nmi();
    for (uint64_t i = 0; i < BOUND / 1000 && nmis < 2; i++) {
        asm volatile("pause");
    }
    is(nmis_inside, 1, "a second NMI waits inside the handler");
    is(nmis, 2, "and comes after IRET");
    rt_gate_default(NMI);
    rt_on(NMI, on_nmi);
    nmis = 0;
}

static void spurious(void)
{
    /* SDM vol. 3A, 10.9: an interrupt that is masked between request and acknowledge. Rarely to be had on
     * purpose; the vector must be settable and must not need EOI. */
    is(apic_read(APIC_SVR) & 0xff, 0xff, "spurious vector reads back");
    start();
    apic_write(APIC_SVR, 0x0ff); /* software-disabled: LVTs masked */
    ok(apic_read(APIC_LVT_TIMER) & 0x10000, "software disable masks the LVTs");
    apic_write(APIC_LVT_TIMER, 0x40);
    ok(apic_read(APIC_LVT_TIMER) & 0x10000, "and they can't be unmasked");
    apic_write(APIC_SVR, 0x1ff);
    apic_write(APIC_LVT_TIMER, 0x10040);
    ok((apic_read(APIC_VERSION) & 0xff) >= 0x10, "version of an integrated APIC");
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

static void pit_oneshot(uint16_t count, uint8_t mode)
{
    outb(0x43, (uint8_t)(0x30 | mode << 1));
    outb(0x40, (uint8_t)count);
    outb(0x40, (uint8_t)(count >> 8));
}

static bool on_pic(struct frame *f)
{
    seen[seen_count & 0xff] = (uint8_t)f->vector;
    seen_count++;
    if (f->vector >= 0x28) {
        outb(0xa0, 0x20);
    }
    outb(0x20, 0x20);
    return true;
}

static void pic_init(void)
{
    outb(0x20, 0x11), outb(0x21, 0x20), outb(0x21, 4), outb(0x21, 1);
    outb(0xa0, 0x11), outb(0xa1, 0x28), outb(0xa1, 2), outb(0xa1, 1);
    outb(0x21, 0xff), outb(0xa1, 0xff);
}

static uint8_t cmos(uint8_t reg)
{
    outb(0x70, reg);
    return inb(0x71);
}

static volatile unsigned rtc_c;
static bool on_rtc(struct frame *f)
{
    rtc_c |= cmos(0x0c);
    return on_pic(f);
}

static void pic(void)
{
    pic_init();
    for (unsigned v = 0x20; v < 0x30; v++) {
        rt_on(v, on_pic);
    }
    is(inb(0x21), 0xff, "8259: mask reads back");
    apic_write(APIC_LVT_LINT0, 0x700); /* ExtINT */
    start();
    outb(0x21, 0xfe);
    pit_oneshot(2000, 0);
    STI;
    bool came = wait_for(1);
    CLI;
    ok(came && seen[0] == 0x20, "8254 channel 0, mode 0, by the 8259: comes");
    STI;
    pause_a_while();
    CLI;
    is(seen_count, 1, "once");
    start();
    pit_oneshot(2000, 2);
    STI;
    came = wait_for(10);
    CLI;
    ok(came, "8254, mode 2: comes 10 times");
    outb(0x21, 0xff);
    start();
    STI;
    pause_a_while();
    CLI;
    is(seen_count, 0, "masked at the 8259: none");
    /* Latched count. */
    outb(0x43, 0);
    unsigned a = inb(0x40);
    a |= (unsigned)inb(0x40) << 8;
    ok(a <= 2000, "8254: the latched count is within the reload value");
    /* RTC periodic interrupt by the slave (IRQ 8). */
    rt_on(0x28, on_rtc);
    start();
    rtc_c = 0;
    outb(0x70, 0x8a), outb(0x71, 0x26);
    uint8_t b = cmos(0x0b);
    outb(0x70, 0x8b), outb(0x71, b | 0x40);
    cmos(0x0c);
    outb(0x21, 0xfb), outb(0xa1, 0xfe);
    STI;
    came = wait_for(5);
    CLI;
    outb(0x70, 0x8b), outb(0x71, b & ~0x70);
    cmos(0x0c);
    outb(0x70, 0x0d);
    ok(came && seen[0] == 0x28, "RTC periodic interrupt by the slave 8259: comes 5 times");
    ok((rtc_c & 0xc0) == 0xc0, "register C says so");
    outb(0x21, 0xff), outb(0xa1, 0xff);
    /* HLT is left for the PIC too. */
    start();
    outb(0x21, 0xfe);
    pit_oneshot(3000, 0);
    struct frame f = rt_kernel(i_hlt);
    rt_run(&f);
    ok(rt_done(f, i_hlt) && seen_count == 1, "HLT is left for the 8259");
    outb(0x21, 0xff);
    apic_write(APIC_LVT_LINT0, 0x10700);
    for (unsigned v = 0x20; v < 0x30; v++) {
        rt_on(v, on_irq);
    }
}

static volatile unsigned level_hits;
static bool on_level(struct frame *f)
{
    level_hits++;
    seen_count++;
    if (level_hits == 3) {
        ioapic_set(0x10 + 2 * 2, 0x10000); /* mask; the line stays high */
    }
    apic_write(APIC_EOI, 0);
    return true;
}

static void io_apic(void)
{
    ok((ioapic(1) >> 16 & 0xff) >= 23, "IOAPIC: at least 24 entries");
    uint32_t id = x2 ? apic_read(APIC_ID) << 24 : apic_read(APIC_ID);
    /* PIT on pin 2 (ISA IRQ 0), edge. */
    ioapic_set(0x10 + 2 * 2 + 1, id);
    ioapic_set(0x10 + 2 * 2, 0xa0);
    is(ioapic(0x10 + 2 * 2) & 0x1a7ff, 0xa0, "redirection entry reads back");
    rt_on(0xa0, on_irq);
    start();
    pit_oneshot(2000, 2);
    STI;
    bool came = wait_for(10);
    CLI;
    ok(came && seen[0] == 0xa0, "IOAPIC, edge: comes 10 times");
    ioapic_set(0x10 + 2 * 2, 0x10000);
    /* One more may have come between the tenth and the mask: what the local APIC holds in IRR, a mask at the
     * I/O APIC does not take back (SDM vol. 3A, 11.8.4). */
    STI;
    pause_a_while();
    CLI;
    start();
    STI;
    pause_a_while();
    CLI;
    is(seen_count, 0, "masked: none");
    /* Level: mode 0 leaves OUT high when it is reached, so it comes again after each EOI. */
    level_hits = 0;
    rt_on(0xa1, on_level);
    start();
    pit_oneshot(0, 0); /* OUT is low from here on */
    ioapic_set(0x10 + 2 * 2, 0x80a1);
    pit_oneshot(3000, 0);
    STI;
    came = wait_for(3);
    pause_a_while();
    CLI;
    ok(came, "IOAPIC, level: comes again after each EOI while the line is high");
    is(level_hits, 3, "until it is masked");
    pit_oneshot(0, 2);
}

static void everything(const char *name)
{
    about(name);
    apic_write(APIC_SVR, 0x1ff);
    timers();
    priorities();
    windows();
    nmi();
    spurious();
    pic();
    io_apic();
    about(NULL);
}

void test_main(void)
{
    for (unsigned v = 32; v < 256; v++) {
        rt_on(v, on_irq);
    }
    uint64_t base = rdmsr(0x1b);
    is(base & 0xfffffffffffff000ull, APIC, "IA32_APIC_BASE: address");
    ok(base & 0x800, "enabled");
    ok(base & 0x100, "the boot processor");
    everything("xAPIC");
    if (!HAS_X2APIC()) {
        skip("x2APIC", "not in CPUID");
        return;
    }
    uint32_t id = apic_read(APIC_ID) >> 24;
    wrmsr(0x1b, base | 0x400);
    ok(rdmsr(0x1b) & 0x400, "x2APIC enabled");
    x2 = true;
    is(apic_read(APIC_ID), id, "x2APIC: the ID is the same, not shifted");
    everything("x2APIC");
}
