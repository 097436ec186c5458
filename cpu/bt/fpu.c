/*
 * Moving the guest's x87 and vector state between the host's registers and cpu.s.xsave. General registers
 * only.
 *
 * The area has XSAVE's standard format; the mask is what both this engine and the host know.
 */
#include "cpu/bt/bt_int.h"

#define XSAVE_MASK 0xe7u /* x87, SSE, AVX, AVX-512 (SDM vol. 1, 13.1) */

void bt_fpu_save(struct bt_vcpu *v)
{
    if (!v->fpu_live) {
        return;
    }
    static const uint32_t mxcsr = 0x1f80;
    __asm__ volatile("xsave64 %0" : "=m"(v->cpu.s.xsave) : "a"(v->xsave_mask), "d"(0) : "memory");
    /* C code expects the defaults of its calling convention. */
    __asm__ volatile("fninit; ldmxcsr %0" : : "m"(mxcsr) : "memory");
    if (v->xsave_mask & 4) {
        __asm__ volatile("vzeroupper" : : : "memory");
    }
    v->fpu_live = false;
}

void bt_fpu_load(struct bt_vcpu *v)
{
    if (v->fpu_live) {
        return;
    }
    __asm__ volatile("xrstor64 %0" : : "m"(v->cpu.s.xsave), "a"(v->xsave_mask), "d"(0) : "memory");
    v->fpu_live = true;
}

bool bt_fpu_fault(struct bt_vcpu *v)
{
    uint16_t status;
    if (v->fpu_live) {
        __asm__ volatile("fnstsw %0" : "=a"(status));
    } else {
        status = *(const uint16_t *)(const void *)(v->cpu.s.xsave + 2);
    }
    if (!(status & 0x80)) { /* ES */
        return false;
    }
    x86_raise(&v->cpu, X86_MF);
    return true;
}

void bt_fpu_sanitize(struct bt_vcpu *v)
{
    uint64_t *header = (uint64_t *)(void *)(v->cpu.s.xsave + 512);
    header[0] &= v->xsave_mask; /* XSTATE_BV */
    for (unsigned i = 1; i < 8; i++) {
        header[i] = 0;
    }
    uint32_t *mxcsr = (uint32_t *)(void *)(v->cpu.s.xsave + 24);
    *mxcsr &= 0xffff;
}

uint32_t bt_fpu_mask(uint64_t host_xcr0)
{
    return (uint32_t)(host_xcr0 & XSAVE_MASK);
}
