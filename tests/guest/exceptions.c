/*
 * Exceptions in 64-bit mode: vector, error code, RIP, CR2, frame, stacks, priorities, double faults, and that
 * a faulting instruction leaves no trace.
 */
#include "rt/rt.h"

#define BAD          ((uint64_t)RT_ARENA + 0x5000) /* never mapped */
#define NONCANONICAL 0x0000800000000000ull

/* Two pages of which the second is missing: accesses that cross into it fault. */
#define EDGE ((uint64_t)RT_ARENA + 0x200000)
static uint8_t *edge_page; /* the frame behind EDGE */

/* --- plain faults --- */

SNIPPET(x_de, "mov $5, %eax\n xor %edx, %edx\n xor %ecx, %ecx\n de_at: div %ecx");
LABEL(de_at);
SNIPPET(x_de_big, "mov $2, %edx\n mov $1, %ecx\n de2_at: div %ecx");
LABEL(de2_at);
SNIPPET(x_idiv, "mov $0x80000000, %eax\n cltd\n mov $-1, %ecx\n idiv_at: idiv %ecx");
LABEL(idiv_at);
SNIPPET(x_idiv64, "mov $1, %eax\n shl $63, %rax\n cqto\n mov $-1, %rcx\n idiv64_at: idiv %rcx");
LABEL(idiv64_at);
SNIPPET(x_ud, "nop\n ud_at: ud2");
LABEL(ud_at);
SNIPPET(x_ud_lock, "ud_lock_at: .byte 0xf0, 0x01, 0xc8"); /* lock add %ecx, %eax */
LABEL(ud_lock_at);
SNIPPET(x_ud_64, "ud_64_at: .byte 0x06"); /* push %es */
LABEL(ud_64_at);
SNIPPET(x_ud1, "ud1_at: .byte 0x0f, 0xb9, 0xc0");
LABEL(ud1_at);
SNIPPET(x_ud_movcs, "ud_cs_at: .byte 0x8e, 0xc8"); /* mov %eax, %cs */
LABEL(ud_cs_at);
SNIPPET(x_long,
        "long_at: .byte 0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x90");
LABEL(long_at);
SNIPPET(x_long15, ".byte 0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x90");
SNIPPET(x_nc, "nc_at: mov (%rbx), %eax");
LABEL(nc_at);
SNIPPET(x_nc_ss, "nc_ss_at: mov (%rbp), %eax");
LABEL(nc_ss_at);
SNIPPET(x_nc_rsp, "mov %rbx, %rsp\n nc_rsp_at: mov 8(%rsp), %eax");
LABEL(nc_rsp_at);
SNIPPET(x_nc_push, "mov %rbx, %rsp\n nc_push_at: push %rax");
LABEL(nc_push_at);
SNIPPET(x_nc_ds,
        "nc_ds_at: mov %ds:(%rbp), %eax"); /* the override does not make it a data reference in 64-bit mode */
LABEL(nc_ds_at);
SNIPPET(x_nc_jmp, "nc_jmp_at: jmp *%rbx");
LABEL(nc_jmp_at);
SNIPPET(x_nc_call, "nc_call_at: call *%rbx");
LABEL(nc_call_at);
SNIPPET(x_nc_ret, "push %rbx\n nc_ret_at: ret");
LABEL(nc_ret_at);
SNIPPET(x_pf_jmp, "jmp *%rbx");
SNIPPET(x_pf_r, "pf_r_at: mov (%rbx), %eax");
LABEL(pf_r_at);
SNIPPET(x_pf_w, "pf_w_at: mov %eax, (%rbx)");
LABEL(pf_w_at);
SNIPPET(x_pf_rmw, "pf_rmw_at: addl $1, (%rbx)");
LABEL(pf_rmw_at);
SNIPPET(x_gp_null, "mov $RT, %eax\n gp_null_at: mov %ax, %ds");
asm(".set RT, 0xfff8\n");
LABEL(gp_null_at);
SNIPPET(x_gp_ss, "xor %eax, %eax\n mov $3, %eax\n gp_ss_at: mov %ax, %ss");
LABEL(gp_ss_at);
SNIPPET(x_np, "mov $0x60, %eax\n np_at: mov %ax, %ds");
LABEL(np_at);
SNIPPET(x_ss_np, "mov $0x60, %eax\n ss_np_at: mov %ax, %ss");
LABEL(ss_np_at);
SNIPPET(x_int3, "int3_at: int3\n int3_next: nop");
LABEL(int3_next);
SNIPPET(x_int1, ".byte 0xf1\n int1_next: nop");
LABEL(int1_next);
SNIPPET(x_intn, "int $0x80\n intn_next: nop");
LABEL(intn_next);
SNIPPET(x_int13, "int $13\n int13_next: nop");
LABEL(int13_next);
SNIPPET(x_nm, "nm_at: fld1");
LABEL(nm_at);
SNIPPET(x_nm_sse, "nm_sse_at: addps %xmm0, %xmm0");
LABEL(nm_sse_at);
SNIPPET(x_mf, "fninit\n mov $0x37b, %eax\n push %rax\n fldcw (%rsp)\n fld1\n fldz\n fdivrp\n mf_at: fwait");
LABEL(mf_at);
SNIPPET(x_xm, "movl $0x1d80, -8(%rsp)\n ldmxcsr -8(%rsp)\n mov $0x3f800000, %eax\n movd %eax, %xmm0\n xorps "
              "%xmm1, %xmm1\n"
              "xm_at: divss %xmm1, %xmm0");
