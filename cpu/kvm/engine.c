/*
 * Life of the KVM engine and of its vCPUs; the table of operations.
 *
 * Neighbours: see kvm_int.h.
 */
#include "cpu/kvm/kvm_int.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/util.h"

/* Three pages and one page of guest-physical space that KVM needs on some Intel CPUs for real mode (kernel
 * Documentation/virt/kvm/api.rst, 4.36 and 4.41). Below the firmware, where no device of the machine is. */
#define KVM_TSS_ADDR      0xfffbd000ull
#define KVM_IDENTITY_ADDR 0xfffbc000ull

static void kvm_free(struct engine *engine)
{
    if (!engine) {
        return;
    }
    if (engine->vm_fd >= 0) {
        close(engine->vm_fd);
    }
    if (engine->dev_fd >= 0) {
        close(engine->dev_fd);
    }
    free(engine);
}

static int map_ram(struct engine *engine, struct err *err)
{
    struct mem *mem = engine->config.mem;
    uint64_t low = mem_ram_low_bytes(mem);
    uint64_t high = mem_ram_bytes(mem) - low;
    struct kvm_userspace_memory_region regions[] = {
        {.slot = 0, .guest_phys_addr = 0, .memory_size = low, .userspace_addr = (uintptr_t)mem_ram_base(mem)},
        {.slot = 1,
         .guest_phys_addr = MEM_HIGH_RAM,
         .memory_size = high,
         .userspace_addr = (uintptr_t)mem_ram_base(mem) + low},
    };
    for (size_t i = 0; i < ARRAY_SIZE(regions); i++) {
        if (regions[i].memory_size && ioctl(engine->vm_fd, KVM_SET_USER_MEMORY_REGION, &regions[i]) < 0) {
            return err_sys(err, -errno, "KVM refuses %llu bytes of guest RAM at %#llx",
                           (unsigned long long)regions[i].memory_size,
                           (unsigned long long)regions[i].guest_phys_addr);
        }
    }
    return 0;
}

/* The machine's MSRs (see struct vcpu_platform) leave KVM_RUN; so does every MSR that the kernel does not
 * know or whose value it refuses, which is how x2APIC MSRs get out: the filter can't name them. */
static int set_msr_filter(struct engine *engine, struct err *err)
{
    static uint8_t denied[32]; /* all bits 0; 256 MSRs at most */
    struct kvm_enable_cap cap = {
        .cap = KVM_CAP_X86_USER_SPACE_MSR,
        .args = {KVM_MSR_EXIT_REASON_INVAL | KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_FILTER},
    };
    if (ioctl(engine->vm_fd, KVM_ENABLE_CAP, &cap) < 0) {
        return err_sys(err, -errno, "KVM does not hand MSRs to user space (KVM_CAP_X86_USER_SPACE_MSR)");
    }
    static const struct {
        uint32_t base, count;
    } ranges[] = {{0x11, 2}, {0x1b, 1}, {0x6e0, 1}, {0x4b564d00, 256}};
    struct kvm_msr_filter filter = {.flags = KVM_MSR_FILTER_DEFAULT_ALLOW};
    for (size_t i = 0; i < ARRAY_SIZE(ranges); i++) {
        filter.ranges[i] = (struct kvm_msr_filter_range){
            .flags = KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE,
            .base = ranges[i].base,
            .nmsrs = ranges[i].count,
            .bitmap = denied,
        };
    }
    if (ioctl(engine->vm_fd, KVM_X86_SET_MSR_FILTER, &filter) < 0) {
        return err_sys(err, -errno, "KVM does not accept an MSR filter (KVM_X86_SET_MSR_FILTER)");
    }
    return 0;
}

