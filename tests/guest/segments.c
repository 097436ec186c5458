/*
 * Segmentation in long mode, 64-bit and compatibility: far transfers, call gates, conforming segments,
 * limits, null selectors, LAR and its kin, descriptor-table registers, UMIP, LLDT, LTR, I/O permission
 * bitmap.
 */
#include "rt/rt.h"

#define SEL  (RT_FREE) /* the descriptor under test */
#define SEL2 (RT_FREE + 8)
#define GATE (RT_FREE + 16) /* two entries */

SNIPPET(s_ljmp, "s_ljmp_at: .byte 0x48\n ljmp *(%rbx)");
SNIPPET(s_lcall, ".byte 0x48\n lcall *(%rbx)\n s_lcall_next: nop");
LABEL(s_lcall_next);
SNIPPET(s_lret, "lretq");
SNIPPET(s_lret8, "lretq $8");
SNIPPET(s_target, "mov %cs, %eax\n mov %ss, %edx\n mov %rsp, %rsi");
SNIPPET(s_target32, ".code32\n mov %cs, %eax\n mov %ss, %edx\n .code64");
SNIPPET(s_loadds, "mov %eax, %ds");
SNIPPET(s_loadss, "mov %eax, %ss");
SNIPPET(s_loadfs, "mov %eax, %fs");
SNIPPET(s_lar, "larl %eax, %ecx\n setz %dl");
SNIPPET(s_lsl, "lsll %eax, %ecx\n setz %dl");
SNIPPET(s_verr, "verr %ax\n setz %dl");
SNIPPET(s_verw, "verw %ax\n setz %dl");
SNIPPET(s_sgdt, "sgdt (%rbx)");
SNIPPET(s_sidt, "sidt (%rbx)");
SNIPPET(s_sldt, "sldt %eax");
SNIPPET(s_str, "str %eax");
SNIPPET(s_smsw, "smsw %eax");
SNIPPET(s_lldt, "lldt %ax");
SNIPPET(s_ltr, "ltr %ax");
SNIPPET(s_in, "in %dx, %al");
SNIPPET(s_inl, "in %dx, %eax");
SNIPPET(s_outsb, "outsb");
/* Compatibility mode, with DS, ES, SS as loaded. */
SNIPPET(c_load, ".code32\n mov %ecx, %ds\n c_load_at: mov (%ebx), %eax\n .code64");
LABEL(c_load_at);
SNIPPET(c_store, ".code32\n mov %ecx, %ds\n c_store_at: mov %eax, (%ebx)\n .code64");
LABEL(c_store_at);
SNIPPET(c_null, ".code32\n xor %ecx, %ecx\n mov %ecx, %ds\n c_null_at: mov (%ebx), %eax\n .code64");
LABEL(c_null_at);
SNIPPET(c_stack, ".code32\n mov %ecx, %ss\n mov %ebx, %esp\n c_stack_at: push %eax\n .code64");
LABEL(c_stack_at);
SNIPPET(c_code, ".code32\n c_code_at: movl $1, %cs:(%ebx)\n .code64");
asm(".text\n s_far: mov %cs, %eax\n mov %ss, %edx\n mov %rsp, %rsi\n s_far_ret: lretq\n");
LABEL(s_far);
LABEL(s_far_ret);

static struct {
    uint64_t offset;
    uint16_t selector;
} __attribute__((packed)) pointer;

static struct frame far(struct frame f, uint64_t offset, uint16_t selector)
{
    pointer.offset = offset;
    pointer.selector = selector;
    f.rbx = (f.cs & 3) == 3 ? rt_alias(&pointer) : (uint64_t)&pointer;
    rt_run(&f);
    return f;
}

