/*
 * A vCPU's thread: runs the engine, sleeps through halts, takes INIT and start-up IPIs; and the platform
 * callbacks through which the engine reaches the local APIC and the paravirtual clock.
 *
 *                     SIPI                          HLT
 *     wait_for_sipi ---------> running (engine run) -----> asleep
 *          ^                      |      ^                   |
 *          +------- INIT ---------+      +--- interrupt, NMI +
 *
 * A pause (pause.h) holds it where it is: a running one at the loop's head, a halted one asleep.
 * Guest code never runs while a stop is requested: machine_request_stop sets the status, then kicks.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <x86intrin.h>

#include "base/thread.h"
#include "base/util.h"
#include "vm/machine_int.h"
#include "vm/status.h"

static const struct engine_ops *ops_of(const struct machine_vcpu *mv)
{
    return mv->machine->config.engine;
}

static uint64_t guest_tsc(const struct machine_vcpu *mv)
{
    return __rdtsc() + mv->machine->reset_state.tsc_offset;
}

static bool has_request(const struct machine_vcpu *mv)
{
    return machine_stopping(mv->machine) || atomic_load(&mv->init_wanted) ||
           atomic_load(&mv->sipi_vector) != SIPI_NONE;
}

/* Any thread, with mem_lock() or without. */
static void wake_up(struct machine_vcpu *mv)
{
    if (atomic_load(&mv->asleep)) {
        pthread_mutex_lock(&mv->lock);
        pthread_cond_signal(&mv->wake);
        pthread_mutex_unlock(&mv->lock);
    }
}

void machine_vcpu_kick(struct machine_vcpu *mv)
{
    ops_of(mv)->kick(mv->vcpu);
    wake_up(mv);
}

/* --- what the engine asks (vCPU thread) --- */

static int platform_irq_ack(void *opaque)
{
    struct machine_vcpu *mv = opaque;
    mem_lock(mv->machine->config.mem);
    int vector = lapic_irq_ack(mv->lapic);
    mem_unlock(mv->machine->config.mem);
    return vector;
}

static bool platform_irq_pending(void *opaque)
{
    const struct machine_vcpu *mv = opaque;
    return lapic_irq_pending(mv->lapic);
}

static uint64_t platform_cr8_read(void *opaque)
{
    struct machine_vcpu *mv = opaque;
    mem_lock(mv->machine->config.mem);
    uint64_t value = lapic_cr8_read(mv->lapic);
    mem_unlock(mv->machine->config.mem);
    return value;
}

static void platform_cr8_write(void *opaque, uint64_t value)
{
    struct machine_vcpu *mv = opaque;
    mem_lock(mv->machine->config.mem);
    lapic_cr8_write(mv->lapic, value);
    mem_unlock(mv->machine->config.mem);
}

static int platform_msr_read(void *opaque, uint32_t msr, uint64_t *ret_value)
{
    struct machine_vcpu *mv = opaque;
    if (pvclock_msr(msr)) {
        return pvclock_read(&mv->pvclock, msr, ret_value);
    }
    mem_lock(mv->machine->config.mem);
    int rc = lapic_msr_read(mv->lapic, msr, ret_value);
    mem_unlock(mv->machine->config.mem);
    return rc;
}

static int platform_msr_write(void *opaque, uint32_t msr, uint64_t value)
{
    struct machine_vcpu *mv = opaque;
    if (pvclock_msr(msr)) {
        return pvclock_write(&mv->pvclock, msr, value, guest_tsc(mv));
    }
    mem_lock(mv->machine->config.mem);
    int rc = lapic_msr_write(mv->lapic, msr, value);
    mem_unlock(mv->machine->config.mem);
    return rc;
}

static uint64_t platform_hypercall(void *opaque, uint64_t nr, const uint64_t args[4])
{
    struct machine_vcpu *mv = opaque;
    return pvclock_hypercall(&mv->pvclock, nr, args, mv->machine->reset_state.tsc_offset);
}

