/*
 * What machine.c and vcpu.c share. Only for vm/.
 */
#ifndef FONDA_VM_MACHINE_INT_H
#define FONDA_VM_MACHINE_INT_H

#include <pthread.h>
#include <stdatomic.h>

#include "cpu/x86/state.h"
#include "dev/irq/lapic.h"
#include "vm/config.h"
#include "vm/machine.h"
#include "vm/pause.h"
#include "vm/pc.h"
#include "vm/pvclock.h"

#define SIPI_NONE (-1)

/* One vCPU: its engine part, its local APIC, and what other threads ask of it. */
struct machine_vcpu {
    struct machine *machine;
    unsigned index;
    struct vcpu *vcpu; /* the engine's */
    struct lapic *lapic;
    struct pvclock pvclock;
    pthread_t thread;
    bool thread_runs; /* main loop's */

    /* Requests: set by any thread, taken by the vCPU's own. */
    _Atomic bool init_wanted;
    _Atomic int sipi_vector; /* SIPI_NONE: none */
    _Atomic bool nmi_wanted; /* ends a halt; the engine has the NMI itself */

    /* A debugger's (debug.c): it stays where it is; it has stopped, and why. */
    _Atomic bool debug_held, debug_stopped;
    struct engine_stop debug_stop; /* behind debug_stopped */

    /* The vCPU's own. */
    bool wait_for_sipi;

    /* Sleeping: asleep is set before the requests are looked at, and read behind their setting (both
     * sequentially consistent), so that one of the two sides sees the other. The lock guards the condition
     * variable's wait. */
    _Atomic bool asleep;
    _Atomic bool halted_for_good; /* HLT with interrupts off, or never started */
    pthread_mutex_t lock;
    pthread_cond_t wake;
    pthread_cond_t fell_asleep; /* signalled while the machine is paused: pause.c waits for it */
};

struct machine {
    struct machine_config config;
    struct engine *engine;
    struct pc *pc;
    uint64_t tsc_hz;
    uint64_t frozen_tsc;          /* the host's counter when time was held: saved/machine.c */
    struct x86_state reset_state; /* as the engine gave it at creation */
    _Atomic int stop_status;      /* -1: running */
    char error_text[sizeof(((struct vcpu_exit *)0)->text)];
    pthread_mutex_t error_lock;
    pthread_mutex_t pause_lock;
    unsigned pause_counts[PAUSE_REASONS]; /* pause_lock */
    _Atomic bool debug_paused;            /* PAUSE_DEBUG is taken */
    _Atomic unsigned pause_reasons;       /* bit i: pause_counts[i] is not 0 */
    unsigned cpus;
    struct machine_vcpu vcpus[VM_CPUS_MAX];
};

/* vcpu.c */
void machine_vcpu_init(struct machine_vcpu *mv, struct machine *machine, unsigned index);
void machine_vcpu_done(struct machine_vcpu *mv);
/* The callbacks that the engine and the local APIC get. */
struct vcpu_platform machine_vcpu_platform(struct machine_vcpu *mv);
struct lapic_cpu machine_vcpu_lapic_cpu(struct machine_vcpu *mv);
void machine_vcpu_kick(struct machine_vcpu *mv);
/* The thread's main function. */
void *machine_vcpu_main(void *opaque);

/* debug.c: the vCPU's thread, at EXIT_DEBUG. */
void machine_vcpu_debug_stop(struct machine_vcpu *mv, const struct engine_stop *stop);

/* machine.c: ends the machine if no vCPU can ever run again. Under mem_lock(). */
void machine_check_halted(struct machine *machine);
void machine_fail(struct machine *machine, int status, const char *text);

static inline bool machine_stopping(const struct machine *machine)
{
    return atomic_load(&machine->stop_status) >= 0;
}

#endif
