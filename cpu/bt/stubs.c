/*
 * The stubs: the only ways into and out of translated code.
 *
 *     enter(v, host)     C -> code: loads all guest registers and flags, jumps to host
 *     leave_*            code -> C: stores them, returns an enum bt_leave from enter()
 *     mem_read/write     code -> C -> code: a TLB miss (r15 = guest address, ecx = info); r15 = host address
 * after op                 code -> C -> code: an instruction executed by a function (r14 = struct bt_op)
 *
 *     site               code -> code: the page is not the site's (r15 = guest address, ecx = info, r14 =
 * site): looks into the TLB, fills the site; else like mem
 *
 * C runs on its own stack (c_rsp), translated code on ret_rsp. mem_* saves only what the C calling convention
 * does not, since bt_tlb_miss is compiled for general registers only; the flags are dead or saved there.
 */
#include <stddef.h>

#include "cpu/bt/regs.h"
#include "cpu/bt/stubs.h"

#define A(field) ((uint64_t)&v->field)

static void emit_alu_rsp_imm8(struct emit *e, unsigned ext, int8_t imm)
{
    emit8(e, 0x48);
    emit8(e, 0x83);
    emit8(e, 0xc0 | ext << 3 | H_RSP);
    emit8(e, (uint8_t)imm);
}

/* lea rsp, [rsp + delta] */
static void emit_alu_rsp_flagless(struct emit *e, int8_t delta)
{
    emit_lea(e, H_RSP, H_RSP, delta);
}

static void emit_push(struct emit *e, unsigned r)
{
    emit_rex(e, false, 0, 0, r, false);
    emit8(e, 0x50 | (r & 7));
}

static void emit_pop(struct emit *e, unsigned r)
{
    emit_rex(e, false, 0, 0, r, false);
    emit8(e, 0x58 | (r & 7));
}

/* pop/push qword [addr] */
static void emit_pop_slot(struct emit *e, uint64_t addr)
{
    emit8(e, 0x8f);
    emit_rip_modrm(e, 0, addr, 0);
}

static void emit_push_slot(struct emit *e, uint64_t addr)
{
    emit8(e, 0xff);
    emit_rip_modrm(e, 6, addr, 0);
}

void bt_emit_flags_save(struct emit *e, struct bt_vcpu *v, unsigned tmp)
{
    emit_mov(e, tmp, H_RAX);
    emit8(e, 0x9f); /* lahf */
    emit8(e, 0x0f); /* seto al */
    emit8(e, 0x90);
    emit8(e, 0xc0);
    emit_store32(e, A(aflags), H_RAX);
    emit_mov(e, H_RAX, tmp);
}

/* The same without keeping RAX, for where all registers are loaded afterwards. */
static void emit_flags_in(struct emit *e, struct bt_vcpu *v)
{
    emit_load32(e, H_RAX, A(aflags));
    emit8(e, 0x04); /* add al, 0x7f: OF */
    emit8(e, 0x7f);
    emit8(e, 0x9e); /* sahf */
}

void bt_emit_flags_restore(struct emit *e, struct bt_vcpu *v, unsigned tmp)
{
    emit_mov(e, tmp, H_RAX);
    emit_flags_in(e, v);
    emit_mov(e, H_RAX, tmp);
}

static void emit_guest_out(struct emit *e, struct bt_vcpu *v)
{
    for (unsigned g = 0; g < 16; g++) {
        if (bt_host[g] != H_NONE) {
            emit_store(e, A(cpu.s.gpr[g]), bt_host[g]);
        }
    }
}

static void emit_guest_in(struct emit *e, struct bt_vcpu *v)
{
    for (unsigned g = 0; g < 16; g++) {
        if (bt_host[g] != H_NONE) {
            emit_load(e, bt_host[g], A(cpu.s.gpr[g]));
        }
    }
}

/* Back to the caller of enter(), with eax set. */
static void emit_return_to_c(struct emit *e, struct bt_vcpu *v)
{
    static const uint8_t saved[] = {H_R15, H_R14, H_R13, H_R12, H_RBP, H_RBX};
    emit_store(e, A(ret_rsp), H_RSP);
    emit_load(e, H_RSP, A(c_rsp));
    emit_alu_rsp_imm8(e, 0, 8);
    for (unsigned i = 0; i < ARRAY_SIZE(saved); i++) {
        emit_pop(e, saved[i]);
    }
    emit8(e, 0xc3);
}