struct vcpu_platform machine_vcpu_platform(struct machine_vcpu *mv)
{
    return (struct vcpu_platform){
        .opaque = mv,
        .irq_ack = platform_irq_ack,
        .irq_pending = platform_irq_pending,
        .cr8_read = platform_cr8_read,
        .cr8_write = platform_cr8_write,
        .msr_read = platform_msr_read,
        .msr_write = platform_msr_write,
        .hypercall = platform_hypercall,
    };
}

/* --- what the local APIC asks (any thread, under mem_lock) --- */

static void lapic_cpu_irq_raise(void *opaque)
{
    struct machine_vcpu *mv = opaque;
    if (mv->vcpu) { /* a chip that is being made may raise its line before there are vCPUs */
        ops_of(mv)->irq_raise(mv->vcpu);
        wake_up(mv);
    }
}

static void lapic_cpu_nmi(void *opaque)
{
    struct machine_vcpu *mv = opaque;
    ops_of(mv)->nmi(mv->vcpu);
    atomic_store(&mv->nmi_wanted, true);
    wake_up(mv);
}

static void lapic_cpu_init(void *opaque)
{
    struct machine_vcpu *mv = opaque;
    if (mv->index == 0) {
        /* The boot processor would start at the reset vector: with no firmware there, that is a reset. */
        machine_request_stop(mv->machine, MACHINE_RESET);
        return;
    }
    atomic_store(&mv->sipi_vector, SIPI_NONE);
    atomic_store(&mv->init_wanted, true);
    machine_vcpu_kick(mv);
}

static void lapic_cpu_sipi(void *opaque, uint8_t vector)
{
    struct machine_vcpu *mv = opaque;
    atomic_store(&mv->sipi_vector, vector);
    machine_vcpu_kick(mv);
}

static int lapic_cpu_extint_ack(void *opaque)
{
    const struct machine_vcpu *mv = opaque;
    return pc_extint_ack(mv->machine->pc);
}

static uint64_t lapic_cpu_tsc_read(void *opaque)
{
    return guest_tsc(opaque);
}

struct lapic_cpu machine_vcpu_lapic_cpu(struct machine_vcpu *mv)
{
    return (struct lapic_cpu){
        .opaque = mv,
        .irq_raise = lapic_cpu_irq_raise,
        .nmi = lapic_cpu_nmi,
        .init = lapic_cpu_init,
        .sipi = lapic_cpu_sipi,
        .extint_ack = lapic_cpu_extint_ack,
        .tsc_read = lapic_cpu_tsc_read,
    };
}

/* --- the thread --- */

static void fall_asleep(struct machine_vcpu *mv)
{
    pthread_mutex_lock(&mv->lock);
    atomic_store(&mv->asleep, true);
    pthread_cond_broadcast(&mv->fell_asleep);
}

static void awake(struct machine_vcpu *mv)
{
    atomic_store(&mv->asleep, false);
    pthread_mutex_unlock(&mv->lock);
}

static bool must_stand_still(const struct machine_vcpu *mv)
{
    return (machine_pause_reasons(mv->machine) || atomic_load(&mv->debug_held)) &&
           !machine_stopping(mv->machine);
}

/* Sleeps until there is a request, an NMI, or (where it counts) an interrupt. A pause lets none of them
 * through, so that a halt is still one afterwards. */
static void sleep_until_woken(struct machine_vcpu *mv, bool interrupts)
{
    fall_asleep(mv);
    while (must_stand_still(mv) || (!has_request(mv) && !atomic_load(&mv->nmi_wanted) &&
                                    !(interrupts && lapic_irq_pending(mv->lapic)))) {
        pthread_cond_wait(&mv->wake, &mv->lock);
        pthread_cond_broadcast(&mv->fell_asleep);
    }
    awake(mv);
}

static void stand_still(struct machine_vcpu *mv)
{
    fall_asleep(mv);
    while (must_stand_still(mv)) {
        pthread_cond_wait(&mv->wake, &mv->lock);
    }
    awake(mv);
}