LABEL(xm_at);
SNIPPET(x_mxcsr, "movl $0xffffffff, -8(%rsp)\n mxcsr_at: ldmxcsr -8(%rsp)");
LABEL(mxcsr_at);
SNIPPET(x_movaps, "movaps_at: movaps 1(%rbx), %xmm0");
LABEL(movaps_at);
SNIPPET(x_cli, "cli_at: cli");
LABEL(cli_at);
SNIPPET(x_hlt, "hlt_at: hlt");
LABEL(hlt_at);
SNIPPET(x_in, "in_at: inb $0x80, %al");
LABEL(in_at);
SNIPPET(x_cr, "cr_at: mov %cr0, %rax");
LABEL(cr_at);
SNIPPET(x_lgdt, "lgdt_at: lgdt (%rbx)");
LABEL(lgdt_at);
SNIPPET(x_wrmsr, "wrmsr_at: wrmsr");
LABEL(wrmsr_at);
SNIPPET(x_invlpg, "invlpg_at: invlpg (%rbx)");
LABEL(invlpg_at);
SNIPPET(x_swapgs, "swapgs_at: swapgs");
LABEL(swapgs_at);
SNIPPET(x_ac, "ac_at: mov 1(%rbx), %eax");
LABEL(ac_at);
SNIPPET(x_ac8, "ac8_at: mov 4(%rbx), %rax");
LABEL(ac8_at);
SNIPPET(x_ac_byte, "mov 1(%rbx), %al");

static struct frame run_rbx(struct frame f, uint64_t rbx)
{
    f.rbx = rbx;
    rt_run(&f);
    return f;
}

static void faults(void)
{
    struct frame f;
    /* SDM vol. 3A, 6.15: faults report the instruction itself. */
    f = run_rbx(rt_kernel(x_de), 0);
    trapped(&f, DE, 0, de_at, "#DE: division by zero");
    is(f.rax, 5, "#DE leaves EAX");
    f = run_rbx(rt_kernel(x_de_big), 0);
    trapped(&f, DE, 0, de2_at, "#DE: quotient too large");
    is(f.rdx, 2, "#DE leaves EDX");
    f = run_rbx(rt_kernel(x_idiv), 0);
    trapped(&f, DE, 0, idiv_at, "#DE: most negative by -1, 32 bits");
    f = run_rbx(rt_user(x_idiv64), 0);
    trapped(&f, DE, 0, idiv64_at, "#DE: most negative by -1, 64 bits, in user mode");
    is(f.cs, RT_UCODE64, "the frame has the user's CS");
    is(f.ss, RT_UDATA, "the frame has the user's SS");
    f = run_rbx(rt_kernel(x_ud), 0);
    trapped(&f, UD, 0, ud_at, "#UD: ud2");
    f = run_rbx(rt_kernel(x_ud1), 0);
    trapped(&f, UD, 0, ud1_at, "#UD: ud1");
    f = run_rbx(rt_kernel(x_ud_lock), 0);
    trapped(&f, UD, 0, ud_lock_at, "#UD: lock with a register destination");
    f = run_rbx(rt_kernel(x_ud_64), 0);
    trapped(&f, UD, 0, ud_64_at, "#UD: push es in 64-bit mode");
    f = run_rbx(rt_kernel(x_ud_movcs), 0);
    trapped(&f, UD, 0, ud_cs_at, "#UD: mov to cs");
    /* SDM vol. 2A, 2.3.11: 15 bytes at most. */
    f = run_rbx(rt_kernel(x_long), 0);
    trapped(&f, GP, 0, long_at, "#GP: an instruction of 16 bytes");
    f = run_rbx(rt_kernel(x_long15), 0);
    ok(rt_done(f, x_long15), "an instruction of 15 bytes is fine");

    /* SDM vol. 1, 3.3.7.1: non-canonical addresses. */
    f = run_rbx(rt_kernel(x_nc), NONCANONICAL);
    trapped(&f, GP, 0, nc_at, "#GP: non-canonical data address");
    f = rt_kernel(x_nc_ss);
    f.rbp = NONCANONICAL;
    rt_run(&f);
    trapped(&f, SS, 0, nc_ss_at, "#SS: non-canonical address by RBP");
    f = run_rbx(rt_kernel(x_nc_rsp), NONCANONICAL);
    trapped(&f, SS, 0, nc_rsp_at, "#SS: non-canonical address by RSP");
    f = run_rbx(rt_kernel(x_nc_push), NONCANONICAL + 8);
    trapped(&f, SS, 0, nc_push_at, "#SS: push to a non-canonical address");
    is(f.rsp, NONCANONICAL + 8, "the push left RSP");
    f = run_rbx(rt_kernel(x_nc), 0x00007ffffffffffdull);
    trapped(&f, f.vector == PF ? PF : GP, 0, nc_at,
            "#GP or #PF: an access that reaches across the canonical hole");
    f = run_rbx(rt_kernel(x_nc_jmp), NONCANONICAL);
    trapped(&f, GP, 0, nc_jmp_at, "#GP at the jump to a non-canonical address");
    f = run_rbx(rt_kernel(x_nc_call), NONCANONICAL);
    trapped(&f, GP, 0, nc_call_at, "#GP at the call of a non-canonical address");
    is(f.rsp, rt_kernel(0).rsp, "the call left RSP");
    f = run_rbx(rt_kernel(x_nc_ret), NONCANONICAL);
    trapped(&f, GP, 0, nc_ret_at, "#GP at the return to a non-canonical address");
    is(f.rsp, rt_kernel(0).rsp - 8, "the return left RSP");

    /* SDM vol. 3A, 6.15, interrupt 14, and 4.7. */
    f = run_rbx(rt_kernel(x_pf_r), BAD + 3);
    trapped(&f, PF, 0, pf_r_at, "#PF: supervisor read");
    is(f.cr2, BAD + 3, "CR2 is the byte's address");
    f = run_rbx(rt_kernel(x_pf_w), BAD);
    trapped(&f, PF, 2, pf_w_at, "#PF: supervisor write");
    f = run_rbx(rt_kernel(x_pf_rmw), BAD);
    trapped(&f, PF, 2, pf_rmw_at, "#PF: a read-modify-write is a write");
    f = run_rbx(rt_user(x_pf_r), BAD);
    trapped(&f, PF, 4, pf_r_at, "#PF: user read");
    f = run_rbx(rt_user(x_pf_w), BAD);
    trapped(&f, PF, 6, pf_w_at, "#PF: user write");
    f = run_rbx(rt_kernel(x_pf_jmp), BAD);
    trapped(&f, PF, 0x10, (void *)BAD, "#PF: fetch");
    is(f.cr2, BAD, "CR2 of a fetch is RIP");

    /* SDM vol. 3A, 6.13: error codes with a selector. */
    f = run_rbx(rt_kernel(x_gp_null), 0);
    trapped(&f, GP, 0xfff8, gp_null_at, "#GP(selector): behind the table's limit");
    f = run_rbx(rt_kernel(x_gp_ss), 0);
    trapped(&f, GP, 0, gp_ss_at, "#GP(0): null SS with RPL 3 at CPL 0");
    rt_gdt[RT_FREE / 8] = 0x00cf13000000ffff; /* data, not present */
    f = run_rbx(rt_kernel(x_np), 0);
    trapped(&f, NP, RT_FREE, np_at, "#NP(selector): segment not present");
    f = run_rbx(rt_kernel(x_ss_np), 0);
    trapped(&f, SS, RT_FREE, ss_np_at, "#SS(selector): stack segment not present");
    rt_gdt[RT_FREE / 8] = 0;
}

