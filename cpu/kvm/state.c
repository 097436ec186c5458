/*
 * Architectural state of a vCPU, out of the kernel and into it.
 *
 * Neighbours: cpu/x86/state.h defines the neutral form. Halt and wait-for-SIPI live in struct vcpu, the rest
 * in KVM.
 */
#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <sys/ioctl.h>
#include <x86intrin.h>

#include "base/util.h"
#include "cpu/kvm/kvm_int.h"

/* MSRs that are a field of struct x86_state each. optional: the guest's CPUID, or an older kernel, may not
 * have it; then it reads as 0 and writes of 0 are dropped. Numbers: SDM vol. 4, table 2-2. */
struct msr_field {
    uint32_t msr;
    uint32_t offset;
    bool optional;
};
#define FIELD(number, name, opt)                                                                             \
    {                                                                                                        \
        number, offsetof(struct x86_state, name), opt                                                        \
    }
static const struct msr_field msr_fields[] = {
    FIELD(0xc0000081, star, false),
    FIELD(0xc0000082, lstar, false),
    FIELD(0xc0000083, cstar, true),
    FIELD(0xc0000084, sfmask, false),
    FIELD(0xc0000102, kernel_gs_base, false),
    FIELD(0xc0000103, tsc_aux, true),
    FIELD(0x174, sysenter_cs, false),
    FIELD(0x175, sysenter_esp, false),
    FIELD(0x176, sysenter_eip, false),
    FIELD(0x277, pat, false),
    FIELD(0x1a0, misc_enable, true),
    FIELD(0x48, spec_ctrl, true),
    FIELD(0x3b, tsc_adjust, true),
    FIELD(0x1d9, debugctl, true),
    FIELD(0x2ff, mtrr_def_type, true),
    FIELD(0x250, mtrr_fixed[0], true),
    FIELD(0x258, mtrr_fixed[1], true),
    FIELD(0x259, mtrr_fixed[2], true),
    FIELD(0x268, mtrr_fixed[3], true),
    FIELD(0x269, mtrr_fixed[4], true),
    FIELD(0x26a, mtrr_fixed[5], true),
    FIELD(0x26b, mtrr_fixed[6], true),
    FIELD(0x26c, mtrr_fixed[7], true),
    FIELD(0x26d, mtrr_fixed[8], true),
    FIELD(0x26e, mtrr_fixed[9], true),
    FIELD(0x26f, mtrr_fixed[10], true),
    FIELD(0x200, mtrr_base[0], true),
    FIELD(0x201, mtrr_mask[0], true),
    FIELD(0x202, mtrr_base[1], true),
    FIELD(0x203, mtrr_mask[1], true),
    FIELD(0x204, mtrr_base[2], true),
    FIELD(0x205, mtrr_mask[2], true),
    FIELD(0x206, mtrr_base[3], true),
    FIELD(0x207, mtrr_mask[3], true),
    FIELD(0x208, mtrr_base[4], true),
    FIELD(0x209, mtrr_mask[4], true),
    FIELD(0x20a, mtrr_base[5], true),
    FIELD(0x20b, mtrr_mask[5], true),
    FIELD(0x20c, mtrr_base[6], true),
    FIELD(0x20d, mtrr_mask[6], true),
    FIELD(0x20e, mtrr_base[7], true),
    FIELD(0x20f, mtrr_mask[7], true),
    FIELD(0x17a, mcg_status, true),
    FIELD(0x17b, mcg_ctl, true),
};
#undef FIELD

#define MSR_TSC 0x10u

static uint64_t *field_of(struct x86_state *state, const struct msr_field *field)
{
    return (uint64_t *)(void *)((char *)state + field->offset);
}

static const uint64_t *const_field_of(const struct x86_state *state, const struct msr_field *field)
{
    return (const uint64_t *)(const void *)((const char *)state + field->offset);
}

/* struct kvm_msrs with room for its entries. */
struct msr_list {
    uint32_t nmsrs, pad;
    struct kvm_msr_entry entries[ARRAY_SIZE(msr_fields)];
};
_Static_assert(offsetof(struct msr_list, entries) == offsetof(struct kvm_msrs, entries), "same layout");

static void fill_msr_list(struct msr_list *list, const struct x86_state *state, unsigned first)
{
    list->nmsrs = (uint32_t)(ARRAY_SIZE(msr_fields) - first);
    list->pad = 0;
    for (unsigned i = first; i < ARRAY_SIZE(msr_fields); i++) {
        list->entries[i - first] = (struct kvm_msr_entry){
            .index = msr_fields[i].msr,
            .data = state ? *const_field_of(state, &msr_fields[i]) : 0,
        };
    }
}

