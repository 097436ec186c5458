/*
 * Changes of system registers that would leave 64-bit mode in a forbidden way. A machine that lets one
 * through does not survive it, so they have a program of their own.
 */
#include "rt/rt.h"

SNIPPET(r_cr0, "mov %rax, %cr0");
SNIPPET(r_cr4, "mov %rax, %cr4");
SNIPPET(r_cr3, "mov %rax, %cr3");
SNIPPET(r_ltr, "ltr %ax");

static struct frame go(const void *code, uint64_t rax)
{
    struct frame f = rt_kernel(code);
    f.rax = rax;
    rt_run(&f);
    return f;
}

void test_main(void)
{
    uint64_t cr0 = read_cr0(), cr4 = read_cr4();
    struct frame f = go(r_ltr, 0);
    trapped(&f, GP, 0, r_ltr, "LTR of null: #GP(0)");
    if (!has(1, 0, 2, 5)) {
        f = go(r_cr4, cr4 | 1 << 13);
        trapped(&f, GP, 0, r_cr4, "CR4.VMXE without VMX: #GP");
    }
    /* SDM vol. 2B, MOV to control registers. */
    f = go(r_cr3, read_cr3() | 1ull << 52);
    trapped(&f, GP, 0, r_cr3, "CR3 bit 52: #GP");
    f = go(r_cr4, cr4 & ~0x20ull);
    trapped(&f, GP, 0, r_cr4, "CR4.PAE cleared in long mode: #GP");
    f = go(r_cr4, cr4 | 1ull << 40);
    trapped(&f, GP, 0, r_cr4, "CR4 bit 40: #GP");
    f = go(r_cr4, cr4 | 1 << 15);
    trapped(&f, GP, 0, r_cr4, "CR4 bit 15: #GP");
    f = go(r_cr4, cr4 ^ 1 << 12);
    trapped(&f, GP, 0, r_cr4, "CR4.LA57 changed in long mode: #GP");
    f = go(r_cr0, cr0 & ~(1ull << 31));
    trapped(&f, GP, 0, r_cr0, "CR0.PG cleared in 64-bit mode: #GP");
    f = go(r_cr0, cr0 & ~1ull);
    trapped(&f, GP, 0, r_cr0, "CR0.PE cleared with PG set: #GP");
    f = go(r_cr0, cr0 & ~0x80000001ull);
    trapped(&f, GP, 0, r_cr0, "CR0.PE and PG cleared in 64-bit mode: #GP");
}