static void traps(void)
{
    /* SDM vol. 3A, 6.5: traps report the next instruction. */
    struct frame f = rt_kernel(x_int3);
    rt_run(&f);
    trapped(&f, BP, 0, int3_next, "#BP is a trap");
    f = rt_kernel(x_int1);
    rt_run(&f);
    trapped(&f, DB, 0, int1_next, "INT1 is a trap");
    f = rt_kernel(x_intn);
    rt_run(&f);
    trapped(&f, 0x80, 0, intn_next, "INT n reports the next instruction");
    f = rt_kernel(x_int13);
    /* INT 13 pushes no error code (SDM vol. 3A, 6.4.2): the stub reads the saved RIP as one. */
    rt_run(&f);
    ok(f.vector == GP && f.error == (uint64_t)int13_next && f.rip == RT_KCODE64,
       "INT 13 pushes no error code");

    /* INT n, INT3 from ring 3 (SDM vol. 3A, 6.12.1.2). */
    f = rt_user(x_int3);
    rt_run(&f);
    trapped(&f, GP, 3 * 8 + 2, (void *)x_int3, "INT3 at CPL 3 with a gate of DPL 0: #GP(vector*8+2)");
    rt_gate_dpl(BP, 3);
    f = rt_user(x_int3);
    rt_run(&f);
    trapped(&f, BP, 0, int3_next, "INT3 at CPL 3 with a gate of DPL 3");
    rt_gate_dpl(BP, 0);
    f = rt_user(x_intn);
    rt_run(&f);
    trapped(&f, GP, 0x80 * 8 + 2, (void *)x_intn, "INT n at CPL 3 with a gate of DPL 0: #GP");
    /* INT1 ignores DPL. */
    f = rt_user(x_int1);
    rt_run(&f);
    trapped(&f, DB, 0, int1_next, "INT1 at CPL 3 does not look at the gate's DPL");

    /* Gate not present: #NP(vector*8+2); from an external event EXT would be set. */
    rt_idt[0x80].lo &= ~(1ull << 47);
    f = rt_kernel(x_intn);
    rt_run(&f);
    trapped(&f, NP, 0x80 * 8 + 2, (void *)x_intn, "INT n through a gate that is not present: #NP");
    rt_idt[0x80].lo |= 1ull << 47;
    rt_gate(0x80, (uint64_t)rt_vectors, RT_KCODE64, 0x85, 0); /* a task gate does not exist here */
    f = rt_kernel(x_intn);
    rt_run(&f);
    trapped(&f, GP, 0x80 * 8 + 2, (void *)x_intn, "INT n through a wrong type of gate: #GP");
    rt_gate(0x80, (uint64_t)rt_vectors, RT_KDATA, 0x8e, 0);
    f = rt_kernel(x_intn);
    rt_run(&f);
    trapped(&f, GP, RT_KDATA, (void *)x_intn, "INT n to a data segment: #GP(selector)");
    rt_gate(0x80, (uint64_t)rt_vectors, 0, 0x8e, 0);
    f = rt_kernel(x_intn);
    rt_run(&f);
    trapped(&f, GP, 0, (void *)x_intn, "INT n to a null selector: #GP(0)");
    rt_gate_default(0x80);
}

