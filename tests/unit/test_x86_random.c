/*
 * Random descriptors, selectors, gates, stacks and pages thrown at segmentation, event delivery, far
 * transfers, system calls and task switches: nothing crashes, the state stays one that a processor can be in,
 * and what fails changes nothing.
 */
#include "tests/unit/x86_fixture.h"

#define WORLDS          5000
#define CALLS_PER_WORLD 40

static uint64_t seed;

static uint64_t random64(void)
{
    return unit_random(&seed);
}
static uint32_t below(uint32_t limit)
{
    return (uint32_t)(random64() >> 33) % limit;
}
static bool one_in(uint32_t n)
{
    return below(n) == 0;
}

/* --- worlds --- */

static uint16_t random_selector(void)
{
    return (uint16_t)(one_in(16) ? random64() : below(0x200));
}

static uint64_t random_pointer(void)
{
    switch (below(8)) {
    case 0: return random64();
    case 1: return 0x800000000000 - below(64);
    case 2: return FIX_UNMAPPED + below(0x3000) - 0x800;
    case 3: return 0xffff800000000000 | below(FIX_RAM);
    case 4: return below(0x100);
    default: return 0x8000 + below(0x8000);
    }
}

static uint64_t random_descriptor(void)
{
    static const uint16_t usual[] = {0xc09b, 0xc093, 0xc0fb, 0xc0f3, 0xa09b, 0xa0fb, 0x009b, 0x0093,
                                     0xc09f, 0x4097, 0x0089, 0x008b, 0x0082, 0x0081, 0xc0bb, 0xc0b3};
    uint32_t attr = one_in(3) ? (uint32_t)random64() & 0xf0ff : usual[below(16)];
    uint32_t limit = one_in(4) ? below(0x1000) : (uint32_t)random64();

    if (one_in(3)) { /* a gate */
        return fix_gate(random_selector(), one_in(2) ? 0x7000 : (uint32_t)random64(),
                        0x80 | (uint32_t[]){4, 5, 0xc, 0xe, 0xf, 6, 7}[below(7)] | below(4) << 5, below(32));
    }
    return fix_desc(one_in(8) ? (uint32_t)random64() : one_in(2) ? 0 : below(0x10000), limit, attr);
}

/* Tasks to switch to, and gates that lead there. */
static void random_tasks(struct fixture *fix)
{
    static const uint16_t sregs[] = {KDATA, KCODE, KDATA, UDATA | 3, 0, IN_LDT};

    for (uint32_t task = 0; task < 8; task++) {
        uint32_t base = FIX_TSS_B + task * 0x80;
        uint16_t selector = (uint16_t)(FREE + 0x40 + task * 16);

        for (uint32_t i = 0; i < 0x68; i += 4) {
            fix_put(fix, base + i, 4, one_in(2) ? 0x7000 : random_pointer());
        }
        for (uint32_t i = 0; i < 6; i++) {
            fix_put(fix, base + 0x48 + i * 4, 4, one_in(16) ? random_selector() : sregs[i]);
        }
        fix_put(fix, base + 0x60, 4, one_in(8) ? random_selector() : LDT);
        fix_put(fix, base + 0x64, 4, one_in(8));
        fix_put(fix, base, 4, TSS);
        fix_set_desc(fix, selector,
                     fix_desc(base, one_in(16) ? below(0x80) : 0x67,
                              one_in(4)   ? 0xe1
                              : one_in(4) ? 0x8b
                                          : 0xe9));
        fix_set_desc(fix, (uint16_t)(selector + 8), fix_gate(selector, 0, 0xe5, 0));
        fix_set_gate(fix, below(256), fix_gate(selector, 0, 0xe5, 0), 0);
    }
}

static void random_tables(struct fixture *fix)
{
    for (uint32_t i = 0; i < 64; i++) {
        if (i >= FREE / 8 || one_in(16)) {
            fix_put(fix, FIX_GDT + i * 8, 8, random_descriptor());
        }
        fix_put(fix, FIX_LDT + i * 8, 8, random_descriptor());
    }
    for (uint32_t i = 0; i < 256; i++) {
        static const uint32_t types[] = {0xe, 0xf, 0xe, 0xf, 6, 7, 5, 0xe};
        uint16_t selector = one_in(4) ? random_selector() : x86_long_mode(&fix->cpu) ? KCODE64 : KCODE;
        uint32_t attr = one_in(16) ? (uint32_t)random64() & 0xff
                                   : (one_in(16) ? 0 : 0x80) | types[below(8)] | below(4) << 5;

        fix_set_gate(
            fix, i,
            fix_gate(selector, one_in(8) ? (uint32_t)random64() : 0x7000, attr, one_in(4) ? below(8) : 0),
            one_in(8) ? random64() : 0);
    }
    if (one_in(4)) {
        for (uint32_t i = 0; i < 0x68; i += 4) {
            fix_put(fix, FIX_TSS + i, 4, one_in(2) ? random_pointer() : random_selector());
        }
    }
    random_tasks(fix);
}

