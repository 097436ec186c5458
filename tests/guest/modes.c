/*
 * Through the modes and back: 64-bit, compatibility, 32-bit protected without paging, with 32-bit paging and
 * PAE paging, 16-bit protected, real mode, and the way back to 64-bit (SDM vol. 3A, 9.8.5 and 9.9).
 *
 * The journey is one routine in low memory (modes.S), as real mode reaches nothing else; it notes what it
 * sees, and C checks.
 */
#include "rt/rt.h"

extern uint32_t m_efer, m_cr0, m_int30, m_gp_error, m_gp_eip, m_paged32, m_pf_cr2, m_pf_error, m_pae,
    m_gp_at[];
extern uint16_t m_int40, m_int40_flags, m_de, m_real_cs, m_wrap_di, m_sp, m_seg, m_high;
extern uint32_t m_big;
void modes_go(void);

void test_main(void)
{
    for (unsigned round = 0; round < 3; round++) {
        static const char *const names[] = {"first time", "second time", "third time"};
        about(names[round]);
        m_int30 = 0, m_int40 = 0, m_de = 0;
        *(volatile uint16_t *)0x100000 =
            *(volatile uint16_t *)0x100000; /* what real mode reads at ffff:0010 */
        modes_go();
        struct {
            uint16_t limit;
            uint64_t base;
        } __attribute__((packed)) idtr = {0xfff, (uint64_t)rt_idt};
        asm volatile("lidt %0" ::"m"(idtr));
        ok(!(m_efer & 0x400), "LMA is clear once paging is off");
        ok((m_cr0 & 0x80000001) == 1, "32-bit protected mode without paging");
        is(m_int30, 1, "INT through a 32-bit gate and IRET");
        ok(m_gp_error == 0xfff8 && m_gp_eip == (uint32_t)(uint64_t)m_gp_at,
           "#GP with its error code and EIP on a 32-bit frame");
        is(m_paged32, 0x600dcafe, "32-bit paging with 4 MiB pages");
        ok(m_pf_cr2 == 0x90000000 && m_pf_error == 2, "#PF under it");
        is(m_pae, 0xfeedbeef, "PAE paging");
        is(m_real_cs, 0, "real mode: CS");
        is(m_int40, 1, "INT through the vector table");
        ok(m_int40_flags & 1, "with the flags on the stack");
        is(m_sp, 0, "INT and IRET balance");
        is(m_de, 1, "#DE in real mode, a fault");
        is(m_seg, 0x1357, "segment * 16 + offset");
        is(m_high, *(uint16_t *)0x100000, "ffff:0010 is 1 MiB with A20 on");
        is(m_wrap_di, 2, "DI wraps at 64 KiB");
        ok(*(uint8_t *)0x7ffff == 0x5a && *(uint8_t *)0x70001 == 0x5a,
           "and the stores wrap within the segment");
        is(m_big, 0x34567812, "32-bit operands in 16-bit code");
        ok(rdmsr(0xc0000080) & 0x400, "long mode again");
    }
    about(NULL);
}
