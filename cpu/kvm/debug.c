/*
 * A debugger's steps and points by KVM_SET_GUEST_DEBUG: the processor's four debug registers, taken away from
 * the guest meanwhile (its own breakpoints don't work then).
 */
#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>

#include "base/util.h"
#include "cpu/kvm/kvm_int.h"

#define SLOTS    4u
#define DR6_BS   BIT(14)
#define DR7_ONES 0x400u

/* DR7's fields of one breakpoint (SDM vol. 3B, 18.2.4). -ENOTSUP: none such. */
static int encode(const struct engine_point *point, unsigned slot, uint64_t *dr7)
{
    static const uint8_t lengths[] = {[1] = 0, [2] = 1, [4] = 3, [8] = 2};
    /* There is none for reads alone: writes stop, too. */
    static const uint8_t kinds[] = {[ENGINE_POINT_EXEC] = 0,
                                    [ENGINE_POINT_WRITE] = 1,
                                    [ENGINE_POINT_READ] = 3,
                                    [ENGINE_POINT_ACCESS] = 3};
    uint32_t size = point->kind == ENGINE_POINT_EXEC ? 1 : point->size;
    if ((size != 1 && size != 2 && size != 4 && size != 8) || point->va % size) {
        return -ENOTSUP;
    }
    *dr7 |= BIT64(1 + 2 * slot) | (uint64_t)(kinds[point->kind] | lengths[size] << 2) << (16 + 4 * slot);
    return 0;
}

int kvm_set_debug(struct vcpu *vcpu, const struct engine_debug *debug)
{
    struct kvm_guest_debug set = {.control = 0};
    uint64_t dr7 = DR7_ONES;
    if (debug->count > SLOTS) {
        return -ENOSPC;
    }
    for (unsigned i = 0; i < debug->count; i++) {
        int rc = encode(&debug->points[i], i, &dr7);
        if (rc < 0) {
            return rc;
        }
        set.arch.debugreg[i] = debug->points[i].va;
        vcpu->points[i] = debug->points[i];
    }
    if (debug->count) {
        set.control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP;
        set.arch.debugreg[7] = dr7;
    }
    if (debug->step) {
        set.control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP;
    }
    if (ioctl(vcpu->fd, KVM_SET_GUEST_DEBUG, &set) < 0) {
        return -errno;
    }
    vcpu->debug = set;
    return 0;
}

int kvm_walk(struct vcpu *vcpu, uint64_t va, gpa_t *ret_gpa)
{
    struct kvm_translation translation = {.linear_address = va};
    if (ioctl(vcpu->fd, KVM_TRANSLATE, &translation) < 0 || !translation.valid) {
        return -EFAULT;
    }
    *ret_gpa = GPA(translation.physical_address);
    return 0;
}

bool kvm_debug_exit(struct vcpu *vcpu, struct engine_stop *ret_stop)
{
    const struct kvm_debug_exit_arch *arch = &vcpu->run->debug.arch;
    *ret_stop =
        (struct engine_stop){.step = (vcpu->debug.control & KVM_GUESTDBG_SINGLESTEP) && (arch->dr6 & DR6_BS)};
    for (unsigned i = 0; i < SLOTS; i++) {
        if ((arch->dr6 & BIT(i)) && (vcpu->debug.arch.debugreg[7] & BIT64(1 + 2 * i))) {
            ret_stop->point = true;
            ret_stop->kind = vcpu->points[i].kind;
            ret_stop->va = vcpu->points[i].va;
        }
    }
    return vcpu->debug.control != 0;
}