static int kvm_create(const struct engine_config *config, struct engine **ret_engine, struct err *err)
{
    int rc = kvm_signal_setup();
    if (rc < 0) {
        return err_sys(err, rc, "cannot install the signal handler that interrupts vCPUs");
    }
    struct engine *engine = calloc(1, sizeof(*engine));
    if (!engine) {
        return err_sys(err, -ENOMEM, "no memory for the engine");
    }
    engine->config = *config;
    engine->vm_fd = -1;
    engine->dev_fd = kvm_open(err);
    if (engine->dev_fd < 0) {
        rc = engine->dev_fd;
        goto fail;
    }
    int run_bytes = ioctl(engine->dev_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
    if (run_bytes < (int)sizeof(struct kvm_run)) {
        rc = err_set(err, -EIO, "KVM_GET_VCPU_MMAP_SIZE says %d", run_bytes);
        goto fail;
    }
    engine->run_bytes = (size_t)run_bytes;
    engine->vm_fd = ioctl(engine->dev_fd, KVM_CREATE_VM, 0);
    if (engine->vm_fd < 0) {
        rc = err_sys(err, -errno, "KVM cannot make a virtual machine");
        goto fail;
    }
    uint64_t identity = KVM_IDENTITY_ADDR;
    if (ioctl(engine->vm_fd, KVM_SET_IDENTITY_MAP_ADDR, &identity) < 0 ||
        ioctl(engine->vm_fd, KVM_SET_TSS_ADDR, (unsigned long)KVM_TSS_ADDR) < 0) {
        rc = err_sys(err, -errno, "KVM cannot place its real-mode pages");
        goto fail;
    }
    rc = set_msr_filter(engine, err);
    if (rc < 0) {
        goto fail;
    }
    rc = map_ram(engine, err);
    if (rc < 0) {
        goto fail;
    }
    *ret_engine = engine;
    return 0;
fail:
    kvm_free(engine);
    return rc;
}

static void kvm_vcpu_free(struct vcpu *vcpu)
{
    if (!vcpu) {
        return;
    }
    if (vcpu->run) {
        munmap(vcpu->run, vcpu->engine->run_bytes);
    }
    if (vcpu->fd >= 0) {
        close(vcpu->fd);
    }
    free(vcpu);
}

static int kvm_vcpu_create(struct engine *engine, unsigned index, const struct vcpu_platform *platform,
                           struct vcpu **ret_vcpu, struct err *err)
{
    struct vcpu *vcpu = calloc(1, sizeof(*vcpu));
    if (!vcpu) {
        return err_sys(err, -ENOMEM, "no memory for a vCPU");
    }
    int rc;
    vcpu->engine = engine;
    vcpu->index = index;
    vcpu->platform = *platform;
    vcpu->fd = ioctl(engine->vm_fd, KVM_CREATE_VCPU, (unsigned long)index);
    if (vcpu->fd < 0) {
        rc = err_sys(err, -errno, "KVM cannot make vCPU %u", index);
        goto fail;
    }
    void *run = mmap(NULL, engine->run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, 0);
    if (run == MAP_FAILED) {
        rc = err_sys(err, -errno, "cannot map the shared area of vCPU %u", index);
        goto fail;
    }
    vcpu->run = run;
    rc = kvm_cpuid_set(vcpu, err);
    if (rc < 0) {
        goto fail;
    }
    rc = kvm_sync_apic_base(vcpu);
    if (rc < 0) {
        rc = err_sys(err, rc, "KVM refuses the APIC base of vCPU %u", index);
        goto fail;
    }
    struct kvm_device_attr attr = {.group = KVM_VCPU_TSC_CTRL, .attr = KVM_VCPU_TSC_OFFSET};
    engine->has_tsc_offset = ioctl(vcpu->fd, KVM_HAS_DEVICE_ATTR, &attr) == 0;
    *ret_vcpu = vcpu;
    return 0;
fail:
    kvm_vcpu_free(vcpu);
    return rc;
}

static unsigned kvm_counters(struct vcpu *vcpu, struct engine_counter *ret_counters)
{
    static const struct {
        const char *name, *group;
    } names[KVM_COUNTS] = {
        [KVM_COUNT_IO] = {"port-io", "exits"},
        [KVM_COUNT_MMIO] = {"mmio", "exits"},
        [KVM_COUNT_MSR] = {"msr", "exits"},
        [KVM_COUNT_HLT] = {"hlt", "exits"},
        [KVM_COUNT_WINDOW] = {"interrupt-window", "exits"},
        [KVM_COUNT_TPR] = {"task-priority", "exits"},
        [KVM_COUNT_SIGNAL] = {"signal", "exits"},
        [KVM_COUNT_DEBUG] = {"debug", "exits"},
        [KVM_COUNT_SHUTDOWN] = {"shutdown", "exits"},
        [KVM_COUNT_OTHER] = {"other", "exits"},
        [KVM_COUNT_IRQ] = {"interrupts-injected", "interrupts"},
        [KVM_COUNT_NMI] = {"nmis-injected", "interrupts"},
        [KVM_COUNT_GUEST_NS] = {"in-guest", "time"},
        [KVM_COUNT_EXIT_NS] = {"in-exits", "time"},
    };
    for (unsigned i = 0; i < KVM_COUNTS; i++) {
        ret_counters[i] = (struct engine_counter){
            .name = names[i].name,
            .group = names[i].group,
            .value = atomic_load_explicit(&vcpu->counts[i], memory_order_relaxed),
        };
    }
    return KVM_COUNTS;
}

const struct engine_ops kvm_engine = {
    .name = "kvm",
    .arch = "x86-64",
    .about = "the host kernel's KVM: hardware virtualization",
    .probe = kvm_probe,
    .create = kvm_create,
    .free = kvm_free,
    .vcpu_create = kvm_vcpu_create,
    .vcpu_free = kvm_vcpu_free,
    .run = kvm_vcpu_run,
    .kick = kvm_vcpu_kick,
    .irq_raise = kvm_vcpu_irq_raise,
    .nmi = kvm_vcpu_nmi,
    .set_debug = kvm_set_debug,
    .walk = kvm_walk,
    .get_state = kvm_get_state,
    .set_state = kvm_set_state,
    .counters = kvm_counters,
    .last_exits = kvm_vcpu_last_exits,
};
