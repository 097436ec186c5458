/*
 * System instructions (SDM vol. 2), by the functions of cpu/x86. General registers only.
 */
#include <Zydis/Zydis.h>
#include <sched.h>

#include "cpu/bt/op.h"

#define PAUSES_PER_YIELD 64u

static int op_hlt(struct bt_vcpu *v, const struct bt_op *op)
{
    (void)op;
    return op_done(x86_check_cpl0(&v->cpu), BT_HALT);
}

static int op_cli(struct bt_vcpu *v, const struct bt_op *op)
{
    (void)op;
    return op_done(x86_cli(&v->cpu), BT_NEXT);
}

static int op_sti(struct bt_vcpu *v, const struct bt_op *op)
{
    (void)op;
    int r = x86_sti(&v->cpu); /* before its shadow is looked at */
    return op_done(r, v->cpu.s.sti_shadow || v->irq_wait ? BT_DONE : BT_NEXT);
}

static int op_cld(struct bt_vcpu *v, const struct bt_op *op)
{
    (void)op;
    v->cpu.s.rflags &= ~(uint64_t)X86_DF;
    return BT_NEXT;
}

static int op_std(struct bt_vcpu *v, const struct bt_op *op)
{
    (void)op;
    v->cpu.s.rflags |= X86_DF;
    return BT_NEXT;
}

static int op_clac_stac(struct bt_vcpu *v, const struct bt_op *op)
{
    return op_done(x86_clac_stac(&v->cpu, op->mnemonic == ZYDIS_MNEMONIC_STAC), BT_DONE);
}

static int op_clts(struct bt_vcpu *v, const struct bt_op *op)
{
    (void)op;
    return op_done(x86_clts(&v->cpu), BT_DONE);
}

/* A processor that waits for another in a loop: where vCPUs share a core, the other needs it. */
static int op_pause(struct bt_vcpu *v, const struct bt_op *op)
{
    (void)op;
    __builtin_ia32_pause();
    if (++v->pauses % PAUSES_PER_YIELD == 0) {
        bt_fpu_save(v);
        sched_yield();
    }
    return BT_NEXT;
}

/* INVD, WBINVD, WBNOINVD: caches are coherent; nothing to do. */
static int op_wbinvd(struct bt_vcpu *v, const struct bt_op *op)
{
    (void)op;
    return op_done(x86_check_cpl0(&v->cpu), BT_NEXT);
}

static int op_invlpg(struct bt_vcpu *v, const struct bt_op *op)
{
    uint64_t va = bt_op_ea(v, op);
    if (!op_code64(v) || op->seg == X86_FS || op->seg == X86_GS) {
        va += v->cpu.s.seg[op->seg].base;
    }
    return op_done(x86_invlpg(&v->cpu, va), BT_DONE);
}

static int op_invpcid(struct bt_vcpu *v, const struct bt_op *op)
{
    uint64_t pcid, va, ea = bt_op_ea(v, op);
    if (x86_check_cpl0(&v->cpu) < 0 || op_load(v, op->seg, ea, 8, op->stack_based, &pcid) < 0 ||
        op_load(v, op->seg, ea + 8, 8, op->stack_based, &va) < 0) {
        return BT_RAISE;
    }
    return op_done(x86_invpcid(&v->cpu, op_get(v, op->reg, op_code64(v) ? 8 : 4), pcid, va), BT_DONE);
}

static int op_cpuid(struct bt_vcpu *v, const struct bt_op *op)
{
    uint32_t out[4];
    uint64_t *r = v->cpu.s.gpr;
    (void)op;
    x86_cpuid(&v->cpu, (uint32_t)r[X86_RAX], (uint32_t)r[X86_RCX], out);
    r[X86_RAX] = out[0];
    r[X86_RBX] = out[1];
    r[X86_RCX] = out[2];
    r[X86_RDX] = out[3];
    return BT_NEXT;
}

static void set_edx_eax(struct bt_vcpu *v, uint64_t value)
{
    v->cpu.s.gpr[X86_RAX] = (uint32_t)value;
    v->cpu.s.gpr[X86_RDX] = value >> 32;
}