static void fpu(void)
{
    struct frame f;
    /* SDM vol. 3A, 2.5: CR0.TS and CR0.EM. */
    write_cr0(read_cr0() | 8);
    f = rt_kernel(x_nm);
    rt_run(&f);
    trapped(&f, NM, 0, nm_at, "#NM: x87 with CR0.TS");
    f = rt_user(x_nm_sse);
    rt_run(&f);
    trapped(&f, NM, 0, nm_sse_at, "#NM: SSE with CR0.TS");
    asm volatile("clts");
    write_cr0(read_cr0() | 4);
    f = rt_kernel(x_nm);
    rt_run(&f);
    trapped(&f, NM, 0, nm_at, "#NM: x87 with CR0.EM");
    f = rt_kernel(x_nm_sse);
    rt_run(&f);
    trapped(&f, UD, 0, nm_sse_at, "#UD: SSE with CR0.EM");
    write_cr0(read_cr0() & ~4ull);
    write_cr4(read_cr4() & ~0x200ull);
    f = rt_kernel(x_nm_sse);
    rt_run(&f);
    trapped(&f, UD, 0, nm_sse_at, "#UD: SSE without CR4.OSFXSR");
    write_cr4(read_cr4() | 0x200);
    /* #MF comes at the next waiting instruction (SDM vol. 3A, 6.15, interrupt 16). */
    f = rt_kernel(x_mf);
    rt_run(&f);
    trapped(&f, MF, 0, mf_at, "#MF at the next waiting x87 instruction");
    asm volatile("fnclex; fninit");
    f = rt_user(x_xm);
    rt_run(&f);
    trapped(&f, XM, 0, xm_at, "#XM: unmasked SSE division by zero");
    write_cr4(read_cr4() & ~0x400ull);
    f = rt_user(x_xm);
    rt_run(&f);
    trapped(&f, UD, 0, xm_at, "#UD instead of #XM without CR4.OSXMMEXCPT");
    write_cr4(read_cr4() | 0x400);
    uint32_t mxcsr = 0x1f80;
    asm volatile("ldmxcsr %0" ::"m"(mxcsr));
    f = rt_kernel(x_mxcsr);
    rt_run(&f);
    trapped(&f, GP, 0, mxcsr_at, "#GP: reserved bits of MXCSR");
    f = run_rbx(rt_kernel(x_movaps), (uint64_t)edge_page);
    trapped(&f, GP, 0, movaps_at, "#GP: MOVAPS of an unaligned address");
}

static void privileged(void)
{
    static const struct {
        const char *code, *at, *text;
    } cases[] = {
        {x_cli, cli_at, "#GP: cli at CPL 3, IOPL 0"},
        {x_hlt, hlt_at, "#GP: hlt at CPL 3"},
        {x_in, in_at, "#GP: in at CPL 3"},
        {x_cr, cr_at, "#GP: mov from cr0 at CPL 3"},
        {x_lgdt, lgdt_at, "#GP: lgdt at CPL 3"},
        {x_wrmsr, wrmsr_at, "#GP: wrmsr at CPL 3"},
        {x_invlpg, invlpg_at, "#GP: invlpg at CPL 3"},
        {x_swapgs, swapgs_at, "#GP: swapgs at CPL 3"},
    };
    for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct frame f = run_rbx(rt_user(cases[i].code), rt_alias(edge_page));
        trapped(&f, GP, 0, cases[i].at, cases[i].text);
    }
}

static void alignment(void)
{
    /* SDM vol. 3A, 6.15, interrupt 17: CPL 3, CR0.AM and EFLAGS.AC. */
    uint64_t data = rt_alias(edge_page);
    struct frame f = rt_user(x_ac);
    f.rflags |= FL_AC;
    f = run_rbx(f, data);
    ok(rt_done(f, x_ac), "no #AC without CR0.AM");
    write_cr0(read_cr0() | 1 << 18);
    f = run_rbx(rt_user(x_ac), data);
    ok(rt_done(f, x_ac), "no #AC without EFLAGS.AC");
    f = rt_user(x_ac);
    f.rflags |= FL_AC;
    f = run_rbx(f, data);
    trapped(&f, AC, 0, ac_at, "#AC(0): a doubleword at an odd address");
    f = rt_user(x_ac8);
    f.rflags |= FL_AC;
    f = run_rbx(f, data);
    trapped(&f, AC, 0, ac8_at, "#AC(0): a quadword at a multiple of 4");
    f = rt_user(x_ac_byte);
    f.rflags |= FL_AC;
    f = run_rbx(f, data);
    ok(rt_done(f, x_ac_byte), "no #AC for a byte");
    f = rt_kernel(x_ac);
    f.rflags |= FL_AC;
    f = run_rbx(f, (uint64_t)edge_page);
    ok(rt_done(f, x_ac), "no #AC at CPL 0");
    /* A page fault goes first where both apply? No: alignment is checked on the linear address, before
     * translation of a page that is missing; table 6-2 puts #AC last, so #PF wins. */
    f = rt_user(x_ac);
    f.rflags |= FL_AC;
    f = run_rbx(f, BAD);
    ok(f.vector == PF || f.vector == AC, "an unaligned access to a missing page faults once");
    write_cr0(read_cr0() & ~(1ull << 18));
}

/* --- frames and stacks --- */

static uint64_t handler_rsp, handler_cs;

static bool note_rsp(struct frame *f)
{
    handler_rsp = rt_trap_rsp();
    handler_cs = f->cs;
    return false;
}

SNIPPET(x_push_pf, "push_pf_at: push %rax");
LABEL(push_pf_at);