/* The kernel stops at the first MSR it does not have and says how many it did: go on behind it. */
static int get_msrs(struct vcpu *vcpu, struct x86_state *state)
{
    struct msr_list list;
    for (unsigned first = 0; first < ARRAY_SIZE(msr_fields);) {
        fill_msr_list(&list, NULL, first);
        int done = ioctl(vcpu->fd, KVM_GET_MSRS, &list);
        if (done < 0) {
            return -errno;
        }
        for (unsigned i = 0; i < (unsigned)done; i++) {
            *field_of(state, &msr_fields[first + i]) = list.entries[i].data;
        }
        first += (unsigned)done;
        if (first < ARRAY_SIZE(msr_fields)) {
            if (!msr_fields[first].optional) {
                return -EIO;
            }
            *field_of(state, &msr_fields[first++]) = 0;
        }
    }
    return 0;
}

static int set_msrs(struct vcpu *vcpu, const struct x86_state *state)
{
    struct msr_list list;
    for (unsigned first = 0; first < ARRAY_SIZE(msr_fields);) {
        fill_msr_list(&list, state, first);
        int done = ioctl(vcpu->fd, KVM_SET_MSRS, &list);
        if (done < 0) {
            return -errno;
        }
        first += (unsigned)done;
        if (first < ARRAY_SIZE(msr_fields)) {
            if (!msr_fields[first].optional || *const_field_of(state, &msr_fields[first]) != 0) {
                return -EINVAL;
            }
            first++;
        }
    }
    return 0;
}

static int get_tsc(struct vcpu *vcpu, uint64_t *ret_offset)
{
    if (vcpu->engine->has_tsc_offset) {
        struct kvm_device_attr attr = {
            .group = KVM_VCPU_TSC_CTRL, .attr = KVM_VCPU_TSC_OFFSET, .addr = (uintptr_t)ret_offset};
        return ioctl(vcpu->fd, KVM_GET_DEVICE_ATTR, &attr) < 0 ? -errno : 0;
    }
    struct msr_list msr = {.nmsrs = 1, .entries = {{.index = MSR_TSC}}};
    if (ioctl(vcpu->fd, KVM_GET_MSRS, &msr) != 1) {
        return -EIO;
    }
    *ret_offset = msr.entries[0].data - __rdtsc();
    return 0;
}

static int set_tsc(struct vcpu *vcpu, uint64_t offset)
{
    if (vcpu->engine->has_tsc_offset) {
        struct kvm_device_attr attr = {
            .group = KVM_VCPU_TSC_CTRL, .attr = KVM_VCPU_TSC_OFFSET, .addr = (uintptr_t)&offset};
        return ioctl(vcpu->fd, KVM_SET_DEVICE_ATTR, &attr) < 0 ? -errno : 0;
    }
    struct msr_list msr = {.nmsrs = 1, .entries = {{.index = MSR_TSC, .data = __rdtsc() + offset}}};
    return ioctl(vcpu->fd, KVM_SET_MSRS, &msr) == 1 ? 0 : -EIO;
}

static struct x86_segment segment_from_kvm(const struct kvm_segment *seg)
{
    struct x86_segment out = {.base = seg->base, .limit = seg->limit, .selector = seg->selector};
    if (!seg->unusable) {
        out.attr = (uint16_t)((seg->type & 0xf) | (seg->s & 1) << 4 | (seg->dpl & 3) << X86_SEG_DPL_SHIFT |
                              (seg->present & 1) << 7 | (seg->avl & 1) << 12 | (seg->l & 1) << 13 |
                              (seg->db & 1) << 14 | (seg->g & 1) << 15);
    }
    return out;
}

static struct kvm_segment segment_to_kvm(const struct x86_segment *seg)
{
    return (struct kvm_segment){
        .base = seg->base,
        .limit = seg->limit,
        .selector = seg->selector,
        .type = seg->attr & X86_SEG_TYPE,
        .present = !!(seg->attr & X86_SEG_P),
        .dpl = (uint8_t)((seg->attr & X86_SEG_DPL) >> X86_SEG_DPL_SHIFT),
        .db = !!(seg->attr & X86_SEG_DB),
        .s = !!(seg->attr & X86_SEG_S),
        .l = !!(seg->attr & X86_SEG_L),
        .g = !!(seg->attr & X86_SEG_G),
        .avl = !!(seg->attr & X86_SEG_AVL),
        .unusable = seg->attr == 0,
    };
}