static uint64_t get_edx_eax(const struct bt_vcpu *v)
{
    return (uint32_t)v->cpu.s.gpr[X86_RAX] | v->cpu.s.gpr[X86_RDX] << 32;
}

static int op_rdmsr(struct bt_vcpu *v, const struct bt_op *op)
{
    uint64_t value;
    (void)op;
    if (x86_check_cpl0(&v->cpu) < 0 || x86_rdmsr(&v->cpu, (uint32_t)v->cpu.s.gpr[X86_RCX], &value) < 0) {
        return BT_RAISE;
    }
    set_edx_eax(v, value);
    return BT_NEXT;
}

static int op_wrmsr(struct bt_vcpu *v, const struct bt_op *op)
{
    (void)op;
    if (x86_check_cpl0(&v->cpu) < 0) {
        return BT_RAISE;
    }
    return op_done(x86_wrmsr(&v->cpu, (uint32_t)v->cpu.s.gpr[X86_RCX], get_edx_eax(v)), BT_DONE);
}

static int op_rdtsc(struct bt_vcpu *v, const struct bt_op *op)
{
    uint64_t value;
    if (x86_rdtsc(&v->cpu, &value) < 0) {
        return BT_RAISE;
    }
    set_edx_eax(v, value);
    if (op->mnemonic == ZYDIS_MNEMONIC_RDTSCP) {
        v->cpu.s.gpr[X86_RCX] = (uint32_t)v->cpu.s.tsc_aux;
    }
    return BT_NEXT;
}

static int op_rdpid(struct bt_vcpu *v, const struct bt_op *op)
{
    v->cpu.s.gpr[op->rm] = (uint32_t)v->cpu.s.tsc_aux;
    return BT_NEXT;
}

static int op_rdpmc(struct bt_vcpu *v, const struct bt_op *op)
{
    uint64_t value;
    (void)op;
    if (x86_rdpmc(&v->cpu, (uint32_t)v->cpu.s.gpr[X86_RCX], &value) < 0) {
        return BT_RAISE;
    }
    set_edx_eax(v, value);
    return BT_NEXT;
}

/* MOV to and from CRn and DRn: 0F 20 to 0F 23; the operand is always a register, 64 or 32 bits wide by mode.
 */
static int op_mov_cr(struct bt_vcpu *v, const struct bt_op *op)
{
    unsigned size = op_code64(v) ? 8 : 4;
    uint64_t value = op_get(v, op->rm, size);
    int r;
    switch (op->opcode) {
    case 0x20: r = x86_mov_from_cr(&v->cpu, op->reg, &value); break;
    case 0x21: r = x86_mov_from_dr(&v->cpu, op->reg, &value); break;
    case 0x22: return op_done(x86_mov_to_cr(&v->cpu, op->reg, value), BT_DONE);
    default: return op_done(x86_mov_to_dr(&v->cpu, op->reg, value), BT_DONE);
    }
    if (r < 0) {
        return BT_RAISE;
    }
    op_set(v, op->rm, size, value);
    return BT_NEXT;
}

static int op_mov_from_seg(struct bt_vcpu *v, const struct bt_op *op)
{
    if (op->modrm_reg >= X86_SREGS) {
        return bt_op_ud(v, op);
    }
    return op_done(op_rm_store(v, op, op->has_mem ? 2 : op->opsize, v->cpu.s.seg[op->modrm_reg].selector),
                   BT_NEXT);
}

static int op_mov_to_seg(struct bt_vcpu *v, const struct bt_op *op)
{
    uint64_t selector;
    if (op->modrm_reg >= X86_SREGS || op->modrm_reg == X86_CS) {
        return bt_op_ud(v, op);
    }
    if (op_rm_load(v, op, 2, &selector) < 0 ||
        x86_load_segment(&v->cpu, (enum x86_sreg)op->modrm_reg, (uint16_t)selector) < 0) {
        return BT_RAISE;
    }
    v->cpu.s.movss_shadow = op->modrm_reg == X86_SS;
    return BT_DONE;
}