static void halt(struct machine_vcpu *mv, bool interrupts)
{
    mem_lock(mv->machine->config.mem);
    pc_serial_flush(mv->machine->pc);
    if (!interrupts) {
        atomic_store(&mv->halted_for_good, true);
        machine_check_halted(mv->machine);
    }
    mem_unlock(mv->machine->config.mem);
    sleep_until_woken(mv, interrupts);
    /* In this order, for machine_check_halted: awake first, then the request's end. */
    atomic_store(&mv->halted_for_good, false);
    atomic_store(&mv->nmi_wanted, false);
}

/* SDM vol. 3A, 8.4.4.1 and table 9-1: after the SIPI, real mode at vector * 4096. */
static int start_at(struct machine_vcpu *mv, int vector)
{
    struct x86_state state = mv->machine->reset_state;
    state.seg[X86_CS].selector = (uint16_t)(vector << 8);
    state.seg[X86_CS].base = (uint64_t)vector << 12;
    state.rip = 0;
    state.wait_for_sipi = false;
    mv->wait_for_sipi = false;
    return ops_of(mv)->set_state(mv->vcpu, &state);
}

/* INIT comes first: it cancels a SIPI that was sent before it. Returns 0 or the engine's error. */
static int take_requests(struct machine_vcpu *mv)
{
    if (atomic_exchange(&mv->init_wanted, false)) {
        mv->wait_for_sipi = true;
        pvclock_reset(&mv->pvclock);
    }
    int vector = atomic_exchange(&mv->sipi_vector, SIPI_NONE);
    return mv->wait_for_sipi && vector != SIPI_NONE ? start_at(mv, vector) : 0;
}

static void handle_exit(struct machine_vcpu *mv, const struct vcpu_exit *exit)
{
    switch (exit->reason) {
    case EXIT_KICK: break;
    case EXIT_HLT: halt(mv, exit->hlt_if); break;
    case EXIT_SHUTDOWN: machine_request_stop(mv->machine, VM_STATUS_SHUTDOWN); break;
    case EXIT_ERROR: machine_fail(mv->machine, VM_STATUS_ENGINE, exit->text); break;
    case EXIT_DEBUG: machine_vcpu_debug_stop(mv, &exit->debug); break;
    }
}

void *machine_vcpu_main(void *opaque)
{
    struct machine_vcpu *mv = opaque;
    char name[THREAD_NAME_MAX];
    snprintf(name, sizeof(name), "vcpu%u", mv->index);
    thread_enter("vcpu", name);
    lapic_bind_thread(mv->lapic);
    while (!machine_stopping(mv->machine)) {
        if (must_stand_still(mv)) {
            stand_still(mv);
            continue;
        }
        int rc = take_requests(mv);
        if (rc == 0 && mv->wait_for_sipi) {
            halt(mv, false);
            continue;
        }
        struct vcpu_exit exit = {.reason = EXIT_KICK};
        if (rc == 0) {
            rc = ops_of(mv)->run(mv->vcpu, &exit);
        }
        if (rc < 0) {
            machine_fail(mv->machine, VM_STATUS_ENGINE, strerror(-rc));
            break;
        }
        handle_exit(mv, &exit);
    }
    lapic_bind_thread(NULL);
    return NULL;
}

void machine_vcpu_init(struct machine_vcpu *mv, struct machine *machine, unsigned index)
{
    mv->machine = machine;
    mv->index = index;
    atomic_store(&mv->sipi_vector, SIPI_NONE);
    pthread_mutex_init(&mv->lock, NULL);
    pthread_cond_init(&mv->wake, NULL);
    pthread_cond_init(&mv->fell_asleep, NULL);
}

void machine_vcpu_done(struct machine_vcpu *mv)
{
    if (mv->vcpu) {
        ops_of(mv)->vcpu_free(mv->vcpu);
    }
    pthread_cond_destroy(&mv->fell_asleep);
    pthread_cond_destroy(&mv->wake);
    pthread_mutex_destroy(&mv->lock);
}
