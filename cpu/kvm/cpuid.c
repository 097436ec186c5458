/*
 * What the guest's CPUID says: what KVM supports, without what the machine or another engine can't carry, cut
 * down to the model.
 *
 * Neighbours: engine.c calls kvm_cpuid_set() for each vCPU; the kernel keeps the bits that follow CR4, XCR0
 * and the APIC base up to date by itself.
 *
 * Feature words and bit numbers: SDM vol. 2A, CPUID; APM vol. 3, appendix E. Models: x86-64 psABI, 3.1.1.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "base/util.h"
#include "cpu/kvm/kvm_int.h"

enum reg { REG_EAX, REG_EBX, REG_ECX, REG_EDX };

#define F1_ECX_X2APIC       BIT(21)
#define F1_ECX_TSC_DEADLINE BIT(24)
#define F1_ECX_HYPERVISOR   BIT(31)
#define F1_EDX_HTT          BIT(28)

/* One feature word. Left out even of "host": VMX, SVM, SMX, SGX, MONITOR, performance monitoring, TSX, MPX,
 * PT, PKU, CET, LA57, AMX, XSAVES, which another engine could not take over; and what power management would
 * have to back. */
struct feature_word {
    uint32_t leaf, subleaf;
    enum reg reg;
    const char *name;
    uint32_t host; /* may be shown, where KVM has it */
    uint32_t v2;   /* exactly these; one missing is an error */
    uint32_t v3;
};

static const struct feature_word feature_words[] = {
    /* sse3 ssse3 cx16 sse4.1 sse4.2 popcnt; v3: fma movbe xsave avx f16c */
    {1, 0, REG_ECX, "1:ECX", 0x77fa3203, 0x00982201, 0x34d83201},
    {1, 0, REG_EDX, "1:EDX", 0x078bfbff, 0x078bfbff, 0x078bfbff},
    /* v3: bmi1 avx2 bmi2 */
    {7, 0, REG_EBX, "7:EBX", 0xf1bf27eb, 0, 0x00000128},
    {7, 0, REG_ECX, "7:ECX", 0x1a405f46, 0, 0},
    {7, 0, REG_EDX, "7:EDX", 0xbc804510, 0, 0},
    {7, 1, REG_EAX, "7.1:EAX", 0x00801c30, 0, 0},
    {7, 1, REG_EBX, "7.1:EBX", 0, 0, 0},
    {7, 1, REG_ECX, "7.1:ECX", 0, 0, 0},
    {7, 1, REG_EDX, "7.1:EDX", 0x00000030, 0, 0},
    {0xd, 1, REG_EAX, "0xd.1:EAX", 0x00000007, 0, 0},
    /* lahf; v3: lzcnt */
    {0x80000001, 0, REG_ECX, "0x80000001:ECX", 0x000001f1, 0x00000001, 0x00000021},
    /* syscall nx lm, and AMD's copies of leaf 1 */
    {0x80000001, 0, REG_EDX, "0x80000001:EDX", 0x2fd3fbff, 0x20100800, 0x20100800},
    {0x80000007, 0, REG_EDX, "0x80000007:EDX", 0x00000100, 0, 0},
    {0x80000008, 0, REG_EBX, "0x80000008:EBX", 0, 0, 0},
};

/* x87, SSE, AVX, AVX-512 (SDM vol. 1, 13.3). */
#define XCR0_HOST 0xe7u
#define XCR0_V2   0x03u
#define XCR0_V3   0x07u

static const struct kvm_cpuid_entry2 *find(const struct kvm_cpuid2 *list, uint32_t leaf, uint32_t subleaf)
{
    for (uint32_t i = 0; i < list->nent; i++) {
        const struct kvm_cpuid_entry2 *e = &list->entries[i];
        if (e->function == leaf && (!(e->flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX) || e->index == subleaf)) {
            return e;
        }
    }
    return NULL;
}

static uint32_t *reg_of(struct kvm_cpuid_entry2 *e, enum reg reg)
{
    switch (reg) {
    case REG_EAX: return &e->eax;
    case REG_EBX: return &e->ebx;
    case REG_ECX: return &e->ecx;
    default: return &e->edx;
    }
}

/* Which leaves go to the guest at all; the others read as zero, or as the highest basic leaf (SDM vol. 2A).
 */
static bool leaf_is_shown(const struct kvm_cpuid_entry2 *e)
{
    switch (e->function) {
    case 0:
    case 1:
    case 2:
    case 4:
    case 6:
    case 0xd: break;
    case 7: return e->index <= 1;
    default: return e->function >= 0x80000000 && e->function <= 0x80000008;
    }
    return true;
}