/* LGDT, LIDT: limit, then base (24 bits of it with a 16-bit operand). */
static int op_lgdt(struct bt_vcpu *v, const struct bt_op *op)
{
    unsigned size = op_code64(v) ? 8 : 4;
    uint64_t limit, base, ea = bt_op_ea(v, op);
    if (x86_check_cpl0(&v->cpu) < 0 || op_load(v, op->seg, ea, 2, op->stack_based, &limit) < 0 ||
        op_load(v, op->seg, ea + 2, size, op->stack_based, &base) < 0) {
        return BT_RAISE;
    }
    if (op->opsize == 2 && size == 4) {
        base &= 0xffffff;
    }
    int r = op->mnemonic == ZYDIS_MNEMONIC_LGDT ? x86_lgdt(&v->cpu, base, (uint16_t)limit)
                                                : x86_lidt(&v->cpu, base, (uint16_t)limit);
    return op_done(r, BT_DONE);
}

static int op_sgdt(struct bt_vcpu *v, const struct bt_op *op)
{
    const struct x86_table *t = op->mnemonic == ZYDIS_MNEMONIC_SGDT ? &v->cpu.s.gdtr : &v->cpu.s.idtr;
    uint64_t ea = bt_op_ea(v, op);
    if (x86_check_umip(&v->cpu) < 0) {
        return BT_RAISE;
    }
    if (op_store(v, op->seg, ea + 2, op_code64(v) ? 8 : 4, op->stack_based, t->base) < 0) {
        return BT_RAISE;
    }
    return op_done(op_store(v, op->seg, ea, 2, op->stack_based, t->limit), BT_NEXT);
}

static int op_sldt(struct bt_vcpu *v, const struct bt_op *op)
{
    uint64_t value;
    if (op->mnemonic != ZYDIS_MNEMONIC_SMSW && (!x86_protected(&v->cpu) || x86_vm86(&v->cpu))) {
        return bt_op_ud(v, op);
    }
    if (x86_check_umip(&v->cpu) < 0) {
        return BT_RAISE;
    }
    switch (op->mnemonic) {
    case ZYDIS_MNEMONIC_SLDT: value = v->cpu.s.ldtr.selector; break;
    case ZYDIS_MNEMONIC_STR: value = v->cpu.s.tr.selector; break;
    default: value = v->cpu.s.cr0; break;
    }
    return op_done(op_rm_store(v, op, op->has_mem ? 2 : op->opsize, value), BT_NEXT);
}

static int op_lldt(struct bt_vcpu *v, const struct bt_op *op)
{
    uint64_t value;
    if (op->mnemonic != ZYDIS_MNEMONIC_LMSW && (!x86_protected(&v->cpu) || x86_vm86(&v->cpu))) {
        return bt_op_ud(v, op);
    }
    if (x86_check_cpl0(&v->cpu) < 0 || op_rm_load(v, op, 2, &value) < 0) {
        return BT_RAISE;
    }
    int r = op->mnemonic == ZYDIS_MNEMONIC_LLDT  ? x86_lldt(&v->cpu, (uint16_t)value)
            : op->mnemonic == ZYDIS_MNEMONIC_LTR ? x86_ltr(&v->cpu, (uint16_t)value)
                                                 : x86_lmsw(&v->cpu, (uint16_t)value);
    return op_done(r, BT_DONE);
}