static void emit_c_call(struct emit *e, struct bt_vcpu *v, uint64_t fn_slot)
{
    emit_store(e, A(ret_rsp), H_RSP);
    emit_load(e, H_RSP, A(c_rsp));
    emit8(e, 0xff); /* call [fn_slot] */
    emit_rip_modrm(e, 2, fn_slot, 0);
    emit_load(e, H_RSP, A(ret_rsp));
}

static void make_enter(struct emit *e, struct bt_vcpu *v)
{
    static const uint8_t saved[] = {H_RBX, H_RBP, H_R12, H_R13, H_R14, H_R15};
    v->stub_enter = emit_rx(e);
    for (unsigned i = 0; i < ARRAY_SIZE(saved); i++) {
        emit_push(e, saved[i]);
    }
    emit_alu_rsp_imm8(e, 5, 8);
    emit_store(e, A(c_rsp), H_RSP);
    emit_load(e, H_RSP, A(ret_rsp));
    emit_mov(e, H_S1, H_RSI);
    emit_flags_in(e, v);
    emit_guest_in(e, v);
    emit8(e, 0x41); /* jmp r14 */
    emit8(e, 0xff);
    emit8(e, 0xe6);
}

/* r14: argument for C. */
static uint64_t make_leave(struct emit *e, struct bt_vcpu *v, enum bt_leave why)
{
    uint64_t at = emit_rx(e);
    emit_store(e, A(leave_arg), H_S1);
    bt_emit_flags_save(e, v, H_S2);
    emit_guest_out(e, v);
    emit_mov_imm(e, H_RAX, why);
    emit_return_to_c(e, v);
    return at;
}

uint8_t *bt_emit_jc_probe(struct emit *e, struct bt_vcpu *v)
{
    emit_store(e, A(ind_rip), H_S2);
    if (v->has_bmi2) { /* rorx r14, r15, 16 */
        static const uint8_t rorx[] = {0xc4, 0x43, 0xfb, 0xf0, 0xf7, 16};
        emit_bytes(e, rorx, sizeof(rorx));
    } else { /* movzx r14d, word [ind_rip + 2] */
        emit_ra(e, false, 0x0fb7, H_S1, A(ind_rip) + 2);
    }
    emit_rm(e, false, 0x8d, H_S1, H_S1, H_S2, 1, 0); /* lea r14d, [r14 + r15] */
    emit_rr(e, false, 0x0fb7, H_S1, H_S1);           /* movzx r14d, r14w */
    emit_rm(e, false, 0x8d, H_S1, H_S1, H_S1, 1, 0); /* lea r14d, [r14 + r14] */
    emit_rm(e, true, 0x8b, H_S0, H_NONE, H_S1, 8, (int32_t)(uint64_t)v->jc);
    emit_rm(e, true, 0x8d, H_S0, H_S0, H_S2, 1, 0);
    emit_load(e, H_S2, A(ctx));
    emit_rm(e, true, 0x8d, H_S0, H_S0, H_S2, 1, 0);
    return emit_jrcxz_fwd(e);
}

void bt_emit_jc_go(struct emit *e, struct bt_vcpu *v, bool call)
{
    emit_rm(e, false, 0xff, call ? 2 : 4, H_NONE, H_S1, 8,
            (int32_t)(uint64_t)v->jc + 8); /* [r14 * 8 + jc + 8] */
}

/* RET whose predicted landing was wrong, or which had none: through the jump cache. r15: target. */
static void make_lookup(struct emit *e, struct bt_vcpu *v)
{
    v->stub_return_bottom = emit_rx(e);
    emit_alu_rsp_flagless(e, -8); /* the bottom entry stays */
    v->stub_lookup = emit_rx(e);
    uint8_t *hit = bt_emit_jc_probe(e, v);
    v->stub_lookup_miss = emit_rx(e);
    emit_load(e, H_S2, A(ind_rip));
    emit_mov_imm(e, H_S1, BT_NO_EXIT);
    emit_jmp(e, v->stub_leave_return);
    emit_here8(e, hit);
    bt_emit_jc_go(e, v, false);
    v->stub_lookup_end = emit_rx(e);
}

