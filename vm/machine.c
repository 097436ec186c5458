#include "vm/machine_int.h"

#include <cpuid.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/util.h"
#include "vm/status.h"
#include "vm/tsc.h"

#define JOIN_TIMEOUT_S 10

/* --- what the guest asks for (vCPU threads, under mem_lock) --- */

static void on_power_off(void *opaque)
{
    machine_request_stop(opaque, VM_STATUS_OFF);
}

static void on_reset(void *opaque)
{
    machine_request_stop(opaque, MACHINE_RESET);
}

static void on_watchdog(void *opaque)
{
    machine_request_stop(opaque, MACHINE_WATCHDOG);
}

static void on_panic(void *opaque)
{
    machine_request_stop(opaque, VM_STATUS_PANIC);
}

static void on_exit_port(void *opaque, uint32_t status)
{
    machine_request_stop(opaque, (int)(status & 0xff)); /* what an exit status can hold */
}

static size_t on_serial_sink(void *opaque, const uint8_t *bytes, size_t len)
{
    struct machine *machine = opaque;
    return machine->config.serial_sink(machine->config.opaque, bytes, len);
}

static void on_serial_room(void *opaque)
{
    struct machine *machine = opaque;
    machine->config.serial_room(machine->config.opaque);
}

/* --- life --- */

/* CPUID 0x80000008: what the guest sees too. */
static unsigned host_phys_bits(void)
{
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid(0x80000008, &eax, &ebx, &ecx, &edx) ? eax & 0xff : 36;
}

/* What a translator holds of translated code for each vCPU, unless told otherwise: its tables take one and a
 * half times as much beside it. With 24 MiB instead of 32 a run of gcc's compiler takes 9% longer, and Debian
 * stays below 96 MiB beside its RAM. */
#define CODE_CACHE_ONE  (24 * MiB)
#define CODE_CACHE_EACH (16 * MiB)

static int make_engine(struct machine *machine, struct err *err)
{
    const struct engine_ops *ops = machine->config.engine;
    const struct engine_config config = {
        .mem = machine->config.mem,
        .vcpus = machine->cpus,
        .cpu_model = machine->config.cpu_model,
        .code_cache_bytes = machine->config.code_cache_bytes ? machine->config.code_cache_bytes
                            : machine->cpus == 1             ? CODE_CACHE_ONE
                                                             : CODE_CACHE_EACH,
        .eager = machine->config.eager,
        .tsc_hz = machine->tsc_hz,
        .apic_x2apic = true,
    };
    return ops->create(&config, &machine->engine, err);
}

static int make_pc(struct machine *machine, struct err *err)
{
    struct lapic_cpu lapic_cpus[VM_CPUS_MAX];
    for (unsigned i = 0; i < machine->cpus; i++) {
        lapic_cpus[i] = machine_vcpu_lapic_cpu(&machine->vcpus[i]);
    }
    const struct pc_config config = {
        .mem = machine->config.mem,
        .clock = machine->config.clock,
        .cpus = machine->cpus,
        .phys_bits = host_phys_bits(),
        .tsc_hz = machine->tsc_hz,
        .lapic_cpus = lapic_cpus,
        .power_off = on_power_off,
        .reset = on_reset,
        .watchdog = on_watchdog,
        .panic = on_panic,
        .exit = on_exit_port,
        .serial_sink = on_serial_sink,
        .serial_room = on_serial_room,
        .opaque = machine,
    };
    int rc = pc_new(&config, &machine->pc, err);
    for (unsigned i = 0; i < machine->cpus && rc == 0; i++) {
        machine->vcpus[i].lapic = pc_lapic(machine->pc, i);
    }
    return rc;
}

/* The local APICs come first: an engine may ask the platform while it makes a vCPU. */
static int make_vcpus(struct machine *machine, struct err *err)
{
    const struct engine_ops *ops = machine->config.engine;
    for (unsigned i = 0; i < machine->cpus; i++) {
        struct machine_vcpu *mv = &machine->vcpus[i];
        const struct vcpu_platform platform = machine_vcpu_platform(mv);
        int rc = ops->vcpu_create(machine->engine, i, &platform, &mv->vcpu, err);
        if (rc < 0) {
            return rc;
        }
        mv->pvclock = (struct pvclock){
            .mem = machine->config.mem, .clock = machine->config.clock, .tsc_hz = machine->tsc_hz};
    }
    /* A fresh vCPU is in the reset state; all of them get the boot processor's TSC offset. */
    int rc = ops->get_state(machine->vcpus[0].vcpu, &machine->reset_state);
    return rc < 0 ? err_sys(err, rc, "the engine does not tell the vCPU's state") : 0;
}