/* LAR, LSL, VERR, VERW answer in ZF. */
static int op_lar(struct bt_vcpu *v, const struct bt_op *op)
{
    uint64_t selector;
    bool ok = false;
    uint32_t value = 0;
    int r;
    if (!x86_protected(&v->cpu) || x86_vm86(&v->cpu)) {
        return bt_op_ud(v, op);
    }
    if (op_rm_load(v, op, 2, &selector) < 0) {
        return BT_RAISE;
    }
    switch (op->mnemonic) {
    case ZYDIS_MNEMONIC_LAR: r = x86_lar(&v->cpu, (uint16_t)selector, &ok, &value); break;
    case ZYDIS_MNEMONIC_LSL: r = x86_lsl(&v->cpu, (uint16_t)selector, &ok, &value); break;
    default: r = x86_verr(&v->cpu, (uint16_t)selector, op->mnemonic == ZYDIS_MNEMONIC_VERW, &ok); break;
    }
    if (r < 0) {
        return BT_RAISE;
    }
    if (ok && (op->mnemonic == ZYDIS_MNEMONIC_LAR || op->mnemonic == ZYDIS_MNEMONIC_LSL)) {
        op_set(v, op->reg, op->opsize, value);
    }
    v->cpu.s.rflags = (v->cpu.s.rflags & ~(uint64_t)X86_ZF) | (ok ? X86_ZF : 0);
    return BT_NEXT;
}

static int op_swapgs(struct bt_vcpu *v, const struct bt_op *op)
{
    (void)op;
    return op_done(x86_swapgs(&v->cpu), BT_NEXT);
}

static int op_fsgsbase(struct bt_vcpu *v, const struct bt_op *op)
{
    bool write = op->modrm_reg >= 2; /* F3 0F AE /0 RDFSBASE, /1 RDGSBASE, /2 WRFSBASE, /3 WRGSBASE */
    enum x86_sreg sreg = op->modrm_reg & 1 ? X86_GS : X86_FS;
    unsigned size = op->rex_w ? 8 : 4;
    uint64_t value = op_get(v, op->rm, size);
    if (x86_fsgsbase(&v->cpu, sreg, write, size, &value) < 0) {
        return BT_RAISE;
    }
    if (!write) {
        op_set(v, op->rm, size, value);
    }
    return BT_NEXT;
}

static int op_syscall(struct bt_vcpu *v, const struct bt_op *op)
{
    int r;
    switch (op->mnemonic) {
    case ZYDIS_MNEMONIC_SYSCALL:
        v->counters[BT_C_SYSCALLS]++;
        r = x86_syscall(&v->cpu);
        v->no_step = !(v->cpu.s.rflags & X86_TF); /* masked by SFMASK */
        break;
    case ZYDIS_MNEMONIC_SYSRET: r = x86_sysret(&v->cpu, op->rex_w ? 8 : 4); break;
    case ZYDIS_MNEMONIC_SYSENTER: r = x86_sysenter(&v->cpu); break;
    default: r = x86_sysexit(&v->cpu, op->rex_w ? 8 : 4); break;
    }
    return op_done(r, BT_JUMP);
}

static int op_iret(struct bt_vcpu *v, const struct bt_op *op)
{
    return op_done(x86_iret(&v->cpu, op->opsize), BT_JUMP);
}

static int op_int(struct bt_vcpu *v, const struct bt_op *op)
{
    int r;
    v->no_step = op->mnemonic != ZYDIS_MNEMONIC_INTO || (v->cpu.s.rflags & X86_OF);
    switch (op->mnemonic) {
    case ZYDIS_MNEMONIC_INT3: r = x86_int(&v->cpu, X86_INT3, X86_BP); break;
    case ZYDIS_MNEMONIC_INT1: r = x86_int(&v->cpu, X86_INT1, X86_DB); break;
    case ZYDIS_MNEMONIC_INTO:
        if (!(v->cpu.s.rflags & X86_OF)) {
            return BT_NEXT;
        }
        r = x86_int(&v->cpu, X86_INTO, X86_OF_EXC);
        break;
    default: r = x86_int(&v->cpu, X86_INT_N, (uint8_t)op->imm); break;
    }
    return op_done(r, BT_JUMP);
}

static int op_xgetbv(struct bt_vcpu *v, const struct bt_op *op)
{
    uint64_t value;
    (void)op;
    if (x86_xgetbv(&v->cpu, (uint32_t)v->cpu.s.gpr[X86_RCX], &value) < 0) {
        return BT_RAISE;
    }
    set_edx_eax(v, value);
    return BT_NEXT;
}

static int op_xsetbv(struct bt_vcpu *v, const struct bt_op *op)
{
    (void)op;
    return op_done(x86_xsetbv(&v->cpu, (uint32_t)v->cpu.s.gpr[X86_RCX], get_edx_eax(v)), BT_DONE);
}