static void random_world(struct fixture *fix)
{
    static const uint32_t risky[] = {FIX_GDT, FIX_LDT, FIX_IDT, FIX_TSS, FIX_KSTACK - 0x1000};
    struct x86_state *s = &fix->cpu.s;
    unsigned cpl = one_in(2) ? 3 : 0;

    memset(s, 0, sizeof(*s));
    memset(fix_ptr(fix, 0), 0, 0x10000);
    switch (below(5)) {
    case 0: fix_real(fix); break;
    case 1: fix_vm86(fix, below(4)); break;
    case 2: fix_protected(fix, cpl); break;
    case 3: fix_long(fix, cpl, true); break;
    default: fix_long(fix, cpl, false); break;
    }
    s->efer |= one_in(4) ? 0 : X86_EFER_SCE;
    s->cr4 |= one_in(2) ? X86_CR4_VME : 0;
    s->star = random64();
    s->lstar = 0xffffffff81000000;
    s->cstar = 0xffffffff82000000;
    s->sfmask = (uint32_t)random64();
    s->sysenter_cs = random_selector();
    s->sysenter_eip = 0xffffffff83000000;
    if (x86_long_mode(&fix->cpu) && one_in(3)) {
        uint32_t page = risky[below(5)];

        fix_put(fix, FIX_PML4 + 0x3000 + (page >> 12) * 8, 8, one_in(2) ? page | 5 : page | 3);
    }
    if (s->cr0 & X86_CR0_PE) {
        random_tables(fix);
    }
    if (one_in(8)) {
        s->gdtr.limit = (uint16_t)below(0x200);
    }
    if (one_in(8)) {
        s->idtr.limit = (uint16_t)below(0x1000);
    }
    if (one_in(8)) {
        s->tr.limit = below(0x70);
    }
    fix->cpu.cpuid.intel = one_in(2);
    fix->ops.translate = one_in(2) ? fix_translate : NULL;
}

/* --- calls --- */

/* A frame that IRET and RET may find. */
static void random_stack(struct fixture *fix, unsigned operand)
{
    struct x86_state *s = &fix->cpu.s;
    uint64_t sp;

    if (one_in(2)) {
        s->gpr[X86_RSP] = random_pointer();
    }
    if (!x86_code64(&fix->cpu)) {
        s->gpr[X86_RSP] = (uint32_t)s->gpr[X86_RSP];
    }
    sp = s->gpr[X86_RSP] + (x86_code64(&fix->cpu) ? 0 : s->seg[X86_SS].base);
    if (sp > FIX_RAM - 0x100 || (sp >= 0xfff && sp < 0x7000) || sp > 0x20000) {
        return;
    }
    const uint64_t items[] = {one_in(2) ? 0x7000 : random_pointer(),
                              random_selector(),
                              random64() & 0x3ffffff,
                              random_pointer(),
                              random_selector(),
                              random_selector()};
    for (unsigned i = 0; i < 6; i++) {
        fix_put(fix, sp + i * operand, operand, items[i]);
    }
}

static int random_call(struct fixture *fix)
{
    struct x86_cpu *cpu = &fix->cpu;
    unsigned operand = x86_code64(cpu) && one_in(2) ? 8 : one_in(2) ? 4 : 2;
    uint64_t offset = one_in(2) ? 0x7000 : random_pointer();
    uint32_t value;
    bool ok;

    switch (below(20)) {
    case 0: return x86_lldt(cpu, random_selector());
    case 1: return x86_ltr(cpu, random_selector());
    case 2: return x86_lar(cpu, random_selector(), &ok, &value);
    case 3: return x86_lsl(cpu, random_selector(), &ok, &value);
    case 4: return x86_verr(cpu, random_selector(), one_in(2), &ok);
    case 5: return x86_syscall(cpu);
    case 6: return x86_sysret(cpu, operand == 8 ? 8 : 4);
    case 7: return x86_sysenter(cpu);
    case 8: return x86_sysexit(cpu, operand == 8 ? 8 : 4);
    case 9: return x86_int(cpu, (enum x86_int_kind)below(4), (uint8_t)random64());
    case 10:
    case 11: return x86_far_jmp(cpu, random_selector(), offset, operand);
    case 12:
    case 13: return x86_far_call(cpu, random_selector(), offset, operand);
    case 14: return x86_far_ret(cpu, operand, (uint16_t)below(32));
    case 15:
    case 16: return x86_iret(cpu, operand);
    default: return x86_load_segment(cpu, (enum x86_sreg)below(X86_SREGS), random_selector());
    }
}

/* --- what always holds --- */

static bool segment_is_sane(const struct x86_cpu *cpu, const struct x86_segment *seg, bool data)
{
    if (!seg->attr) {
        return true;
    }
    /* present, code or data, accessed */
    return (seg->attr & 0x91) == 0x91 && (!data || cpu->s.cr0 == 0 || (seg->attr & 0xa) != 0x8);
}