static void stacks(void)
{
    struct frame f;
    /* SDM vol. 3A, 6.14.2: the stack is aligned to 16 bytes before the frame of 5 quadwords (6 with error
     * code). */
    rt_on(UD, note_rsp);
    rt_gate(UD, (uint64_t)rt_vectors + 16 * UD, RT_KCODE64, 0x8e, 0);
    for (unsigned off = 0; off < 16; off += 5) {
        f = rt_kernel(x_ud);
        f.rsp -= off;
        uint64_t top = f.rsp & ~15ull;
        rt_run(&f);
        is(handler_rsp, top - 40, "same-ring exception: RSP is aligned, then 40 bytes are pushed");
        is(f.rsp, rt_kernel(0).rsp - off, "the frame has the unaligned RSP");
    }
    rt_gate(GP, (uint64_t)rt_vectors + 16 * GP, RT_KCODE64, 0x8e, 0);
    rt_on(GP, note_rsp);
    f = run_rbx(rt_kernel(x_nc), NONCANONICAL);
    is(handler_rsp, rt_kernel(0).rsp - 48, "48 bytes with an error code");
    /* From ring 3: RSP0. */
    f = run_rbx(rt_user(x_ud), 0);
    is(handler_rsp, rt_tss.rsp[0] - 40, "from CPL 3 the frame is on RSP0");
    is(f.frame_at, rt_tss.rsp[0] - 40, "and nothing is below it");
    /* IST, from both rings (SDM vol. 3A, 6.14.5). */
    rt_tss.ist[6] = (uint64_t)page_alloc_n(2) + 8000;
    rt_gate(UD, (uint64_t)rt_vectors + 16 * UD, RT_KCODE64, 0x8e, 7);
    f = run_rbx(rt_kernel(x_ud), 0);
    is(handler_rsp, (rt_tss.ist[6] & ~15ull) - 40, "IST 7 from CPL 0");
    f = run_rbx(rt_user(x_ud), 0);
    is(handler_rsp, (rt_tss.ist[6] & ~15ull) - 40, "IST 7 from CPL 3");
    rt_on(UD, NULL);
    rt_on(GP, NULL);
    rt_gate_default(UD);
    rt_gate_default(GP);
    /* A trap gate leaves IF, an interrupt gate clears it; TF, NT, RF clear in both. */
    f = rt_kernel(x_push_pf);
    f.rsp = BAD + 8;
    rt_run(&f);
    trapped(&f, PF, 2, push_pf_at, "#PF: push to a missing page");
    is(f.rsp, BAD + 8, "the push left RSP");
    is(f.cr2, BAD, "CR2 is the slot's address");
}

SNIPPET(x_flags, "pushfq\n pop %rbx\n int $0x81");
static uint64_t handler_flags;
asm(".text\n flags_probe: pushfq\n pop flags_seen\n iretq\n .bss\n .balign 8\n flags_seen: .skip 8\n "
    ".text\n");
LABEL(flags_probe);
extern uint64_t flags_seen;
SNIPPET(x_int81, "int $0x81");

static void gate_flags(void)
{
    /* SDM vol. 3A, 6.12.1.3. */
    rt_gate(0x81, (uint64_t)flags_probe, RT_KCODE64, 0x8f, 0);
    struct frame f = rt_kernel(x_int81);
    f.rflags |= FL_IF | FL_NT | FL_CF | FL_DF;
    rt_run(&f);
    handler_flags = flags_seen;
    ok(rt_done(f, x_int81) || f.vector == GP, "the probe returned");
    ok(handler_flags & FL_IF, "a trap gate leaves IF");
    ok(!(handler_flags & FL_NT), "NT is cleared");
    ok(handler_flags & FL_DF, "DF is left");
    ok(handler_flags & FL_CF, "CF is left");
    rt_gate(0x81, (uint64_t)flags_probe, RT_KCODE64, 0x8e, 0);
    f = rt_kernel(x_int81);
    f.rflags |= FL_IF;
    rt_run(&f);
    ok(rt_done(f, x_int81), "the probe returned");
    ok(!(flags_seen & FL_IF), "an interrupt gate clears IF");
    ok(f.rflags & FL_IF, "and IRET restores it");
    rt_gate_default(0x81);
}

/* --- double faults (SDM vol. 3A, 6.15, interrupt 8, table 6-5) --- */

static void double_faults(void)
{
    struct frame f;
    /* #GP (contributory) while delivering #GP: gate not usable. */
    uint64_t gp = rt_idt[GP].lo, pf = rt_idt[PF].lo, np = rt_idt[NP].lo, de = rt_idt[DE].lo,
             ud = rt_idt[UD].lo;
    rt_idt[GP].lo &= ~(1ull << 47);
    f = run_rbx(rt_kernel(x_nc), NONCANONICAL);
    trapped(&f, DF, 0, nc_at, "#GP then #NP: double fault, error code 0, RIP of the #GP");
    rt_idt[GP].lo = gp;
    /* #DE then #NP. */
    rt_idt[DE].lo &= ~(1ull << 47);
    f = run_rbx(rt_kernel(x_de), 0);
    trapped(&f, DF, 0, de_at, "#DE then #NP: double fault");
    rt_idt[DE].lo = de;
    /* #UD is benign: what follows is served serially. */
    rt_idt[UD].lo &= ~(1ull << 47);
    f = run_rbx(rt_kernel(x_ud), 0);
    trapped(&f, NP, UD * 8 + 2 + 1, ud_at, "#UD then #NP: #NP with EXT, no double fault");
    rt_idt[UD].lo = ud;
    /* #PF then #PF: no stack to push to. */
    rt_gate(PF, (uint64_t)rt_vectors + 16 * PF, RT_KCODE64, 0x8e, 0);
    f = rt_kernel(x_push_pf);
    f.rsp = BAD + 8;
    rt_run(&f);
    trapped(&f, DF, 0, push_pf_at, "#PF then #PF: double fault");
    is(f.cr2 & ~0xfffull, (BAD - 8) & ~0xfffull, "CR2 is of the second #PF");
    /* #PF then #NP (contributory): double fault. */
    rt_idt[PF].lo = pf & ~(1ull << 47);
    f = run_rbx(rt_kernel(x_pf_r), BAD);
    trapped(&f, DF, 0, pf_r_at, "#PF then #NP: double fault");
    rt_idt[PF].lo = pf;
    /* #GP then #PF: the page fault is served. */
    rt_gate(GP, (uint64_t)rt_vectors + 16 * GP, RT_KCODE64, 0x8e, 0);
    f = rt_kernel(x_nc);
    f.rbx = NONCANONICAL;
    f.rsp = BAD + 0x800;
    rt_run(&f);
    ok(f.vector == PF, "#GP then #PF: served serially");
    is(f.rip, (uint64_t)nc_at, "RIP is still the instruction's");
    rt_idt[GP].lo = gp;
    rt_idt[NP].lo = np;
    /* #UD with a non-canonical stack: #SS, not #DF; #GP with one: #DF. */
    rt_gate(UD, (uint64_t)rt_vectors + 16 * UD, RT_KCODE64, 0x8e, 0);
    f = rt_kernel(x_ud);
    f.rsp = NONCANONICAL + 64;
    rt_run(&f);
    trapped(&f, SS, 1, ud_at, "#UD with a non-canonical stack: #SS with EXT");
    rt_gate_default(UD);
    rt_gate(GP, (uint64_t)rt_vectors + 16 * GP, RT_KCODE64, 0x8e, 0);
    f = rt_kernel(x_nc);
    f.rbx = NONCANONICAL;
    f.rsp = NONCANONICAL + 64;
    rt_run(&f);
    trapped(&f, DF, 0, nc_at, "#GP with a non-canonical stack: double fault");
    rt_gate_default(GP);
}

