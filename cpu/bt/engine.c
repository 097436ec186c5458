/*
 * The binary translator as an engine (cpu/engine.h).
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "cpu/bt/bt.h"
#include "cpu/bt/bt_int.h"
#include "cpu/bt/explain.h"

static int engine_probe(struct err *err)
{
    (void)err; /* any x86-64 Linux process can */
    return 0;
}

/* Runs on the writing device's thread, when the bytes are in RAM. */
static void on_ram_written(void *opaque, uint64_t ram, uint64_t len)
{
    bt_code_notify(opaque, NULL, ram, len);
}

/* --- the machine's callbacks, with the guest's vector state out of the way --- */

static int vm_irq_ack(void *opaque)
{
    struct bt_vcpu *v = opaque;
    bt_fpu_save(v);
    return v->vm.irq_ack(v->vm.opaque);
}

static bool vm_irq_pending(void *opaque)
{
    struct bt_vcpu *v = opaque;
    bt_fpu_save(v);
    return v->vm.irq_pending(v->vm.opaque);
}

static uint64_t vm_cr8_read(void *opaque)
{
    struct bt_vcpu *v = opaque;
    bt_fpu_save(v);
    return v->vm.cr8_read ? v->vm.cr8_read(v->vm.opaque) : 0;
}

static void vm_cr8_write(void *opaque, uint64_t value)
{
    struct bt_vcpu *v = opaque;
    bt_fpu_save(v);
    if (v->vm.cr8_write) {
        v->vm.cr8_write(v->vm.opaque, value);
    }
}

static int vm_msr_read(void *opaque, uint32_t msr, uint64_t *ret_value)
{
    struct bt_vcpu *v = opaque;
    bt_fpu_save(v);
    return v->vm.msr_read ? v->vm.msr_read(v->vm.opaque, msr, ret_value) : -1;
}

static int vm_msr_write(void *opaque, uint32_t msr, uint64_t value)
{
    struct bt_vcpu *v = opaque;
    bt_fpu_save(v);
    return v->vm.msr_write ? v->vm.msr_write(v->vm.opaque, msr, value) : -1;
}

static uint64_t vm_hypercall(void *opaque, uint64_t nr, const uint64_t args[4])
{
    struct bt_vcpu *v = opaque;
    bt_fpu_save(v);
    return v->vm.hypercall(v->vm.opaque, nr, args);
}

static const struct vcpu_platform no_platform;

static int no_irq_ack(void *opaque)
{
    (void)opaque;
    return -1;
}

static bool no_irq_pending(void *opaque)
{
    (void)opaque;
    return false;
}

static void set_platform(struct bt_vcpu *v, const struct vcpu_platform *platform)
{
    v->vm = platform ? *platform : no_platform;
    if (!v->vm.irq_ack) {
        v->vm.irq_ack = no_irq_ack;
    }
    if (!v->vm.irq_pending) {
        v->vm.irq_pending = no_irq_pending;
    }
    v->cpu.platform = (struct vcpu_platform){
        .opaque = v,
        .irq_ack = vm_irq_ack,
        .irq_pending = vm_irq_pending,
        .cr8_read = vm_cr8_read,
        .cr8_write = vm_cr8_write,
        .msr_read = vm_msr_read,
        .msr_write = vm_msr_write,
        .hypercall = v->vm.hypercall ? vm_hypercall : NULL,
    };
}

/* --- engine and vCPUs --- */