static void sregs_get(struct x86_state *state, const struct kvm_sregs *sregs)
{
    state->seg[X86_ES] = segment_from_kvm(&sregs->es);
    state->seg[X86_CS] = segment_from_kvm(&sregs->cs);
    state->seg[X86_SS] = segment_from_kvm(&sregs->ss);
    state->seg[X86_DS] = segment_from_kvm(&sregs->ds);
    state->seg[X86_FS] = segment_from_kvm(&sregs->fs);
    state->seg[X86_GS] = segment_from_kvm(&sregs->gs);
    state->ldtr = segment_from_kvm(&sregs->ldt);
    state->tr = segment_from_kvm(&sregs->tr);
    state->gdtr = (struct x86_table){sregs->gdt.base, sregs->gdt.limit};
    state->idtr = (struct x86_table){sregs->idt.base, sregs->idt.limit};
    state->cr0 = sregs->cr0;
    state->cr2 = sregs->cr2;
    state->cr3 = sregs->cr3;
    state->cr4 = sregs->cr4;
    state->efer = sregs->efer;
}

static void sregs_set(struct kvm_sregs *sregs, const struct x86_state *state)
{
    sregs->es = segment_to_kvm(&state->seg[X86_ES]);
    sregs->cs = segment_to_kvm(&state->seg[X86_CS]);
    sregs->ss = segment_to_kvm(&state->seg[X86_SS]);
    sregs->ds = segment_to_kvm(&state->seg[X86_DS]);
    sregs->fs = segment_to_kvm(&state->seg[X86_FS]);
    sregs->gs = segment_to_kvm(&state->seg[X86_GS]);
    sregs->ldt = segment_to_kvm(&state->ldtr);
    sregs->tr = segment_to_kvm(&state->tr);
    if (sregs->ss.unusable) {
        /* KVM takes the current privilege level from SS.DPL; of a null SS only RPL says it (SDM vol.
         * 3A, 5.5). */
        sregs->ss.dpl = sregs->ss.selector & 3;
    }
    sregs->gdt = (struct kvm_dtable){.base = state->gdtr.base, .limit = state->gdtr.limit};
    sregs->idt = (struct kvm_dtable){.base = state->idtr.base, .limit = state->idtr.limit};
    sregs->cr0 = state->cr0;
    sregs->cr2 = state->cr2;
    sregs->cr3 = state->cr3;
    sregs->cr4 = state->cr4;
    sregs->efer = state->efer;
    memset(sregs->interrupt_bitmap, 0, sizeof(sregs->interrupt_bitmap));
}

int kvm_sync_apic_base(struct vcpu *vcpu)
{
    struct kvm_sregs sregs;
    if (ioctl(vcpu->fd, KVM_GET_SREGS, &sregs) < 0) {
        return -errno;
    }
    uint64_t base;
    if (vcpu->platform.msr_read(vcpu->platform.opaque, 0x1b, &base) < 0) {
        return 0;
    }
    sregs.apic_base = base;
    return ioctl(vcpu->fd, KVM_SET_SREGS, &sregs) < 0 ? -errno : 0;
}

static void gprs_get(struct x86_state *state, const struct kvm_regs *regs)
{
    const uint64_t gpr[16] = {regs->rax, regs->rcx, regs->rdx, regs->rbx, regs->rsp, regs->rbp,
                              regs->rsi, regs->rdi, regs->r8,  regs->r9,  regs->r10, regs->r11,
                              regs->r12, regs->r13, regs->r14, regs->r15};
    memcpy(state->gpr, gpr, sizeof(gpr));
    state->rip = regs->rip;
    state->rflags = regs->rflags;
}

static struct kvm_regs gprs_set(const struct x86_state *state)
{
    const uint64_t *gpr = state->gpr;
    return (struct kvm_regs){
        .rax = gpr[X86_RAX],
        .rcx = gpr[X86_RCX],
        .rdx = gpr[X86_RDX],
        .rbx = gpr[X86_RBX],
        .rsp = gpr[X86_RSP],
        .rbp = gpr[X86_RBP],
        .rsi = gpr[X86_RSI],
        .rdi = gpr[X86_RDI],
        .r8 = gpr[X86_R8],
        .r9 = gpr[X86_R9],
        .r10 = gpr[X86_R10],
        .r11 = gpr[X86_R11],
        .r12 = gpr[X86_R12],
        .r13 = gpr[X86_R13],
        .r14 = gpr[X86_R14],
        .r15 = gpr[X86_R15],
        .rip = state->rip,
        .rflags = state->rflags,
    };
}