/* Both vendors' hypercall instruction is accepted, as KVM does. */
static int op_vmcall(struct bt_vcpu *v, const struct bt_op *op)
{
    uint64_t *r = v->cpu.s.gpr;
    (void)op;
    if (!v->cpu.platform.hypercall) {
        return bt_op_ud(v, op);
    }
    const uint64_t args[4] = {r[X86_RBX], r[X86_RCX], r[X86_RDX], r[X86_RSI]};
    r[X86_RAX] = v->cpu.cpl == 0 ? v->cpu.platform.hypercall(v->cpu.platform.opaque, r[X86_RAX], args)
                                 : (uint64_t)-1; /* -KVM_EPERM */
    return BT_NEXT;
}

/* IN, OUT with an immediate port or DX. */
static int op_in_out(struct bt_vcpu *v, const struct bt_op *op)
{
    uint16_t port = (uint16_t)(op->opcode & 8 ? v->cpu.s.gpr[X86_RDX] : op->imm & 0xff);
    unsigned size = op->opcode & 1 ? (op->opsize == 2 ? 2 : 4) : 1;
    if (x86_check_io(&v->cpu, port, size) < 0) {
        return BT_RAISE;
    }
    v->counters[BT_C_PIO]++;
    bt_fpu_save(v);
    if (op->opcode & 2) {
        mem_pio_write(v->cpu.mem, port, size, (uint32_t)op_get(v, X86_RAX, size));
    } else {
        op_set(v, X86_RAX, size, mem_pio_read(v->cpu.mem, port, size));
    }
    return BT_DONE;
}

struct system_op {
    bool ends;
    bt_op_fn *fn;
};