/* --- nested --- */

static unsigned depth, max_depth;
SNIPPET(x_nested, "ud2\n nop");

static bool nest(struct frame *f)
{
    if (++depth < 8) {
        struct frame inner = rt_kernel(x_pf_r);
        inner.rbx = BAD;
        inner.rsp = rt_trap_rsp() - 2048; /* below this handler's own frames */
        rt_run(&inner);
        if (inner.vector != PF) {
            return false;
        }
    }
    max_depth = depth;
    f->rip += 2;
    return true;
}

static bool nest_pf(struct frame *f)
{
    if (depth < 8) {
        asm volatile("ud2"); /* the #UD handler skips it */
    }
    return false;
}

static void nested(void)
{
    rt_gate(UD, (uint64_t)rt_vectors + 16 * UD, RT_KCODE64, 0x8e, 0);
    rt_gate(PF, (uint64_t)rt_vectors + 16 * PF, RT_KCODE64, 0x8e, 0);
    rt_on(UD, nest);
    rt_on(PF, nest_pf);
    struct frame f = rt_kernel(x_nested);
    f.rsp += 4096;
    depth = 0;
    rt_on(BP, NULL);
    static struct frame g;
    g = rt_kernel(x_int3);
    g.rsp += 4096;
    rt_run(&g);
    trapped(&g, BP, 0, int3_next, "a snippet after handlers were installed");
    asm volatile("ud2");
    is(max_depth, 8, "exceptions nested in handlers unwind in order");
    rt_on(UD, NULL);
    rt_on(PF, NULL);
    rt_gate_default(UD);
    rt_gate_default(PF);
}

/* --- no trace, and partial progress --- */

SNIPPET(x_movsb, "movsb_at: rep movsb");
LABEL(movsb_at);
SNIPPET(x_stosq, "stosq_at: rep stosq");
LABEL(stosq_at);
SNIPPET(x_stosb_back, "std\n stosb_back_at: rep stosb");
LABEL(stosb_back_at);
SNIPPET(x_lodsw, "lodsw_at: rep lodsw");
LABEL(lodsw_at);
SNIPPET(x_cmpsb, "cmpsb_at: repe cmpsb");
LABEL(cmpsb_at);
SNIPPET(x_scasb, "scasb_at: repne scasb");
LABEL(scasb_at);
SNIPPET(x_rep0, "rep movsb");

static void strings(void)
{
    struct frame f;
    /* SDM vol. 2B, REP: registers tell how far it came. */
    memset(edge_page, 0x11, 4096);
    static uint8_t source[256];
    for (unsigned i = 0; i < 256; i++) {
        source[i] = (uint8_t)(i + 1);
    }
    f = rt_kernel(x_movsb);
    f.rsi = (uint64_t)source;
    f.rdi = EDGE + 4096 - 10;
    f.rcx = 100;
    rt_run(&f);
    trapped(&f, PF, 2, movsb_at, "rep movsb: #PF at the destination's missing page");
    is(f.cr2, EDGE + 4096, "CR2 is the missing byte");
    is(f.rcx, 90, "RCX counts what is left");
    is(f.rdi, EDGE + 4096, "RDI is at the missing byte");
    is(f.rsi, (uint64_t)source + 10, "RSI matches");
    ok(edge_page[4095] == 10 && edge_page[4086] == 1, "the bytes before were written");
    ok(f.rflags & FL_RF, "RF is set in the frame of a fault inside an iteration");

    f = rt_kernel(x_movsb);
    f.rsi = EDGE + 4096 - 7;
    f.rdi = (uint64_t)source;
    f.rcx = 20;
    rt_run(&f);
    trapped(&f, PF, 0, movsb_at, "rep movsb: #PF at the source's missing page");
    is(f.rcx, 13, "RCX counts what is left");
    is(f.rdi, (uint64_t)source + 7, "RDI matches");

    f = rt_kernel(x_stosq);
    f.rdi = EDGE + 4096 - 20; /* the third quadword crosses */
    f.rcx = 5;
    f.rax = 0x2222222222222222;
    rt_run(&f);
    trapped(&f, PF, 2, stosq_at, "rep stosq: #PF on a quadword that crosses");
    is(f.rcx, 3, "RCX counts what is left");
    is(f.rdi, EDGE + 4096 - 4, "RDI is at the crossing quadword");
    is(f.cr2, EDGE + 4096, "CR2 is the first missing byte");
    ok(edge_page[4091] == 0x22 && edge_page[4092] != 0x22, "the crossing quadword was not written");

    f = rt_kernel(x_stosb_back);
    f.rdi = EDGE + 3; /* and the page before EDGE is missing */
    f.rcx = 10;
    f.rax = 0x33;
    rt_run(&f);
    trapped(&f, PF, 2, stosb_back_at, "rep stosb downwards");
    is(f.rcx, 6, "RCX counts what is left");
    is(f.rdi, EDGE - 1, "RDI is below the page");

    f = rt_kernel(x_lodsw);
    f.rsi = EDGE + 4096 - 4;
    f.rcx = 3;
    rt_run(&f);
    trapped(&f, PF, 0, lodsw_at, "rep lodsw");
    is(f.rcx, 1, "RCX counts what is left");
    is(f.rsi, EDGE + 4096, "RSI is at the missing word");

    memset(edge_page + 4000, 7, 96);
    memset(source, 7, 256);
    f = rt_kernel(x_cmpsb);
    f.rsi = (uint64_t)source;
    f.rdi = EDGE + 4096 - 6;
    f.rcx = 50;
    rt_run(&f);
    trapped(&f, PF, 0, cmpsb_at, "repe cmpsb");
    is(f.rcx, 44, "RCX counts what is left");
    f = rt_kernel(x_scasb);
    f.rdi = EDGE + 4096 - 6;
    f.rcx = 50;
    f.rax = 8;
    rt_run(&f);
    trapped(&f, PF, 0, scasb_at, "repne scasb");
    is(f.rcx, 44, "RCX counts what is left");

    f = rt_kernel(x_rep0);
    f.rsi = f.rdi = BAD;
    rt_run(&f);
    ok(rt_done(f, x_rep0), "rep with RCX 0 touches nothing");
}