/* The signal handler has stored the guest's state; only C's registers are missing. */
static uint64_t make_leave_fault(struct emit *e, struct bt_vcpu *v)
{
    uint64_t at = emit_rx(e);
    emit_mov_imm(e, H_RAX, BT_LEAVE_FAULT);
    emit_return_to_c(e, v);
    return at;
}

/* Guest numbers of the registers that a C function may destroy, and of those that it keeps. */
static const uint8_t volatile_guest[] = {X86_RAX, X86_RDX, X86_RSI, X86_RDI,
                                         X86_R8,  X86_R9,  X86_R10, X86_R12};
static const uint8_t kept_guest[] = {X86_RBX, X86_RBP, X86_RSP, X86_RCX};

static uint64_t make_mem(struct emit *e, struct bt_vcpu *v)
{
    uint64_t at = emit_rx(e);
    emit_pop_slot(e, A(site));
    for (unsigned i = 0; i < ARRAY_SIZE(volatile_guest); i++) {
        emit_store(e, A(cpu.s.gpr[volatile_guest[i]]), bt_host[volatile_guest[i]]);
    }
    emit_mov32(e, H_RDX, H_RCX);
    emit_mov(e, H_RSI, H_S2);
    emit_mov_imm(e, H_RDI, (uint64_t)v);
    emit_c_call(e, v, A(fn_tlb_miss));
    emit_rr(e, false, 0x85, H_RAX, H_RAX);
    uint8_t *fail = emit_jcc_fwd(e, CC_NE);
    for (unsigned i = 0; i < ARRAY_SIZE(volatile_guest); i++) {
        emit_load(e, bt_host[volatile_guest[i]], A(cpu.s.gpr[volatile_guest[i]]));
    }
    emit_load(e, H_S2, A(tmp[3]));
    emit_push_slot(e, A(site));
    emit8(e, 0xc3);
    emit_here32(e, fail);
    emit_store32(e, A(op_result), H_RAX);
    for (unsigned i = 0; i < ARRAY_SIZE(kept_guest); i++) {
        emit_store(e, A(cpu.s.gpr[kept_guest[i]]), bt_host[kept_guest[i]]);
    }
    emit_mov_imm(e, H_RAX, BT_LEAVE_MEM);
    emit_return_to_c(e, v);
    return at;
}

/* op dword [r14 + disp], imm32 or r32, by its opcode */
static void emit_info32(struct emit *e, unsigned opcode, unsigned reg, uint64_t field)
{
    emit_rm(e, false, opcode, reg, H_S1, H_NONE, 1, (int32_t)field);
}

/*
 * An access whose site holds another page, or none. Where the TLB has the page, the site gets it: marked in
 * site_pages, listed if the site was empty; else the page changed, and where that comes quickly again and
 * again C is told (BT_INFO_POLY). The return address stays on the stack all the while (signal.c).
 */
