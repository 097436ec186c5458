/* See debug.h. PAUSE_DEBUG is taken at most once, however many vCPUs stop at the same time: debug_paused. */
#include "vm/debug.h"

#include <errno.h>

#include "vm/machine_int.h"

#define HALT_TIMEOUT_MS 10000u

void machine_debug_hold(struct machine *machine)
{
    if (!atomic_exchange(&machine->debug_paused, true)) {
        machine_pause(machine, PAUSE_DEBUG);
    }
}

int machine_debug_halt(struct machine *machine)
{
    machine_debug_hold(machine);
    return machine_pause_wait(machine, HALT_TIMEOUT_MS);
}

void machine_debug_run(struct machine *machine)
{
    if (atomic_exchange(&machine->debug_paused, false)) {
        machine_unpause(machine, PAUSE_DEBUG);
    }
}

void machine_vcpu_debug_stop(struct machine_vcpu *mv, const struct engine_stop *stop)
{
    mv->debug_stop = *stop;
    atomic_store(&mv->debug_stopped, true);
    machine_debug_hold(mv->machine);
    if (mv->machine->config.debug_stopped) {
        mv->machine->config.debug_stopped(mv->machine->config.opaque);
    }
}

int machine_debug_set(struct machine *machine, unsigned cpu, const struct engine_debug *debug, bool held)
{
    struct machine_vcpu *mv = &machine->vcpus[cpu];
    const struct engine_ops *ops = machine->config.engine;
    if (!ops->set_debug) {
        return debug->step || debug->count ? -ENOTSUP : 0;
    }
    int rc = ops->set_debug(mv->vcpu, debug);
    if (rc == 0) {
        atomic_store(&mv->debug_held, held);
        /* Another's stop that was not told yet: a breakpoint is met again, a step is not wanted any more. */
        atomic_store(&mv->debug_stopped, false);
    }
    return rc;
}

bool machine_debug_stopped(struct machine *machine, unsigned *ret_cpu, struct engine_stop *ret_stop)
{
    for (unsigned i = 0; i < machine->cpus; i++) {
        struct machine_vcpu *mv = &machine->vcpus[i];
        if (atomic_exchange(&mv->debug_stopped, false)) {
            *ret_cpu = i;
            *ret_stop = mv->debug_stop;
            return true;
        }
    }
    return false;
}

int machine_debug_set_state(struct machine *machine, unsigned cpu, const struct x86_state *state)
{
    struct machine_vcpu *mv = &machine->vcpus[cpu];
    struct x86_state old;
    const struct engine_ops *ops = machine->config.engine;
    int rc = ops->get_state(mv->vcpu, &old);
    if (rc == 0) {
        rc = ops->set_state(mv->vcpu, state);
    }
    if (rc == 0 && old.halted && !state->halted) {
        atomic_store(&mv->nmi_wanted, true); /* ends the thread's sleep; no NMI comes of it */
    }
    return rc;
}

uint64_t machine_debug_cr8(struct machine *machine, unsigned cpu)
{
    mem_lock(machine->config.mem);
    uint64_t value = lapic_cr8_read(machine->vcpus[cpu].lapic);
    mem_unlock(machine->config.mem);
    return value;
}

int machine_debug_walk(struct machine *machine, unsigned cpu, uint64_t va, gpa_t *ret_gpa)
{
    const struct engine_ops *ops = machine->config.engine;
    return ops->walk ? ops->walk(machine->vcpus[cpu].vcpu, va, ret_gpa) : -ENOTSUP;
}

const char *machine_debug_describe(struct machine *machine, unsigned cpu)
{
    struct x86_state state;
    if (machine->vcpus[cpu].wait_for_sipi) {
        return "not started";
    }
    int rc = machine->config.engine->get_state(machine->vcpus[cpu].vcpu, &state);
    return rc == 0 && state.halted ? "halted" : "running";
}

int machine_debug_translation(struct machine *machine, unsigned cpu, uint64_t va, char *buf, size_t size)
{
    const struct engine_ops *ops = machine->config.engine;
    return ops->translation ? ops->translation(machine->vcpus[cpu].vcpu, va, buf, size) : -ENOTSUP;
}

int machine_debug_count_blocks(struct machine *machine, bool on)
{
    const struct engine_ops *ops = machine->config.engine;
    for (unsigned i = 0; i < machine->cpus && ops->count_blocks; i++) {
        ops->count_blocks(machine->vcpus[i].vcpu, on);
    }
    return ops->count_blocks ? 0 : -ENOTSUP;
}