/* Each runs with RBX at 4 bytes before the missing page, and must leave every register. */
#define CROSS(name, text) SNIPPET(c_##name, "c_" #name "_at: " text)
CROSS(mov, "mov (%rbx), %rax");
CROSS(store, "mov %rax, (%rbx)");
CROSS(xadd, "xadd %rax, (%rbx)");
CROSS(lxadd, "lock xadd %rax, (%rbx)");
CROSS(xchg, "xchg %rax, (%rbx)");
CROSS(cmpxchg, "cmpxchg %rcx, (%rbx)");
CROSS(cmpxchg8b, "cmpxchg8b (%rbx)");
CROSS(cmpxchg16b, "lock cmpxchg16b 12(%rbx)");
CROSS(add, "add %rax, (%rbx)");
CROSS(adc, "lock adc %rax, (%rbx)");
CROSS(inc, "incq (%rbx)");
CROSS(neg, "negq (%rbx)");
CROSS(shl, "shlq $3, (%rbx)");
CROSS(rcl, "rclq %cl, (%rbx)");
CROSS(shld, "shldq $5, %rax, (%rbx)");
CROSS(bts, "btsq $63, (%rbx)");
CROSS(setc, "setc 4(%rbx)");
CROSS(pop, "popq (%rbx)");
CROSS(push, "pushq (%rbx)");
CROSS(movups, "movups %xmm0, (%rbx)");
CROSS(fstp, "fldz\n .globl c_fstp_at2\n c_fstp_at2: fstpl (%rbx)");
CROSS(mul, "mulq (%rbx)");
CROSS(div, "divq (%rbx)");
CROSS(movzx, "movzwl 3(%rbx), %eax");
CROSS(call, "call *(%rbx)");
CROSS(sgdt, "sgdt (%rbx)");
CROSS(xlat, "mov $255, %al\n .globl c_xlat_at2\n c_xlat_at2: xlat");
CROSS(movs, "movsq");
LABEL(c_fstp_at2);
LABEL(c_xlat_at2);

static void no_trace(void)
{
    /* SDM vol. 3A, 6.6: a fault lets the program restart the instruction. */
    static const struct {
        const char *code, *name;
        bool write;
    } cases[] = {
        {c_mov, "mov load", 0},
        {c_store, "mov store", 1},
        {c_xadd, "read-modify-write xadd", 1},
        {c_lxadd, "read-modify-write lock xadd", 1},
        {c_xchg, "read-modify-write xchg", 1},
        {c_cmpxchg, "read-modify-write cmpxchg", 1},
        {c_cmpxchg8b, "read-modify-write cmpxchg8b", 1},
        {c_add, "read-modify-write add to memory", 1},
        {c_adc, "read-modify-write lock adc", 1},
        {c_inc, "read-modify-write inc", 1},
        {c_neg, "read-modify-write neg", 1},
        {c_shl, "read-modify-write shl", 1},
        {c_rcl, "read-modify-write rcl", 1},
        {c_shld, "read-modify-write shld", 1},
        {c_bts, "read-modify-write bts", 1},
        {c_setc, "setc", 1},
        {c_pop, "pop to memory", 1},
        {c_push, "push of memory", 0},
        {c_movups, "movups", 1},
        {c_mul, "mul", 0},
        {c_div, "div", 0},
        {c_movzx, "movzx", 0},
        {c_call, "call of memory", 0},
        {c_sgdt, "sgdt", 1},
    };
    uint8_t before[16];
    for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        memset(edge_page + 4080, 0x5a, 16);
        memcpy(before, edge_page + 4080, 16);
        struct frame f = rt_kernel(cases[i].code);
        f.rax = 0x1111;
        f.rcx = 0x2222;
        f.rdx = 0x3333;
        f.rbx = EDGE + 4092;
        f.rbp = 0x4444;
        f.rflags |= FL_CF | FL_ZF | FL_OF;
        struct frame want = f;
        rt_run(&f);
        bool regs = memcmp(&f, &want, offsetof(struct frame, vector)) == 0 && f.rsp == want.rsp;
        bool flags = ((f.rflags ^ want.rflags) & 0xcd5) == 0;
        bool fault = f.vector == PF && (f.error & ~0ull) == (cases[i].write ? 2u : 0u) && f.rip == want.rip;
        bool address = f.cr2 == EDGE + 4096;
        /* SGDT is two stores. */
        bool memory = cases[i].code == c_sgdt || memcmp(before, edge_page + 4080, 16) == 0;
        about(cases[i].name);
        ok(fault, "crossing into a missing page: #PF at the instruction");
        ok(address, "CR2 is the first missing byte");
        ok(regs, "registers unchanged");
        ok(flags, "flags unchanged");
        ok(memory, "memory before the edge unchanged");
        if (!fault || !address || !regs || !flags || !memory) {
            rt_printf("#   vector %lu error %lx rip %lx (%lx) cr2 %lx rsp %lx (%lx) flags %lx\n", f.vector,
                      f.error, f.rip, want.rip, f.cr2, f.rsp, want.rsp, f.rflags);
        }
    }
    about(NULL);
    struct frame f = rt_kernel(c_cmpxchg16b);
    f.rbx = EDGE + 4096 - 12 - 8;
    rt_run(&f);
    ok(f.vector == GP || f.vector == PF, "cmpxchg16b of an unaligned address faults");
    is(f.vector, GP, "  with #GP: alignment comes before translation");
    f = rt_kernel(c_cmpxchg16b);
    f.rbx = EDGE + 4096 - 12;
    f.rax = 1, f.rdx = 2, f.rcx = 3;
    rt_run(&f);
    ok(f.vector == PF && f.error == 2 && f.rax == 1 && f.rdx == 2 && f.rcx == 3,
       "cmpxchg16b: #PF as a write, registers left");
    f = rt_kernel(c_xlat);
    f.rbx = EDGE + 4000;
    rt_run(&f);
    ok(f.vector == PF && f.rip == (uint64_t)c_xlat_at2 && f.rax == 255, "xlat: AL left");
    f = rt_kernel(c_fstp);
    f.rbx = EDGE + 4092;
    rt_run(&f);
    uint16_t sw;
    asm volatile("fnstsw %0; fninit" : "=a"(sw));
    ok(f.vector == PF && f.rip == (uint64_t)c_fstp_at2, "fstp: #PF");
    is(sw >> 11 & 7, 7, "  and the stack was not popped");
    f = rt_kernel(c_movs);
    f.rsi = (uint64_t)edge_page;
    f.rdi = EDGE + 4092;
    rt_run(&f);
    ok(f.vector == PF && f.rsi == (uint64_t)edge_page && f.rdi == EDGE + 4092,
       "movsq without rep: RSI and RDI left");
}