static void check_sane(struct fixture *fix, bool amd_sysret)
{
    const struct x86_cpu *cpu = &fix->cpu;
    const struct x86_state *s = &cpu->s;

    assert_int_equal(s->rflags & ~X86_FLAGS_DEFINED, X86_FLAGS_FIXED);
    assert_true(cpu->cpl <= 3);
    assert_false(cpu->in_delivery);
    if (!x86_protected(cpu)) {
        assert_int_equal(cpu->cpl, 0);
    } else if (x86_vm86(cpu)) {
        assert_int_equal(cpu->cpl, 3);
        assert_false(x86_long_mode(cpu));
    } else {
        assert_int_equal(cpu->cpl, s->seg[X86_CS].selector & 3);
        if (s->seg[X86_SS].attr) {
            assert_int_equal((s->seg[X86_SS].attr & X86_SEG_DPL) >> X86_SEG_DPL_SHIFT, cpu->cpl);
        }
    }
    if (x86_code64(cpu)) {
        assert_false(s->seg[X86_CS].attr & X86_SEG_DB);
        assert_true(amd_sysret || x86_is_canonical(s->rip));
    } else {
        assert_int_equal(s->rip >> 32, 0);
    }
    for (unsigned i = 0; i < X86_SREGS; i++) {
        assert_true(segment_is_sane(cpu, &s->seg[i], i != X86_CS));
        assert_true(i == X86_FS || i == X86_GS || s->seg[i].base >> 32 == 0);
    }
    assert_true(x86_is_canonical(s->tr.base) && x86_is_canonical(s->ldtr.base));
    assert_true(!s->ldtr.attr || (s->ldtr.attr & 0x9f) == 0x82);
    assert_int_equal(s->tr.attr & 0x97, s->tr.attr ? 0x83 : 0);
}

/* A task switch happened, or may have: then a failing call may have changed the state. */
static bool task_switched(const struct fixture *fix)
{
    return (fix->cpu.s.cr0 & X86_CR0_TS) && !x86_long_mode(&fix->cpu);
}

static void test_random(void **state)
{
    struct fixture *fix = *state;
    struct x86_cpu *cpu = &fix->cpu;
    unsigned completed = 0, delivered = 0, shutdowns = 0, switches = 0;

    seed = unit_seed();
    for (unsigned world = 0; world < WORLDS; world++) {
        random_world(fix);
        for (unsigned call = 0; call < CALLS_PER_WORLD; call++) {
            int ret;
            bool amd_sysret;

            cpu->s.cr0 &= ~(uint64_t)X86_CR0_TS;
            if (!x86_code64(cpu)) {
                cpu->s.rip = (uint32_t)cpu->s.rip;
            }
            cpu->next_rip = x86_code64(cpu) ? cpu->s.rip + 2 : (uint32_t)(cpu->s.rip + 2);
            if (!x86_is_canonical(cpu->next_rip)) {
                cpu->s.rip = cpu->next_rip = 0x7000;
            }
            random_stack(fix, x86_code64(cpu) && one_in(2) ? 8 : one_in(2) ? 4 : 2);
            if (one_in(4)) {
                cpu->s.gpr[X86_RCX] = random_pointer();
                cpu->s.gpr[X86_RDX] = random_pointer();
                cpu->s.gpr[X86_R11] = random64();
            }
            if (one_in(4)) {
                cpu->s.rflags ^= one_in(2) ? X86_NT : X86_OF | X86_IOPL;
            }
            fix_mark(fix);
            ret = random_call(fix);
            amd_sysret = !cpu->cpuid.intel;
            switches += task_switched(fix);
            if (ret) {
                assert_int_equal(ret, -1);
                assert_true(cpu->exc.vector < 20);
                if (!task_switched(fix)) {
                    fix_check_unchanged(fix, __FILE__, __LINE__);
                }
            }
            check_sane(fix, amd_sysret);
            completed += ret == 0;
            if (ret || one_in(8)) {
                cpu->s.cr0 &= ~(uint64_t)X86_CR0_TS;
                fix_mark(fix);
                ret = ret ? x86_deliver(cpu, one_in(4)) : x86_deliver_interrupt(cpu, (uint8_t)random64());
                if (ret && !task_switched(fix)) {
                    fix->before.s.dr6 = cpu->s.dr6;
                    fix->before.s.dr7 = cpu->s.dr7;
                    fix_check_unchanged(fix, __FILE__, __LINE__);
                }
                check_sane(fix, amd_sysret);
                delivered += ret == 0;
                if (ret) {
                    shutdowns++;
                    break;
                }
            }
        }
    }
    printf("%u calls completed, %u events delivered, %u shutdowns, %u task switches\n", completed, delivered,
           shutdowns, switches);
    /* The worlds must be good enough to get somewhere. */
    assert_true(completed > WORLDS && delivered > WORLDS && shutdowns > WORLDS / 100 &&
                switches > WORLDS / 100);
}

int main(void)
{
    const struct CMUnitTest tests[] = {fix_test(test_random)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