static int engine_create(const struct engine_config *config, struct engine **ret_engine, struct err *err)
{
    if (config->vcpus > ARRAY_SIZE(((struct bt_engine *)NULL)->vcpus)) {
        return err_set(err, -EINVAL, "at most %zu vCPUs, not %u",
                       ARRAY_SIZE(((struct bt_engine *)NULL)->vcpus), config->vcpus);
    }
    int r = bt_signals_install(err);
    if (r < 0) {
        return r;
    }
    struct bt_engine *e = calloc(1, sizeof(*e));
    if (!e) {
        return err_sys(err, -ENOMEM, "cannot create the translator");
    }
    e->config = *config;
    e->mem = config->mem;
    pthread_mutex_init(&e->lock, NULL);
    e->npages = mem_ram_bytes(e->mem) / MEM_PAGE_SIZE;
    e->pages = mmap(NULL, e->npages * sizeof(struct bt_page), PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (e->pages == MAP_FAILED) {
        r = err_sys(err, -errno, "no memory for the page table of the translator");
        pthread_mutex_destroy(&e->lock);
        free(e);
        return r;
    }
    mem_set_write_hook(e->mem, on_ram_written, e);
    *ret_engine = (struct engine *)e;
    return 0;
}

static void engine_free(struct engine *engine)
{
    struct bt_engine *e = (struct bt_engine *)engine;
    if (!e) {
        return;
    }
    mem_set_write_hook(e->mem, NULL, NULL);
    munmap(e->pages, e->npages * sizeof(struct bt_page));
    pthread_mutex_destroy(&e->lock);
    free(e);
}

static void vcpu_free(struct vcpu *vcpu)
{
    struct bt_vcpu *v = (struct bt_vcpu *)vcpu;
    if (!v) {
        return;
    }
    bt_signals_thread_end(v);
    v->engine->vcpus[v->index] = NULL;
    bt_arena_free(v);
}

static int vcpu_create(struct engine *engine, unsigned index, const struct vcpu_platform *platform,
                       struct vcpu **ret_vcpu, struct err *err)
{
    struct bt_engine *e = (struct bt_engine *)engine;
    struct bt_vcpu *v = bt_arena_new(e, index, err);
    if (!v) {
        return -ENOMEM;
    }
    v->cpu.index = index;
    v->cpu.mem = e->mem;
    v->cpu.ops = &bt_cpu_ops;
    int r = x86_cpuid_init(&v->cpu.cpuid, &e->config, index, err);
    if (r < 0) {
        bt_arena_free(v);
        return r;
    }
    set_platform(v, platform);
    bt_stubs_make(v);
    bt_jc_clear(v);
    bt_tlb_init(v);
    x86_cpu_reset(&v->cpu);
    bt_fpu_sanitize(v);
    bt_flags_split(v);
    bt_mode_update(v);
    e->vcpus[index] = v;
    e->nvcpus = MAX(e->nvcpus, index + 1);
    *ret_vcpu = (struct vcpu *)v;
    return 0;
}

static void vcpu_kick(struct vcpu *vcpu)
{
    bt_pend((struct bt_vcpu *)vcpu, BT_PENDING_KICK);
}

static void vcpu_irq_raise(struct vcpu *vcpu)
{
    bt_pend((struct bt_vcpu *)vcpu, BT_PENDING_IRQ);
}

static void vcpu_nmi(struct vcpu *vcpu)
{
    bt_pend((struct bt_vcpu *)vcpu, BT_PENDING_NMI);
}

static int vcpu_get_state(struct vcpu *vcpu, struct x86_state *ret_state)
{
    struct bt_vcpu *v = (struct bt_vcpu *)vcpu;
    bt_fpu_save(v);
    bt_flags_merge(v);
    *ret_state = v->cpu.s;
    return 0;
}

static int vcpu_set_state(struct vcpu *vcpu, const struct x86_state *state)
{
    struct bt_vcpu *v = (struct bt_vcpu *)vcpu;
    bt_fpu_save(v);
    struct x86_state old = v->cpu.s;
    v->cpu.s = *state;
    struct err err;
    int r = x86_cpu_adopt(&v->cpu, &err);
    if (r < 0) {
        v->cpu.s = old;
        x86_cpu_adopt(&v->cpu, NULL);
        return r;
    }
    bt_fpu_sanitize(v);
    bt_flags_split(v);
    bt_cpu_ops.tlb_flush(&v->cpu, false);
    bt_mode_update(v);
    v->mode_once = 0;
    v->link_from = NULL; /* the exit that the last run left by does not lead to the new RIP */
    v->fill_jc = false;
    return 0;
}

static const struct {
    const char *group, *name;
} counter_names[BT_C_COUNT] = {
    [BT_C_BLOCKS] = {"code", "blocks translated"},
    [BT_C_INSNS] = {"code", "instructions translated"},
    [BT_C_GUEST_BYTES] = {"code", "guest bytes translated"},
    [BT_C_CODE_BYTES] = {"code", "host bytes emitted"},
    [BT_C_FLUSHES] = {"code", "cache flushes"},
    [BT_C_INVALIDATED] = {"code", "blocks invalidated"},
    [BT_C_SMC] = {"code", "blocks overwritten"},
    [BT_C_EXIT_LINK] = {"exits", "unlinked jumps"},
    [BT_C_EXIT_INDIRECT] = {"exits", "jump cache misses"},
    [BT_C_EXIT_OP] = {"exits", "instructions in C that leave"},
    [BT_C_EXIT_SLOW] = {"exits", "slow memory accesses"},
    [BT_C_EXIT_NOGROUP] = {"exits", "groups across a page"},
    [BT_C_EXIT_FAULT] = {"exits", "host faults"},
    [BT_C_EXIT_KICK] = {"exits", "kicks"},
    [BT_C_HALTS] = {"exits", "halts"},
    [BT_C_BOUNCED] = {"exits", "bounced operands"},
    [BT_C_PIO] = {"exits", "port accesses"},
    [BT_C_SYSCALLS] = {"exits", "system calls"},
    [BT_C_TLB_MISS] = {"tlb", "misses"},
    [BT_C_TLB_FLUSH] = {"tlb", "flushes"},
    [BT_C_TLB_SWITCH] = {"tlb", "address space switches"},
    [BT_C_TLB_PAGE] = {"tlb", "pages dropped"},
    [BT_C_TLB_GROW] = {"tlb", "times grown"},
    [BT_C_EXCEPTIONS] = {"interrupts", "exceptions"},
    [BT_C_PAGE_FAULTS] = {"interrupts", "page faults"},
    [BT_C_IRQS] = {"interrupts", "interrupts"},
    [BT_C_NS_TRANSLATE] = {"time", "translating"},
    [BT_C_NS_FLUSH] = {"time", "flushing the cache"},
    [BT_C_NS_FLUSH_MAX] = {"time", "flushing it, at most"},
    [BT_C_NS_RUN] = {"time", "running"},
};

static unsigned vcpu_counters(struct vcpu *vcpu, struct engine_counter *ret_counters)
{
    const struct bt_vcpu *v = (const struct bt_vcpu *)vcpu;
    unsigned n = 0;
    double ns_per_tick = v->tsc_running ? (double)v->counters[BT_C_NS_RUN] / (double)v->tsc_running : 0;
    for (unsigned i = 0; i < BT_C_COUNT; i++) {
        if (counter_names[i].name) {
            uint64_t ticks = i == BT_C_NS_TRANSLATE   ? v->tsc_translating
                             : i == BT_C_NS_FLUSH     ? v->tsc_flushing
                             : i == BT_C_NS_FLUSH_MAX ? v->tsc_longest_flush
                                                      : 0;
            uint64_t value = ticks ? (uint64_t)((double)ticks * ns_per_tick) : v->counters[i];
            ret_counters[n++] = (struct engine_counter){
                .name = counter_names[i].name, .group = counter_names[i].group, .value = value};
        }
    }
    return n;
}

static unsigned vcpu_last_exits(struct vcpu *vcpu, char *buf, unsigned size)
{
    const struct bt_vcpu *v = (const struct bt_vcpu *)vcpu;
    unsigned used = 0;
    unsigned n = MIN(v->last_at, BT_LAST_EXITS);
    for (unsigned i = v->last_at - n; i < v->last_at && used < size; i++) {
        const struct bt_last_exit *x = &v->last[i % BT_LAST_EXITS];
        int w = snprintf(buf + used, size - used, "  %s %u at %#llx\n",
                         x->what == BT_EVENT_INTERRUPT ? "interrupt" : "exception", x->vector,
                         (unsigned long long)x->rip);
        if (w < 0 || (unsigned)w >= size - used) {
            break;
        }
        used += (unsigned)w;
    }
    return used;
}

const struct engine_ops bt_engine_ops = {
    .name = "bt",
    .arch = "x86-64",
    .about = "binary translation: needs no hardware support, no privileges",
    .user_mode_access = true,
    .probe = engine_probe,
    .create = engine_create,
    .free = engine_free,
    .vcpu_create = vcpu_create,
    .vcpu_free = vcpu_free,
    .run = bt_run,
    .kick = vcpu_kick,
    .irq_raise = vcpu_irq_raise,
    .nmi = vcpu_nmi,
    .set_debug = bt_set_debug,
    .walk = bt_walk,
    .translation = bt_translation,
    .count_blocks = bt_count_blocks,
    .translate_bytes = bt_translate_bytes,
    .get_state = vcpu_get_state,
    .set_state = vcpu_set_state,
    .counters = vcpu_counters,
    .last_exits = vcpu_last_exits,
};