SNIPPET(s_pop, "s_pop_at: pop %rax");
SNIPPET(s_popf, "s_popf_at: popfq");
SNIPPET(s_ret, "s_ret_at: ret");
SNIPPET(s_call, "s_call_at: call 1f\n 1:");
SNIPPET(s_calli, "s_calli_at: call *%rbx");
SNIPPET(s_pushi, "s_pushi_at: pushq $5");
SNIPPET(s_pushf, "s_pushf_at: pushfq");
SNIPPET(s_enter, "s_enter_at: enter $16, $0");
SNIPPET(s_enter3, "s_enter3_at: enter $16, $3");
SNIPPET(s_leave, "s_leave_at: leave");
SNIPPET(s_iret, "s_iret_at: iretq");
SNIPPET(s_int, "s_int_at: int $0x80");
SNIPPET(s_pushm, "s_pushm_at: pushq (%rbx)");
SNIPPET(s_popm, "s_popm_at: popq (%rbx)");
SNIPPET(s_pop_rsp, "s_pop_rsp_at: pop %rsp");
SNIPPET(s_push_fs, "s_push_fs_at: push %fs");
SNIPPET(s_pop_fs, "s_pop_fs_at: pop %fs");

static void stack_faults(void)
{
    static const struct {
        const char *code, *name;
        uint64_t error;
    } cases[] = {
        {s_pop, "pop", 0},         {s_popf, "popfq", 0},      {s_ret, "ret", 0},
        {s_call, "call", 2},       {s_calli, "call *reg", 2}, {s_pushi, "push imm", 2},
        {s_pushf, "pushfq", 2},    {s_enter, "enter", 2},     {s_enter3, "enter 3", 2},
        {s_iret, "iretq", 0},      {s_pushm, "push mem", 2},  {s_popm, "pop mem", 0},
        {s_pop_rsp, "pop rsp", 0}, {s_push_fs, "push fs", 2}, {s_pop_fs, "pop fs", 0},
    };
    for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct frame f = rt_kernel(cases[i].code);
        f.rsp = BAD + 64;
        f.rbp = (uint64_t)edge_page + 512;
        f.rbx = (uint64_t)edge_page;
        struct frame want = f;
        rt_run(&f);
        about(cases[i].name);
        trapped(&f, PF, cases[i].error, cases[i].code, "stack on a missing page: #PF at the instruction");
        is(f.rsp, want.rsp, "RSP left");
        ok(memcmp(&f, &want, offsetof(struct frame, vector)) == 0, "registers left");
    }
    about(NULL);
    struct frame f = rt_kernel(s_leave);
    f.rbp = BAD;
    uint64_t rsp = f.rsp;
    rt_run(&f);
    trapped(&f, PF, 0, s_leave, "leave: #PF at RBP");
    ok(f.rsp == rsp && f.rbp == BAD, "  RSP and RBP left");
    /* ENTER checks the final stack pointer's page as a write (SDM vol. 2A, ENTER). */
    f = rt_kernel(s_enter);
    f.rsp = EDGE + 8;
    f.rbp = 0x77;
    rt_run(&f);
    ok(f.vector == PF ? f.rsp == EDGE + 8 && f.rbp == 0x77 : rt_done(f, s_enter), "enter: all or nothing");
}

void test_main(void)
{
    edge_page = page_alloc();
    map(EDGE, (uint64_t)edge_page, PTE_P | PTE_W | PTE_U);
    faults();
    traps();
    fpu();
    privileged();
    alignment();
    stacks();
    gate_flags();
    double_faults();
    nested();
    strings();
    no_trace();
    stack_faults();
}