int machine_new(const struct machine_config *config, struct machine **ret_machine, struct err *err)
{
    struct machine *machine = calloc(1, sizeof(*machine));
    if (!machine) {
        return err_sys(err, -ENOMEM, "cannot make the machine");
    }
    machine->config = *config;
    machine->cpus = config->cpus;
    machine->tsc_hz = config->tsc_hz ? config->tsc_hz : tsc_host_hz();
    atomic_store(&machine->stop_status, -1);
    pthread_mutex_init(&machine->error_lock, NULL);
    pthread_mutex_init(&machine->pause_lock, NULL);
    for (unsigned i = 0; i < machine->cpus; i++) {
        machine_vcpu_init(&machine->vcpus[i], machine, i);
    }
    int rc = make_engine(machine, err);
    if (rc == 0) {
        rc = make_pc(machine, err);
    }
    if (rc == 0) {
        rc = make_vcpus(machine, err);
    }
    if (rc < 0) {
        machine_free(machine);
        return rc;
    }
    *ret_machine = machine;
    return 0;
}

void machine_free(struct machine *machine)
{
    if (!machine) {
        return;
    }
    pc_free(machine->pc);
    for (unsigned i = 0; i < machine->cpus; i++) {
        machine_vcpu_done(&machine->vcpus[i]);
    }
    if (machine->engine) {
        machine->config.engine->free(machine->engine);
    }
    pthread_mutex_destroy(&machine->error_lock);
    pthread_mutex_destroy(&machine->pause_lock);
    free(machine);
}

/* Signals are the main thread's; the engine unblocks what it uses for itself. */
static int start_thread(struct machine_vcpu *mv)
{
    static const int blocked[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGWINCH, SIGCHLD, SIGPIPE, SIGTSTP};
    sigset_t set, old;
    sigemptyset(&set);
    for (size_t i = 0; i < ARRAY_SIZE(blocked); i++) {
        sigaddset(&set, blocked[i]);
    }
    pthread_sigmask(SIG_BLOCK, &set, &old);
    int rc = pthread_create(&mv->thread, NULL, machine_vcpu_main, mv);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (rc != 0) {
        return -rc;
    }
    mv->thread_runs = true;
    return 0;
}

int machine_start(struct machine *machine, struct err *err)
{
    struct x86_state state = machine->reset_state;
    int rc = boot_start(machine->config.boot, machine->config.mem, pc_rsdp(machine->pc), &state, err);
    if (rc < 0) {
        return rc;
    }
    for (unsigned i = 0; i < machine->cpus; i++) {
        struct machine_vcpu *mv = &machine->vcpus[i];
        mv->wait_for_sipi = i != 0;
        atomic_store(&mv->init_wanted, false);
        atomic_store(&mv->sipi_vector, SIPI_NONE);
        atomic_store(&mv->nmi_wanted, false);
        atomic_store(&mv->halted_for_good, false);
        pvclock_reset(&mv->pvclock);
        rc = machine->config.engine->set_state(mv->vcpu, i == 0 ? &state : &machine->reset_state);
        if (rc < 0) {
            return err_sys(err, rc, "the engine refuses the vCPU's first state");
        }
    }
    return machine_resume_start(machine, err);
}

int machine_resume_start(struct machine *machine, struct err *err)
{
    atomic_store(&machine->stop_status, -1);
    for (unsigned i = 0; i < machine->cpus; i++) {
        int rc = start_thread(&machine->vcpus[i]);
        if (rc < 0) {
            machine_request_stop(machine, VM_STATUS_HOST);
            machine_join(machine, &(int){0});
            return err_sys(err, rc, "cannot start a vCPU's thread");
        }
    }
    return 0;
}