static uint64_t make_site(struct emit *e, struct bt_vcpu *v, bool write)
{
    uint64_t at = emit_rx(e);
    uint64_t table = (uint64_t)(write ? v->tlb[BT_MMU_USER].write : v->tlb[BT_MMU_USER].read);
    emit_store(e, A(site_info), H_RCX);
    emit_store(e, A(site_at), H_S1);
    emit_store(e, A(site_va), H_S2);
    static const uint8_t and_size[] = {0x81, 0xe1, 0xff, 0x7f, 0, 0}; /* and ecx, 0x7fff */
    emit_bytes(e, and_size, sizeof(and_size));
    emit_rm(e, true, 0x8d, H_S0, H_S2, H_S0, 1, -1);
    static const uint8_t and_page[] = {0x48, 0x81, 0xe1, 0, 0xf0, 0xff, 0xff}; /* and rcx, -4096 */
    emit_bytes(e, and_page, sizeof(and_page));
    emit_ra(e, true, 0x0b, H_S0, A(asid[BT_MMU_USER]));
    emit_mov(e, H_S1, H_S2);
    static const uint8_t shr8[] = {0x49, 0xc1, 0xee, 8}; /* shr r14, 8 */
    emit_bytes(e, shr8, sizeof(shr8));
    emit_ra(e, true, 0x23, H_S1, A(tlb_mask));
    emit_rm(e, true, 0x3b, H_S0, H_S1, H_NONE, 1, (int32_t)table);
    uint8_t *miss = emit_jcc_fwd(e, CC_NE);

    emit_rm(e, true, 0x8b, H_S1, H_S1, H_NONE, 1, (int32_t)table + 8); /* r14: addend; r15: host address */
    emit_rr(e, true, 0x03, H_S2, H_S1);
    emit_load(e, H_S0, A(site_at));
    emit_rm(e, true, 0x89, H_S1, H_S0, H_NONE, 1, 8);
    emit_load(e, H_S1, A(site_va));
    static const uint8_t shr12[] = {0x49, 0xc1, 0xee, MEM_PAGE_SHIFT}; /* shr r14, 12 */
    emit_bytes(e, shr12, sizeof(shr12));
    emit_rex(e, false, 0, 0, H_S1, false); /* and r14d, BT_SITE_PAGES - 1 */
    emit8(e, 0x81);
    emit8(e, 0xe0 | (H_S1 & 7));
    emit32(e, BT_SITE_PAGES - 1);
    emit_rm(e, false, 0xc6, 0, H_S1, H_NONE, 1, (int32_t)A(site_pages)); /* mov byte [r14 + site_pages], 1 */
    emit8(e, 1);
    emit_load(e, H_S1, A(site_va));
    static const uint8_t and_r14[] = {0x49, 0x81, 0xe6, 0, 0xf0, 0xff, 0xff}; /* and r14, -4096 */
    emit_bytes(e, and_r14, sizeof(and_r14));
    emit_rm(e, false, 0x80, 7, H_S0, H_NONE, 1, 7); /* cmp byte [rcx + 7], 0x80: was it empty? */
    emit8(e, BT_SITE_EMPTY >> 56);
    uint8_t *changed = emit_jcc_fwd(e, CC_NE);
    emit_rm(e, true, 0x89, H_S1, H_S0, H_NONE, 1, 0);
    emit_load32(e, H_S1, A(sites_filled));
    emit_rm(e, false, 0x89, H_S0, H_NONE, H_S1, 4, (int32_t)(uint64_t)v->site_list);
    emit8(e, 0xff); /* inc dword [sites_filled] */
    emit_rip_modrm(e, 0, A(sites_filled), 0);
    emit8(e, 0xc3);

    emit_here32(e, changed);
    emit_store(e, A(tmp[1]), H_RAX);
    emit_store(e, A(tmp[2]), H_RDX);
    emit_rm(e, true, 0x8b, H_RDX, H_S0, H_NONE, 1, 0); /* from one page to the next one: nothing to note */
    emit_rm(e, true, 0x89, H_S1, H_S0, H_NONE, 1, 0);
    emit_rr(e, true, 0x2b, H_RDX, H_S1);
    static const uint8_t far[] = {0x48, 0x81, 0xc2, 0, 0x10, 0, 0,  /* add rdx, 4096 */
                                  0x48, 0x81, 0xfa, 0, 0x20, 0, 0}; /* cmp rdx, 8192 */
    emit_bytes(e, far, sizeof(far));
    uint8_t *near = emit_jcc_fwd(e, CC_BE);
    emit8(e, 0x0f); /* rdtsc */
    emit8(e, 0x31);
    emit_mov32(e, H_S1, H_S0);
    static const uint8_t halve[] = {0x41, 0xd1, 0xee}; /* shr r14d, 1: infos are half as large */
    emit_bytes(e, halve, sizeof(halve));
    uint64_t info = (uint64_t)v->site_infos - (uint64_t)v->sites / 2;
    emit_info32(e, 0x8b, H_RDX, info);
    emit_info32(e, 0x89, H_RAX, info);
    emit_rr(e, false, 0x2b, H_RAX, H_RDX);
    emit8(e, 0x3d); /* cmp eax, BT_SITE_QUICK */
    emit32(e, BT_SITE_QUICK);
    emit_load(e, H_RDX, A(tmp[2]));
    emit_load(e, H_RAX, A(tmp[1]));
    uint8_t *quick = emit_jcc8_fwd(e, CC_B);
    emit_info32(e, 0xd1, 5, info + 4); /* shr, 1 */
    emit8(e, 0xc3);
    emit_here8(e, quick);
    emit_info32(e, 0xff, 0, info + 4); /* inc */
    emit_info32(e, 0x81, 7, info + 4); /* cmp */
    emit32(e, BT_SITE_SCORE_MAX);
    uint8_t *poly = emit_jcc8_fwd(e, CC_A);
    emit8(e, 0xc3);

    emit_here32(e, near);
    emit_load(e, H_RDX, A(tmp[2]));
    emit8(e, 0xc3);
    emit_here8(e, poly);
    emit8(e, 0x81); /* or dword [site_info], BT_INFO_POLY */
    emit_rip_modrm(e, 1, A(site_info), 4);
    emit32(e, BT_INFO_POLY);
    emit_here32(e, miss);
    emit_load(e, H_S2, A(site_va));
    emit_load(e, H_RCX, A(site_info));
    emit_jmp(e, v->stub_mem);
    return at;
}