static void far_transfers(void)
{
    struct frame f;
    /* The operand of a far transfer with REX.W is m16:64 on Intel; AMD ignores REX.W there. */
    bool wide = vendor_intel();
    f = far(rt_kernel(s_ljmp), (uint64_t)s_target, RT_KCODE64);
    if (!wide && !rt_done(f, s_target)) {
        skip("far transfers with a 64-bit offset", "not this vendor's");
        return;
    }
    ok(rt_done(f, s_target) && f.rax == RT_KCODE64, "far jump within ring 0");
    f = far(rt_kernel(s_lcall), (uint64_t)s_far, RT_KCODE64);
    ok(rt_done(f, s_lcall), "far call and return within ring 0");
    is(f.rsi, rt_kernel(0).rsp - 16, "16 bytes pushed");
    static const struct {
        uint64_t descriptor, error;
        uint16_t selector;
        unsigned vector;
        const char *text;
    } bad[] = {
        {0, 0, 0, GP, "null selector: #GP(0)"},
        {0, 0xfff8, 0xfff8, GP, "beyond the table: #GP(sel)"},
        {0, RT_KDATA, RT_KDATA, GP, "data segment: #GP(sel)"},
        {0, RT_UCODE64 & ~3, RT_UCODE64, GP, "DPL 3 from ring 0: #GP(sel)"},
        {0x00af1b000000ffff, SEL, SEL, NP, "not present: #NP(sel)"},
        {0x00ef9b000000ffff, SEL, SEL, GP, "L and D both set: #GP(sel)"},
    };
    for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        rt_gdt[SEL / 8] = bad[i].descriptor;
        about("far jump");
        f = far(rt_kernel(s_ljmp), (uint64_t)s_target, bad[i].selector);
        trapped(&f, bad[i].vector, bad[i].error, s_ljmp, bad[i].text);
        about("far call");
        f = far(rt_kernel(s_lcall), (uint64_t)s_far, bad[i].selector);
        trapped(&f, bad[i].vector, bad[i].error, s_lcall, bad[i].text);
        is(f.rsp, rt_kernel(0).rsp, "RSP left");
    }
    about(NULL);
    f = far(rt_kernel(s_ljmp), (uint64_t)s_target32, RT_KCODE32);
    ok(rt_done(f, s_target32) && (f.rax & 0xffff) == RT_KCODE32, "far jump to compatibility mode");
    rt_gdt[SEL / 8] = 0x00af9f000000ffff; /* conforming, DPL 0 */
    f = far(rt_user(s_ljmp), rt_alias(s_target), SEL);
    ok(rt_done(f, s_target) && f.rax == (SEL | 3), "a conforming segment of DPL 0 from ring 3 runs at CPL 3");
    rt_gdt[SEL / 8] = 0x00afff000000ffff; /* conforming, DPL 3 */
    f = far(rt_kernel(s_ljmp), (uint64_t)s_target, SEL | 3);
    trapped(&f, GP, SEL, s_ljmp, "a conforming segment of DPL 3 from ring 0: #GP(sel)");
    f = far(rt_user(s_ljmp), rt_alias(s_target), RT_KCODE64);
    trapped(&f, GP, RT_KCODE64, s_ljmp, "ring 0 code from ring 3: #GP(sel)");

    /* Call gates (SDM vol. 3A, 5.8.3, 5.8.5.1). */
    uint64_t to = (uint64_t)s_far;
    rt_gdt[GATE / 8] = (to & 0xffff) | (uint64_t)RT_KCODE64 << 16 | 0xecull << 40 | (to >> 16 & 0xffff) << 48;
    rt_gdt[GATE / 8 + 1] = to >> 32;
    f = far(rt_user(s_lcall), 0, GATE | 3);
    ok(rt_done(f, s_lcall), "call gate from ring 3 to ring 0 and back");
    is(f.rax, RT_KCODE64, "CPL 0 inside");
    is(f.rdx, 0, "SS is null inside");
    is(f.rsi, rt_tss.rsp[0] - 32, "on RSP0, with SS, RSP, CS, RIP");
    ok(f.cs == RT_UCODE64 && f.ss == RT_UDATA, "ring 3 again");
    f = far(rt_kernel(s_lcall), 0, GATE);
    ok(rt_done(f, s_lcall), "call gate within ring 0");
    rt_gdt[GATE / 8] &= ~(3ull << 45);
    f = far(rt_user(s_lcall), 0, GATE | 3);
    trapped(&f, GP, GATE, s_lcall, "call gate of DPL 0 from ring 3: #GP(gate)");
    rt_gdt[GATE / 8] |= 3ull << 45;
    rt_gdt[GATE / 8] &= ~(1ull << 47);
    f = far(rt_user(s_lcall), 0, GATE | 3);
    trapped(&f, NP, GATE, s_lcall, "call gate not present: #NP(gate)");
    rt_gdt[GATE / 8] |= 1ull << 47;
    f = far(rt_user(s_ljmp), 0, GATE | 3);
    trapped(&f, GP, RT_KCODE64, s_ljmp, "a jump through a gate can't raise privilege: #GP(code)");
    rt_gdt[GATE / 8 + 1] |= 1ull << 40; /* type bits of the upper half */
    f = far(rt_user(s_lcall), 0, GATE | 3);
    trapped(&f, GP, GATE, s_lcall, "call gate with a type in its upper half: #GP(gate)");
    rt_gdt[GATE / 8] = rt_gdt[GATE / 8 + 1] = rt_gdt[SEL / 8] = 0;
    /* Far return. */
    static uint64_t image[4];
    f = rt_kernel(s_lret);
    f.rsp = (uint64_t)image;
    image[0] = rt_alias(s_target), image[1] = RT_UCODE64, image[2] = rt_user(0).rsp, image[3] = RT_UDATA;
    rt_run(&f);
    ok(rt_done(f, s_target) && f.rax == RT_UCODE64 && f.rsp == rt_user(0).rsp, "far return to ring 3");
    f = rt_user(s_lret);
    f.rsp = rt_alias(image);
    image[1] = RT_KCODE64;
    rt_run(&f);
    trapped(&f, GP, RT_KCODE64, s_lret, "far return to an inner ring: #GP(sel)");
}