static void adjust(struct kvm_cpuid_entry2 *e, const struct vcpu *vcpu, uint64_t xcr0)
{
    const struct engine_config *config = &vcpu->engine->config;
    unsigned cpus = MAX(config->vcpus, 1u);
    switch (e->function) {
    case 0: e->eax = MIN(e->eax, 0xdu); break;
    case 1:
        e->ebx = (e->ebx & 0xff00) | (cpus & 0xff) << 16 | (vcpu->index & 0xff) << 24;
        /* The machine's LAPIC has both, whatever the kernel's own would. */
        e->ecx |= F1_ECX_HYPERVISOR | F1_ECX_TSC_DEADLINE;
        e->ecx = config->apic_x2apic ? e->ecx | F1_ECX_X2APIC : e->ecx & ~F1_ECX_X2APIC;
        e->edx = cpus > 1 ? e->edx | F1_EDX_HTT : e->edx & ~F1_EDX_HTT;
        break;
    case 4: /* every vCPU is a core of one package with caches of its own */
        e->eax = (e->eax & 0x3fff) | (MIN(cpus, 64u) - 1) << 26;
        break;
    case 6:
        *e = (struct kvm_cpuid_entry2){.function = 6, .eax = BIT(2)};
        break; /* the LAPIC timer never stops */
    case 0xd:
        if (e->index == 0) {
            e->eax &= (uint32_t)xcr0;
            e->edx = 0;
        } else if (e->index == 1) {
            e->ebx = e->ecx = e->edx = 0;
        } else if (e->index >= 32 || !(xcr0 & BIT64(e->index))) {
            e->eax = e->ebx = e->ecx = e->edx = 0;
        }
        break;
    case 0x80000000: e->eax = MIN(e->eax, 0x80000008u); break;
    case 0x80000008: e->ecx = 0; break; /* AMD's count of cores */
    default: break;
    }
}

/* The engine's own leaves, all from struct engine_config. */
static void add_own_leaves(struct kvm_cpuid2 *list, const struct vcpu *vcpu)
{
    unsigned cpus = MAX(vcpu->engine->config.vcpus, 1u);
    unsigned shift = 0;
    while (BIT(shift) < cpus) {
        shift++;
    }
    const struct kvm_cpuid_entry2 own[] = {
        /* Topology (SDM vol. 2A, leaf 0BH): one thread per core, all cores in one package. */
        {.function = 0xb,
         .index = 0,
         .flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
         .eax = 0,
         .ebx = 1,
         .ecx = 0x100,
         .edx = vcpu->index},
        {.function = 0xb,
         .index = 1,
         .flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
         .eax = shift,
         .ebx = cpus,
         .ecx = 0x201,
         .edx = vcpu->index},
        {.function = 0xb, .index = 2, .flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX, .ecx = 2, .edx = vcpu->index},
        /* KVM's paravirtual leaves (kernel Documentation/virt/kvm/x86/cpuid.rst): the clock, which the
           platform serves. */
        {.function = 0x40000000, .eax = 0x40000001, .ebx = 0x4b4d564b, .ecx = 0x564b4d56, .edx = 0x4d},
        {.function = 0x40000001, .eax = BIT(1) | BIT(3) | BIT(24)},
    };
    for (size_t i = 0; i < ARRAY_SIZE(own) && list->nent < KVM_CPUID_MAX; i++) {
        list->entries[list->nent++] = own[i];
    }
}

static int apply_model(struct kvm_cpuid_entry2 *e, const char *model, struct err *err)
{
    for (size_t i = 0; i < ARRAY_SIZE(feature_words); i++) {
        const struct feature_word *word = &feature_words[i];
        if (word->leaf != e->function || word->subleaf != e->index) {
            continue;
        }
        uint32_t *value = reg_of(e, word->reg);
        *value &= word->host;
        if (strcmp(model, "host") == 0) {
            continue;
        }
        uint32_t wanted = strcmp(model, "x86-64-v3") == 0 ? word->v3 : word->v2;
        if (wanted & ~*value) {
            return err_set(err, -ENOTSUP,
                           "this host's KVM lacks features of the CPU model '%s': bits %#x of CPUID %s",
                           model, wanted & ~*value, word->name);
        }
        *value = wanted;
    }
    return 0;
}

int kvm_cpuid_set(struct vcpu *vcpu, struct err *err)
{
    const char *model = vcpu->engine->config.cpu_model ? vcpu->engine->config.cpu_model : "host";
    uint64_t xcr0 = strcmp(model, "host") == 0        ? XCR0_HOST
                    : strcmp(model, "x86-64-v2") == 0 ? XCR0_V2
                    : strcmp(model, "x86-64-v3") == 0 ? XCR0_V3
                                                      : 0;
    if (!xcr0) {
        return err_set(err, -EINVAL, "unknown CPU model '%s': try host, x86-64-v2 or x86-64-v3", model);
    }
    size_t bytes = sizeof(struct kvm_cpuid2) + KVM_CPUID_MAX * sizeof(struct kvm_cpuid_entry2);
    auto_free struct kvm_cpuid2 *host = calloc(1, bytes);
    auto_free struct kvm_cpuid2 *guest = calloc(1, bytes);
    if (!host || !guest) {
        return err_sys(err, -ENOMEM, "no memory for CPUID");
    }
    host->nent = KVM_CPUID_MAX;
    if (ioctl(vcpu->engine->dev_fd, KVM_GET_SUPPORTED_CPUID, host) < 0) {
        return err_sys(err, -errno, "KVM does not say what it supports (KVM_GET_SUPPORTED_CPUID)");
    }
    const struct kvm_cpuid_entry2 *xsave = find(host, 0xd, 0);
    xcr0 &= xsave ? xsave->eax : 0;
    for (uint32_t i = 0; i < host->nent && i < KVM_CPUID_MAX; i++) {
        if (!leaf_is_shown(&host->entries[i])) {
            continue;
        }
        struct kvm_cpuid_entry2 e = host->entries[i];
        int rc = apply_model(&e, model, err);
        if (rc < 0) {
            return rc;
        }
        adjust(&e, vcpu, xcr0);
        guest->entries[guest->nent++] = e;
    }
    add_own_leaves(guest, vcpu);
    if (ioctl(vcpu->fd, KVM_SET_CPUID2, guest) < 0) {
        return err_sys(err, -errno, "KVM refuses the CPUID of model '%s'", model);
    }
    return 0;
}