static uint64_t make_op(struct emit *e, struct bt_vcpu *v)
{
    uint64_t at = emit_rx(e);
    emit_pop_slot(e, A(site));
    bt_emit_flags_save(e, v, H_S2);
    emit_guest_out(e, v);
    emit_mov_imm(e, H_RDI, (uint64_t)v);
    emit_mov(e, H_RSI, H_S1);
    emit_c_call(e, v, A(fn_op));
    emit_rr(e, false, 0x85, H_RAX, H_RAX);
    uint8_t *other = emit_jcc_fwd(e, CC_NE);
    emit_flags_in(e, v);
    emit_guest_in(e, v);
    emit_push_slot(e, A(site));
    emit8(e, 0xc3);
    emit_here32(e, other);
    emit8(e, 0x83); /* cmp eax, BT_CHAIN */
    emit8(e, 0xf8);
    emit8(e, BT_CHAIN);
    uint8_t *leave = emit_jcc_fwd(e, CC_NE);
    emit_flags_in(e, v);
    emit_guest_in(e, v);
    emit8(e, 0xff); /* jmp [chain] */
    emit_rip_modrm(e, 4, A(chain), 0);
    emit_here32(e, leave);
    emit_store32(e, A(op_result), H_RAX);
    emit_mov_imm(e, H_RAX, BT_LEAVE_OP);
    emit_return_to_c(e, v);
    return at;
}

void bt_stubs_make(struct bt_vcpu *v)
{
    struct emit e = {.p = v->code_rw,
                     .end = v->code_rw + v->code_size,
                     .rx_delta = (uint64_t)v->code_rx - (uint64_t)v->code_rw};
    v->fn_op = (uint64_t)&bt_op_dispatch;
    v->fn_tlb_miss = (uint64_t)&bt_tlb_miss;
    make_enter(&e, v);
    v->stub_leave_link = make_leave(&e, v, BT_LEAVE_LINK);
    v->stub_leave_indirect = make_leave(&e, v, BT_LEAVE_INDIRECT);
    v->stub_leave_return = emit_rx(&e);
    emit_store(&e, A(ind_rip), H_S2);
    make_leave(&e, v, BT_LEAVE_RETURN);
    make_lookup(&e, v);
    *(uint64_t *)v->ret_bottom = v->stub_return_bottom;
    v->stub_leave_fault = make_leave_fault(&e, v);
    v->stub_mem = make_mem(&e, v);
    v->stub_site[0] = make_site(&e, v, false);
    v->stub_site[1] = make_site(&e, v, true);
    v->stub_site_end = emit_rx(&e);
    v->stub_op = make_op(&e, v);
    v->code_start = (uint32_t)align_up((uint64_t)(e.p - v->code_rw), 64);
    v->code_used = v->code_start;
}