static void loads(void)
{
    struct frame f;
    static const struct {
        uint64_t descriptor;
        uint16_t selector;
        bool user;
        unsigned ds, ss; /* the vector, or 0 */
        uint64_t ds_error, ss_error;
        const char *text;
    } cases[] = {
        {0, 0, false, 0, 0, 0, 0, "null selector at CPL 0"},
        {0, 3, true, 0, GP, 0, 0, "null selector at CPL 3"},
        {0x00cf93000000ffff, SEL, false, 0, 0, 0, 0, "data"},
        {0x00cf91000000ffff, SEL, false, 0, GP, 0, SEL, "read-only data"},
        {0x00cf9b000000ffff, SEL, false, 0, GP, 0, SEL, "readable code"},
        {0x00cf99000000ffff, SEL, false, GP, GP, SEL, SEL, "execute-only code"},
        {0x00cf13000000ffff, SEL, false, NP, SS, SEL, SEL, "not present"},
        {0x00cff3000000ffff, SEL | 3, false, 0, GP, 0, SEL, "DPL 3, RPL 3 at CPL 0"},
        {0x00cf93000000ffff, SEL | 3, true, GP, GP, SEL, SEL, "DPL 0 at CPL 3"},
        {0x00cff3000000ffff, SEL, true, 0, GP, 0, SEL, "DPL 3, RPL 0 at CPL 3"},
        {0x0000890000000067, SEL, false, GP, GP, SEL, SEL, "a TSS"},
    };
    for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        rt_gdt[SEL / 8] = cases[i].descriptor;
        for (unsigned ss = 0; ss < 2; ss++) {
            const char *code = ss ? s_loadss : s_loadds, *end = ss ? s_loadss_end : s_loadds_end;
            unsigned vector = ss ? cases[i].ss : cases[i].ds;
            uint64_t error = ss ? cases[i].ss_error : cases[i].ds_error;
            about(ss ? "mov to SS" : "mov to DS");
            f = cases[i].user ? rt_user(code) : rt_kernel(code);
            f.rax = cases[i].selector;
            rt_run(&f);
            if (vector) {
                trapped(&f, vector, error, code, cases[i].text);
            } else {
                ok(rt_done_at(&f, end), cases[i].text);
            }
        }
    }
    about(NULL);
    rt_gdt[SEL / 8] = 0x00cf92000000ffff; /* not accessed */
    f = rt_kernel(s_loadds);
    f.rax = SEL;
    rt_run(&f);
    ok(rt_gdt[SEL / 8] >> 40 & 1, "loading a segment sets its accessed bit");
    /* FS: a load replaces the base (SDM vol. 3A, 3.4.4.1). */
    wrmsr(0xc0000100, 0x123456789abc);
    rt_gdt[SEL / 8] = 0x12cf93345678ffff;
    f = rt_kernel(s_loadfs);
    f.rax = SEL;
    rt_run(&f);
    is(rdmsr(0xc0000100), 0x12345678, "a load of FS takes the descriptor's base");
    asm volatile("mov %0, %%fs\n mov %0, %%ds" ::"r"(0));
    rt_gdt[SEL / 8] = 0;
}