void machine_request_stop(struct machine *machine, int status)
{
    int current = -1;
    if (!atomic_compare_exchange_strong(&machine->stop_status, &current, status)) {
        /* A guest that resets again and again must not outrun the one who ends it. */
        if (current == MACHINE_RESET || current == MACHINE_WATCHDOG) {
            atomic_compare_exchange_strong(&machine->stop_status, &current, status);
        }
        return;
    }
    for (unsigned i = 0; i < machine->cpus; i++) {
        machine_vcpu_kick(&machine->vcpus[i]);
    }
    machine->config.stopping(machine->config.opaque);
}

void machine_fail(struct machine *machine, int status, const char *text)
{
    pthread_mutex_lock(&machine->error_lock);
    snprintf(machine->error_text, sizeof(machine->error_text), "%s", text);
    pthread_mutex_unlock(&machine->error_lock);
    machine_request_stop(machine, status);
}

void machine_check_halted(struct machine *machine)
{
    for (unsigned i = 0; i < machine->cpus; i++) {
        const struct machine_vcpu *mv = &machine->vcpus[i];
        /* Requests first: a vCPU clears halted_for_good before it takes them. New ones can't come meanwhile,
         * as other vCPUs send them under mem_lock(). */
        if (atomic_load(&mv->init_wanted) || atomic_load(&mv->nmi_wanted) ||
            atomic_load(&mv->sipi_vector) != SIPI_NONE || !atomic_load(&mv->halted_for_good)) {
            return;
        }
    }
    machine_request_stop(machine, VM_STATUS_HALTED);
}

int machine_join(struct machine *machine, int *ret_status)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += JOIN_TIMEOUT_S;
    int result = 0;
    for (unsigned i = 0; i < machine->cpus; i++) {
        struct machine_vcpu *mv = &machine->vcpus[i];
        if (!mv->thread_runs) {
            continue;
        }
        int rc = pthread_timedjoin_np(mv->thread, NULL, &until);
        if (rc != 0) {
            result = -rc;
            continue;
        }
        mv->thread_runs = false;
    }
    *ret_status = atomic_load(&machine->stop_status);
    return result;
}

int machine_restart(struct machine *machine, struct err *err)
{
    pc_reset(machine->pc);
    return machine_start(machine, err);
}

void machine_set_boot(struct machine *machine, struct boot *boot)
{
    machine->config.boot = boot;
}

struct pc *machine_pc(struct machine *machine)
{
    return machine->pc;
}

unsigned machine_cpus(const struct machine *machine)
{
    return machine->cpus;
}

const char *machine_error_text(const struct machine *machine)
{
    return machine->error_text;
}

/* --- reports --- */

static void add_counter(struct engine_counter *counters, unsigned *count, unsigned max,
                        const struct engine_counter *one)
{
    for (unsigned i = 0; i < *count; i++) {
        if (strcmp(counters[i].name, one->name) == 0 && strcmp(counters[i].group, one->group) == 0) {
            counters[i].value += one->value;
            return;
        }
    }
    if (*count < max) {
        counters[(*count)++] = *one;
    }
}

unsigned machine_counters(struct machine *machine, struct engine_counter *ret_counters, unsigned max)
{
    unsigned count = 0;
    for (unsigned i = 0; i < machine->cpus; i++) {
        struct engine_counter counters[ENGINE_COUNTERS_MAX];
        unsigned n = machine->config.engine->counters(machine->vcpus[i].vcpu, counters);
        for (unsigned j = 0; j < n; j++) {
            add_counter(ret_counters, &count, max, &counters[j]);
        }
    }
    struct mem_counters mem;
    mem_get_counters(machine->config.mem, &mem);
    const struct engine_counter more[] = {
        {"mmio-reads", "machine", mem.mmio_reads}, {"mmio-writes", "machine", mem.mmio_writes},
        {"port-reads", "machine", mem.pio_reads},  {"port-writes", "machine", mem.pio_writes},
        {"unclaimed", "machine", mem.unclaimed},
    };
    for (size_t i = 0; i < ARRAY_SIZE(more); i++) {
        add_counter(ret_counters, &count, max, &more[i]);
    }
    return count;
}

int machine_get_state(struct machine *machine, unsigned cpu, struct x86_state *ret_state)
{
    return machine->config.engine->get_state(machine->vcpus[cpu].vcpu, ret_state);
}

unsigned machine_last_exits(struct machine *machine, unsigned cpu, char *buf, unsigned size)
{
    return machine->config.engine->last_exits(machine->vcpus[cpu].vcpu, buf, size);
}