int kvm_get_state(struct vcpu *vcpu, struct x86_state *ret_state)
{
    struct kvm_regs regs;
    struct kvm_sregs sregs;
    struct kvm_xcrs xcrs;
    struct kvm_debugregs debug;
    struct kvm_vcpu_events events;
    struct kvm_xsave xsave;
    _Static_assert(sizeof(xsave) == X86_XSAVE_MAX, "struct kvm_xsave is the standard format in 4 KiB");

    int rc = kvm_settle(vcpu);
    if (rc < 0) {
        return rc;
    }
    if (ioctl(vcpu->fd, KVM_GET_REGS, &regs) < 0 || ioctl(vcpu->fd, KVM_GET_SREGS, &sregs) < 0 ||
        ioctl(vcpu->fd, KVM_GET_XCRS, &xcrs) < 0 || ioctl(vcpu->fd, KVM_GET_XSAVE, &xsave) < 0 ||
        ioctl(vcpu->fd, KVM_GET_DEBUGREGS, &debug) < 0 || ioctl(vcpu->fd, KVM_GET_VCPU_EVENTS, &events) < 0) {
        return -errno;
    }
    struct x86_state state = {0};
    gprs_get(&state, &regs);
    sregs_get(&state, &sregs);
    memcpy(state.dr, debug.db, sizeof(state.dr));
    state.dr6 = debug.dr6;
    state.dr7 = debug.dr7;
    memcpy(state.xsave, &xsave, sizeof(state.xsave));
    for (unsigned i = 0; i < xcrs.nr_xcrs && i < KVM_MAX_XCRS; i++) {
        if (xcrs.xcrs[i].xcr == 0) {
            state.xcr0 = xcrs.xcrs[i].value;
        }
    }
    state.sti_shadow = events.interrupt.shadow & KVM_X86_SHADOW_INT_STI;
    state.movss_shadow = events.interrupt.shadow & KVM_X86_SHADOW_INT_MOV_SS;
    state.nmi_pending = events.nmi.pending || atomic_load(&vcpu->nmi_wanted);
    state.nmi_blocked = events.nmi.masked;
    state.halted = vcpu->halted;
    state.wait_for_sipi = vcpu->wait_for_sipi;
    rc = get_msrs(vcpu, &state);
    if (rc < 0) {
        return rc;
    }
    rc = get_tsc(vcpu, &state.tsc_offset);
    if (rc < 0) {
        return rc;
    }
    *ret_state = state;
    return 0;
}

int kvm_set_state(struct vcpu *vcpu, const struct x86_state *state)
{
    struct kvm_regs regs = gprs_set(state);
    struct kvm_sregs sregs;
    if (ioctl(vcpu->fd, KVM_GET_SREGS, &sregs) < 0) { /* for the APIC base, which is the machine's */
        return -errno;
    }
    sregs_set(&sregs, state);
    sregs.cr8 = vcpu->platform.cr8_read(vcpu->platform.opaque) & 0xf;

    struct kvm_xcrs xcrs = {.nr_xcrs = 1};
    xcrs.xcrs[0].xcr = 0;
    xcrs.xcrs[0].value = state->xcr0;
    struct kvm_xsave xsave;
    memcpy(&xsave, state->xsave, sizeof(xsave));
    struct kvm_debugregs debug = {.dr6 = state->dr6, .dr7 = state->dr7};
    memcpy(debug.db, state->dr, sizeof(debug.db));
    struct kvm_vcpu_events events = {
        .flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW,
        .interrupt.shadow = (uint8_t)((state->sti_shadow ? KVM_X86_SHADOW_INT_STI : 0) |
                                      (state->movss_shadow ? KVM_X86_SHADOW_INT_MOV_SS : 0)),
        .nmi.pending = state->nmi_pending,
        .nmi.masked = state->nmi_blocked,
    };
    if (ioctl(vcpu->fd, KVM_SET_SREGS, &sregs) < 0 || ioctl(vcpu->fd, KVM_SET_REGS, &regs) < 0 ||
        ioctl(vcpu->fd, KVM_SET_XCRS, &xcrs) < 0 || ioctl(vcpu->fd, KVM_SET_XSAVE, &xsave) < 0 ||
        ioctl(vcpu->fd, KVM_SET_DEBUGREGS, &debug) < 0) {
        return -errno;
    }
    int rc = set_msrs(vcpu, state);
    if (rc < 0) {
        return rc;
    }
    rc = set_tsc(vcpu, state->tsc_offset);
    if (rc < 0) {
        return rc;
    }
    if (ioctl(vcpu->fd, KVM_SET_VCPU_EVENTS, &events) < 0) {
        return -errno;
    }
    vcpu->halted = state->halted;
    vcpu->wait_for_sipi = state->wait_for_sipi;
    atomic_store(&vcpu->nmi_wanted, false);
    /* What the last exit said of the guest no longer holds; a window exit will tell. */
    vcpu->run->if_flag = !!(state->rflags & X86_IF);
    vcpu->run->ready_for_interrupt_injection = 0;
    return 0;
}
