/* See machine.h. */
#include "vm/saved/machine.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <x86intrin.h>

#include "base/clock.h"
#include "base/state.h"
#include "base/util.h"
#include "dev/device.h"
#include "vm/machine_int.h"

#define SECTION_VERSION 1u

/* --- time -------------------------------------------------------------------------------------------------
 */

void machine_freeze(struct machine *machine)
{
    clock_stop(machine->config.clock);
    machine->frozen_tsc = __rdtsc();
}

/* What the guest reads is the host's counter and an offset: both vCPUs' and chips' offsets take the gap back.
 */
int machine_thaw(struct machine *machine, struct err *err)
{
    const struct engine_ops *ops = machine->config.engine;
    uint64_t gap = __rdtsc() - machine->frozen_tsc;
    for (unsigned i = 0; i < machine->cpus; i++) {
        struct x86_state state;
        int rc = ops->get_state(machine->vcpus[i].vcpu, &state);
        state.tsc_offset -= gap;
        if (rc == 0) {
            rc = ops->set_state(machine->vcpus[i].vcpu, &state);
        }
        if (rc < 0) {
            return err_sys(err, rc, "the engine can't set vCPU %u's clock", i);
        }
    }
    machine->reset_state.tsc_offset -= gap;
    clock_go(machine->config.clock);
    return 0;
}

static void time_state(struct machine *machine, struct state *s)
{
    uint64_t ns = clock_now_ns(machine->config.clock), hz = machine->tsc_hz,
             offset = machine->reset_state.tsc_offset;
    state_begin(s, "time", SECTION_VERSION);
    state_field(s, "clock_ns", &ns);
    state_require(s, ns < CLOCK_NEVER / 4, "clock_ns");
    state_field(s, "tsc_hz", &hz);
    state_require(s, hz == machine->tsc_hz, "tsc_hz");
    state_field(s, "host_tsc", &machine->frozen_tsc);
    state_field(s, "tsc_offset", &offset);
    state_end(s);
    if (state_loaded(s)) {
        clock_set_ns(machine->config.clock, ns);
        machine->reset_state.tsc_offset = offset;
    }
}

/* --- vCPUs ------------------------------------------------------------------------------------------------
 */

static void segment_state(struct state *s, const char *name, struct x86_segment *seg)
{
    state_prefix(s, "%s.", name);
    state_field(s, "base", &seg->base);
    state_field(s, "limit", &seg->limit);
    state_field(s, "selector", &seg->selector);
    state_field(s, "attr", &seg->attr);
    state_no_prefix(s);
}

static void table_state(struct state *s, const char *name, struct x86_table *table)
{
    state_prefix(s, "%s.", name);
    state_field(s, "base", &table->base);
    state_field(s, "limit", &table->limit);
    state_no_prefix(s);
}

static void msr_state(struct state *s, struct x86_state *x)
{
    state_field(s, "efer", &x->efer);
    state_field(s, "star", &x->star);
    state_field(s, "lstar", &x->lstar);
    state_field(s, "cstar", &x->cstar);
    state_field(s, "sfmask", &x->sfmask);
    state_field(s, "kernel_gs_base", &x->kernel_gs_base);
    state_field(s, "tsc_aux", &x->tsc_aux);
    state_field(s, "sysenter_cs", &x->sysenter_cs);
    state_field(s, "sysenter_esp", &x->sysenter_esp);
    state_field(s, "sysenter_eip", &x->sysenter_eip);
    state_field(s, "pat", &x->pat);
    state_field(s, "misc_enable", &x->misc_enable);
    state_field(s, "spec_ctrl", &x->spec_ctrl);
    state_field(s, "tsc_offset", &x->tsc_offset);
    state_field(s, "tsc_adjust", &x->tsc_adjust);
    state_field(s, "debugctl", &x->debugctl);
    state_field(s, "mtrr_def_type", &x->mtrr_def_type);
    state_array(s, "mtrr_fixed", x->mtrr_fixed);
    state_array(s, "mtrr_base", x->mtrr_base);
    state_array(s, "mtrr_mask", x->mtrr_mask);
    state_field(s, "mcg_status", &x->mcg_status);
    state_field(s, "mcg_ctl", &x->mcg_ctl);
}