static void limits(void)
{
    /* In compatibility mode limits are checked (SDM vol. 3A, 5.3.1). */
    static uint8_t data[64] __attribute__((aligned(64)));
    uint64_t base = rt_alias(data);
    uint64_t based = (base & 0xffffff) << 16 | (base >> 24 & 0xff) << 56;
    static const struct {
        uint64_t bits;
        uint32_t offset;
        bool store, fault;
        const char *text;
    } cases[] = {
        {0x0040f3000000001f, 0x1c, false, false, "the last doubleword within the limit"},
        {0x0040f3000000001f, 0x1d, false, true, "a doubleword over the limit: #GP(0)"},
        {0x0040f3000000001f, 0xfffffffe, false, true, "an offset that wraps: #GP(0)"},
        {0x0040f1000000001f, 0, true, true, "a store to read-only data: #GP(0)"},
        {0x0040f1000000001f, 0, false, false, "a load from read-only data"},
        {0x0040f7000000000f, 0x10, false, false, "expand-down: the first byte above the limit"},
        {0x0040f7000000000f, 0x0f, false, true, "expand-down: an offset at the limit: #GP(0)"},
        {0x0000f7000000000f, 0xfffd, false, true, "expand-down, 16-bit: beyond 64 KiB: #GP(0)"},
    };
    for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        rt_gdt[SEL / 8] = cases[i].bits | based;
        const char *code = cases[i].store ? c_store : c_load;
        struct frame f = rt_user32(code);
        f.rcx = SEL | 3;
        f.rbx = cases[i].offset;
        rt_run(&f);
        if (cases[i].fault) {
            trapped(&f, GP, 0, cases[i].store ? c_store_at : c_load_at, cases[i].text);
        } else {
            ok(rt_done_at(&f, cases[i].store ? c_store_end : c_load_end), cases[i].text);
        }
    }
    struct frame f = rt_user32(c_null);
    f.rbx = base;
    rt_run(&f);
    trapped(&f, GP, 0, c_null_at, "an access through a null DS: #GP(0)");
    f = rt_user32(c_code);
    f.rbx = base;
    rt_run(&f);
    trapped(&f, GP, 0, c_code, "a store through CS: #GP(0)");
    rt_gdt[SEL / 8] = 0x0040f3000000001f | based;
    f = rt_user32(c_stack);
    f.rcx = SEL | 3;
    f.rbx = 0x30;
    rt_run(&f);
    trapped(&f, SS, 0, c_stack_at, "a push beyond the stack's limit: #SS(0)");
    is(f.rsp & 0xffffffff, 0x30, "ESP left");
    rt_gdt[SEL / 8] = 0;
    asm volatile("mov %0, %%ds" ::"r"(0));
}

static void inspect(void)
{
    static const struct {
        uint64_t descriptor;
        uint16_t selector;
        bool user, lar, lsl, verr, verw;
        const char *text;
    } cases[] = {
        {0x00cf93000000ffff, SEL, false, 1, 1, 1, 1, "data"},
        {0x00cf91000000ffff, SEL, false, 1, 1, 1, 0, "read-only data"},
        {0x00cf9b000000ffff, SEL, false, 1, 1, 1, 0, "readable code"},
        {0x00cf99000000ffff, SEL, false, 1, 1, 0, 0, "execute-only code"},
        {0x00cf93000000ffff, SEL | 3, true, 0, 0, 0, 0, "DPL 0 at CPL 3"},
        {0x00cf9f000000ffff, SEL | 3, true, 1, 1, 1, 0, "conforming code of DPL 0 at CPL 3"},
        {0x0000820000000fff, SEL, false, 1, 1, 0, 0, "an LDT"},
        {0x00008c0000000000, SEL, false, 1, 0, 0, 0, "a call gate"},
        {0x00008e0000000000, SEL, false, 0, 0, 0, 0, "an interrupt gate"},
        {0, 0, false, 0, 0, 0, 0, "null"},
        {0, 0xfff8, false, 0, 0, 0, 0, "beyond the table"},
    };
    for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        rt_gdt[SEL / 8] = cases[i].descriptor;
        rt_gdt[SEL2 / 8] = 0;
        about(cases[i].text);
        const char *codes[] = {s_lar, s_lsl, s_verr, s_verw};
        static const char *const names[] = {"LAR", "LSL", "VERR", "VERW"};
        bool want[] = {cases[i].lar, cases[i].lsl, cases[i].verr, cases[i].verw};
        for (unsigned k = 0; k < 4; k++) {
            struct frame f = cases[i].user ? rt_user(codes[k]) : rt_kernel(codes[k]);
            f.rax = cases[i].selector;
            f.rcx = 0x55;
            rt_run(&f);
            is(f.rdx & 0xff, want[k], names[k]);
            if (k == 0) {
                is(want[k] ? f.rcx & ~0x000f0000ull : f.rcx, /* bits 19:16 are undefined */
                   want[k] ? cases[i].descriptor >> 32 & 0x00f0ff00 : 0x55, "LAR's value");
            } else if (k == 1 && want[k]) {
                is(f.rcx, cases[i].descriptor >> 55 & 1 ? 0xffffffff : cases[i].descriptor & 0xffff,
                   "LSL's value");
            }
        }
    }
    about(NULL);
    rt_gdt[SEL / 8] = 0;
}