static const struct system_op system_ops[ZYDIS_MNEMONIC_MAX_VALUE + 1] = {
    [ZYDIS_MNEMONIC_HLT] = {true, op_hlt},
    [ZYDIS_MNEMONIC_CLI] = {false, op_cli},
    [ZYDIS_MNEMONIC_STI] = {true, op_sti},
    [ZYDIS_MNEMONIC_CLD] = {false, op_cld},
    [ZYDIS_MNEMONIC_STD] = {false, op_std},
    [ZYDIS_MNEMONIC_CLAC] = {true, op_clac_stac},
    [ZYDIS_MNEMONIC_STAC] = {true, op_clac_stac},
    [ZYDIS_MNEMONIC_CLTS] = {true, op_clts},
    [ZYDIS_MNEMONIC_INVD] = {false, op_wbinvd},
    [ZYDIS_MNEMONIC_WBINVD] = {false, op_wbinvd},
    [ZYDIS_MNEMONIC_INVLPG] = {true, op_invlpg},
    [ZYDIS_MNEMONIC_INVPCID] = {true, op_invpcid},
    [ZYDIS_MNEMONIC_CPUID] = {false, op_cpuid},
    [ZYDIS_MNEMONIC_PAUSE] = {false, op_pause},
    [ZYDIS_MNEMONIC_RDMSR] = {false, op_rdmsr},
    [ZYDIS_MNEMONIC_WRMSR] = {true, op_wrmsr},
    [ZYDIS_MNEMONIC_RDTSC] = {false, op_rdtsc},
    [ZYDIS_MNEMONIC_RDTSCP] = {false, op_rdtsc},
    [ZYDIS_MNEMONIC_RDPID] = {false, op_rdpid},
    [ZYDIS_MNEMONIC_RDPMC] = {false, op_rdpmc},
    [ZYDIS_MNEMONIC_LGDT] = {true, op_lgdt},
    [ZYDIS_MNEMONIC_LIDT] = {true, op_lgdt},
    [ZYDIS_MNEMONIC_SGDT] = {false, op_sgdt},
    [ZYDIS_MNEMONIC_SIDT] = {false, op_sgdt},
    [ZYDIS_MNEMONIC_SLDT] = {false, op_sldt},
    [ZYDIS_MNEMONIC_STR] = {false, op_sldt},
    [ZYDIS_MNEMONIC_SMSW] = {false, op_sldt},
    [ZYDIS_MNEMONIC_LLDT] = {true, op_lldt},
    [ZYDIS_MNEMONIC_LTR] = {true, op_lldt},
    [ZYDIS_MNEMONIC_LMSW] = {true, op_lldt},
    [ZYDIS_MNEMONIC_LAR] = {false, op_lar},
    [ZYDIS_MNEMONIC_LSL] = {false, op_lar},
    [ZYDIS_MNEMONIC_VERR] = {false, op_lar},
    [ZYDIS_MNEMONIC_VERW] = {false, op_lar},
    [ZYDIS_MNEMONIC_SWAPGS] = {false, op_swapgs},
    [ZYDIS_MNEMONIC_RDFSBASE] = {false, op_fsgsbase},
    [ZYDIS_MNEMONIC_RDGSBASE] = {false, op_fsgsbase},
    [ZYDIS_MNEMONIC_WRFSBASE] = {false, op_fsgsbase},
    [ZYDIS_MNEMONIC_WRGSBASE] = {false, op_fsgsbase},
    [ZYDIS_MNEMONIC_SYSCALL] = {true, op_syscall},
    [ZYDIS_MNEMONIC_SYSRET] = {true, op_syscall},
    [ZYDIS_MNEMONIC_SYSENTER] = {true, op_syscall},
    [ZYDIS_MNEMONIC_SYSEXIT] = {true, op_syscall},
    [ZYDIS_MNEMONIC_IRET] = {true, op_iret},
    [ZYDIS_MNEMONIC_IRETD] = {true, op_iret},
    [ZYDIS_MNEMONIC_IRETQ] = {true, op_iret},
    [ZYDIS_MNEMONIC_INT] = {true, op_int},
    [ZYDIS_MNEMONIC_INT1] = {true, op_int},
    [ZYDIS_MNEMONIC_INT3] = {true, op_int},
    [ZYDIS_MNEMONIC_INTO] = {true, op_int},
    [ZYDIS_MNEMONIC_XGETBV] = {false, op_xgetbv},
    [ZYDIS_MNEMONIC_XSETBV] = {true, op_xsetbv},
    [ZYDIS_MNEMONIC_VMCALL] = {true, op_vmcall},
    [ZYDIS_MNEMONIC_VMMCALL] = {true, op_vmcall},
    [ZYDIS_MNEMONIC_IN] = {true, op_in_out},
    [ZYDIS_MNEMONIC_OUT] = {true, op_in_out},
    [ZYDIS_MNEMONIC_UD0] = {true, bt_op_ud},
    [ZYDIS_MNEMONIC_UD1] = {true, bt_op_ud},
    [ZYDIS_MNEMONIC_UD2] = {true, bt_op_ud},
    [ZYDIS_MNEMONIC_RSM] = {true, bt_op_ud},
    [ZYDIS_MNEMONIC_GETSEC] = {true, bt_op_ud},
    [ZYDIS_MNEMONIC_VMCLEAR] = {true, bt_op_ud},
};

bt_op_fn *op_system_lookup(const struct bt_insn *in, bool *ret_ends)
{
    /* MOV with control, debug and segment registers shares its mnemonic with the plain one. */
    if (in->op.mnemonic == ZYDIS_MNEMONIC_MOV && in->enc == BT_ENC_LEGACY) {
        if (in->map == 1 && in->opcode >= 0x20 && in->opcode <= 0x23) {
            *ret_ends = in->opcode >= 0x22;
            return op_mov_cr;
        }
        if (in->map == 0 && in->opcode == 0x8c) {
            return op_mov_from_seg;
        }
        if (in->map == 0 && in->opcode == 0x8e) {
            *ret_ends = true;
            return op_mov_to_seg;
        }
        return NULL;
    }
    const struct system_op *op = &system_ops[in->op.mnemonic];
    if (!op->fn) {
        return NULL;
    }
    *ret_ends = op->ends;
    return op->fn;
}