/* The whole of struct x86_state; its values are judged by the engine (x86_cpu_adopt). */
static void x86_fields(struct state *s, struct x86_state *x)
{
    static const char *const names[X86_SREGS] = {"es", "cs", "ss", "ds", "fs", "gs"};
    state_array(s, "gpr", x->gpr);
    state_field(s, "rip", &x->rip);
    state_field(s, "rflags", &x->rflags);
    for (unsigned i = 0; i < X86_SREGS; i++) {
        segment_state(s, names[i], &x->seg[i]);
    }
    segment_state(s, "ldtr", &x->ldtr);
    segment_state(s, "tr", &x->tr);
    table_state(s, "gdtr", &x->gdtr);
    table_state(s, "idtr", &x->idtr);
    state_field(s, "cr0", &x->cr0);
    state_field(s, "cr2", &x->cr2);
    state_field(s, "cr3", &x->cr3);
    state_field(s, "cr4", &x->cr4);
    state_array(s, "dr", x->dr);
    state_field(s, "dr6", &x->dr6);
    state_field(s, "dr7", &x->dr7);
    state_field(s, "xcr0", &x->xcr0);
    msr_state(s, x);
    state_field(s, "sti_shadow", &x->sti_shadow);
    state_field(s, "movss_shadow", &x->movss_shadow);
    state_field(s, "nmi_pending", &x->nmi_pending);
    state_field(s, "nmi_blocked", &x->nmi_blocked);
    state_field(s, "halted", &x->halted);
    state_field(s, "wait_for_sipi", &x->wait_for_sipi);
    state_array(s, "xsave", x->xsave);
}

static void vcpu_state(struct machine_vcpu *mv, struct state *s)
{
    const struct engine_ops *ops = mv->machine->config.engine;
    struct x86_state x = {0};
    char name[16];
    snprintf(name, sizeof(name), "vcpu%u", mv->index);
    state_begin(s, name, SECTION_VERSION);
    int rc = state_loading(s) ? 0 : ops->get_state(mv->vcpu, &x);
    if (rc < 0) {
        state_fail(s, rc, "the engine does not tell its state: %s", strerror(-rc));
    }
    x86_fields(s, &x);
    bool init = atomic_load(&mv->init_wanted), nmi = atomic_load(&mv->nmi_wanted);
    uint32_t sipi = (uint32_t)atomic_load(&mv->sipi_vector);
    state_field(s, "waits_for_sipi", &mv->wait_for_sipi);
    state_field(s, "init_wanted", &init);
    state_field(s, "sipi_vector", &sipi);
    state_require(s, sipi == (uint32_t)SIPI_NONE || sipi <= 255, "sipi_vector");
    state_field(s, "nmi_wanted", &nmi);
    state_field(s, "pvclock_system", &mv->pvclock.system_msr);
    state_field(s, "pvclock_wall", &mv->pvclock.wall_msr);
    if (state_loaded(s)) {
        rc = ops->set_state(mv->vcpu, &x);
        if (rc < 0) {
            state_fail(s, -EBADMSG, "the engine '%s' refuses these registers: %s", ops->name, strerror(-rc));
        }
        atomic_store(&mv->init_wanted, init);
        atomic_store(&mv->nmi_wanted, nmi);
        atomic_store(&mv->sipi_vector, (int)sipi);
        atomic_store(&mv->halted_for_good, false);
    }
    state_end(s);
}

/* --- all of it --------------------------------------------------------------------------------------------
 */

/* Sections are named by device and number among its kind: "lapic.0". */
static void device_state(struct machine *machine, struct state *s, unsigned index)
{
    struct device *device = pc_device(machine->pc, index);
    unsigned number = 0;
    char name[STATE_NAME_MAX + 1];
    if (!device->ops->state) {
        return;
    }
    for (unsigned i = 0; i < index; i++) {
        number += strcmp(pc_device(machine->pc, i)->ops->name, device->ops->name) == 0;
    }
    snprintf(name, sizeof(name), "%s.%u", device->ops->name, number);
    if (device->ops->newer && state_loading(s) && !state_has(s, name)) {
        return;
    }
    state_begin(s, name, SECTION_VERSION);
    device->ops->state(device, s);
    state_end(s);
}

void machine_state(struct machine *machine, struct state *s)
{
    time_state(machine, s);
    mem_lock(machine->config.mem);
    for (unsigned i = 0; i < pc_devices(machine->pc); i++) {
        device_state(machine, s, i);
    }
    mem_unlock(machine->config.mem);
    for (unsigned i = 0; i < machine->cpus; i++) {
        vcpu_state(&machine->vcpus[i], s);
    }
}