static void tables(void)
{
    static uint8_t out[16];
    struct frame f = rt_kernel(s_sgdt);
    f.rbx = (uint64_t)out;
    rt_run(&f);
    ok(*(uint16_t *)out == sizeof(rt_gdt) - 1 && *(uint64_t *)(out + 2) == (uint64_t)rt_gdt, "SGDT");
    f = rt_user(s_sidt);
    f.rbx = rt_alias(out);
    rt_run(&f);
    ok(rt_done(f, s_sidt) && *(uint64_t *)(out + 2) == (uint64_t)rt_idt, "SIDT at CPL 3 without UMIP");
    f = rt_user(s_str);
    rt_run(&f);
    is(f.rax, RT_TSS, "STR");
    f = rt_user(s_smsw);
    rt_run(&f);
    is(f.rax & 0xffff, read_cr0() & 0xffff, "SMSW");
    if (HAS_UMIP()) {
        write_cr4(read_cr4() | 1 << 11);
        const char *codes[] = {s_sgdt, s_sidt, s_sldt, s_str, s_smsw};
        for (unsigned i = 0; i < 5; i++) {
            f = rt_user(codes[i]);
            f.rbx = rt_alias(out);
            rt_run(&f);
            trapped(&f, GP, 0, codes[i], "UMIP: SGDT, SIDT, SLDT, STR, SMSW at CPL 3: #GP(0)");
        }
        f = rt_kernel(s_smsw);
        rt_run(&f);
        ok(rt_done(f, s_smsw), "UMIP: at CPL 0 they work");
        write_cr4(read_cr4() & ~(1ull << 11));
    } else {
        skip("UMIP", "not in CPUID");
    }
    /* LLDT, LTR. */
    f = rt_kernel(s_lldt);
    f.rax = RT_KDATA;
    rt_run(&f);
    trapped(&f, GP, RT_KDATA, s_lldt, "LLDT of a data segment: #GP(sel)");
    f = rt_kernel(s_lldt);
    rt_run(&f);
    ok(rt_done(f, s_lldt), "LLDT of null");
    f = rt_kernel(s_loadds);
    f.rax = 4;
    rt_run(&f);
    trapped(&f, GP, 4, s_loadds, "a selector of the LDT without one: #GP(sel)");
    f = rt_kernel(s_ltr);
    f.rax = RT_TSS;
    rt_run(&f);
    trapped(&f, GP, RT_TSS, s_ltr, "LTR of a busy TSS: #GP(sel)");
    is(rt_gdt[RT_TSS / 8] >> 40 & 0xf, 0xb, "LTR had marked it busy");
    f = rt_user(s_lldt);
    rt_run(&f);
    trapped(&f, GP, 0, s_lldt, "LLDT at CPL 3: #GP(0)");
}

static void io_permission(void)
{
    /* SDM vol. 1, 19.5.2. */
    struct frame f = rt_user(s_in);
    f.rdx = 0x80;
    rt_run(&f);
    trapped(&f, GP, 0, s_in, "IN at CPL 3, IOPL 0, bit set in the bitmap: #GP(0)");
    rt_tss.bitmap[0x80 / 8] &= (uint8_t)~1;
    f = rt_user(s_in);
    f.rdx = 0x80;
    rt_run(&f);
    ok(rt_done(f, s_in), "bit clear: allowed");
    f = rt_user(s_inl);
    f.rdx = 0x80;
    rt_run(&f);
    trapped(&f, GP, 0, s_inl, "IN of 4 bytes needs 4 clear bits");
    rt_tss.bitmap[0x80 / 8] &= (uint8_t)~0xf;
    f = rt_user(s_inl);
    f.rdx = 0x80;
    rt_run(&f);
    ok(rt_done(f, s_inl), "and has them now");
    f = rt_user(s_outsb);
    f.rdx = 0x90;
    f.rsi = rt_alias(&rt_tss);
    rt_run(&f);
    trapped(&f, GP, 0, s_outsb, "OUTS is checked too");
    memset(rt_tss.bitmap, 0xff, sizeof(rt_tss.bitmap));
    f = rt_user(s_in);
    f.rdx = 0x80;
    f.rflags |= 0x3000;
    rt_run(&f);
    ok(rt_done(f, s_in), "IOPL 3 allows all");
    rt_tss.iomap = 0xffff;
    f = rt_user(s_in);
    f.rdx = 0x80;
    rt_run(&f);
    trapped(&f, GP, 0, s_in, "a bitmap beyond the TSS's limit denies all");
    rt_tss.iomap = offsetof(struct tss64, bitmap);
}

void test_main(void)
{
    far_transfers();
    loads();
    limits();
    inspect();
    tables();
    io_permission();
}
