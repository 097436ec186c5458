/*
 * A running machine: guest memory, the chips of pc.c, an engine, and one thread per vCPU.
 *
 *                 machine_start             machine_request_stop (any thread)
 *     new, paused --------------> running ----------------------------------+
 *          ^                                                                |
 *          |  machine_restart (a reboot)          machine_join (main loop)  v
 *          +------------------------------- stopped <---------------- stopping
 *
 * Threads: machine_request_stop from any; everything else on the main loop.
 */
#ifndef FONDA_VM_MACHINE_H
#define FONDA_VM_MACHINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "cpu/engine.h"
#include "vm/boot/boot.h"

/* A stop that is none: the guest asked for a reset. Beyond every enum vm_status and exit-port status. */
#define MACHINE_RESET    0x10000
#define MACHINE_WATCHDOG 0x10001 /* a reset by the watchdog */

struct machine;
struct clock;
struct pc;

struct machine_config {
    const struct engine_ops *engine;
    struct mem *mem;
    struct clock *clock;
    struct boot *boot;
    unsigned cpus;
    const char *cpu_model;
    uint64_t code_cache_bytes; /* for each vCPU; 0: a default by their number */
    bool eager;                /* cpu/engine.h */
    uint64_t tsc_hz;           /* of the guest's TSC; 0: as the host's */
    /* A stop was requested: machine_join is due. Any thread; must not block. */
    void (*stopping)(void *opaque);
    /* The serial port's other end: dev/legacy/ns16550.h. Under mem_lock(). */
    size_t (*serial_sink)(void *opaque, const uint8_t *bytes, size_t len);
    void (*serial_room)(void *opaque);
    /* A vCPU stopped for a debugger (debug.h). A vCPU's thread; must not block. NULL: nobody wants to know.
     */
    void (*debug_stopped)(void *opaque);
    void *opaque;
};

/* config is copied; what it points to stays the caller's and must outlive the machine. Errors: the engine's
 * (-EINVAL: a CPU model that does not exist), those of the chips. */
int machine_new(const struct machine_config *config, struct machine **ret_machine, struct err *err);
void machine_free(struct machine *machine);

/* Loads the kernel and starts the vCPU threads. Errors: those of boot_start, of the engine and of threads; no
 * vCPU runs then. */
int machine_start(struct machine *machine, struct err *err);

/* The same for a machine whose state was loaded: starts the vCPU threads where they were. */
int machine_resume_start(struct machine *machine, struct err *err);

/* Asks for the end, with an enum vm_status, an exit-port status or MACHINE_RESET. The first request counts.
 */
void machine_request_stop(struct machine *machine, int status);

/* Ends the vCPU threads; returns the status of the request. Errors: -ETIMEDOUT when a vCPU does not come back
 * (then its thread still runs, and only ending the process helps). */
int machine_join(struct machine *machine, int *ret_status);

/* Behind machine_join: every chip to power-on, the kernel loaded anew, vCPUs started. */
int machine_restart(struct machine *machine, struct err *err);

/* Between machine_join and machine_restart: another kernel. The caller keeps it, as in struct machine_config.
 */
void machine_set_boot(struct machine *machine, struct boot *boot);

struct pc *machine_pc(struct machine *machine);
/* Why the engine could not go on, or "". Behind machine_join. */
const char *machine_error_text(const struct machine *machine);

/* For reports. The counters are summed over vCPUs and machine-wide ones follow; any time. */
unsigned machine_counters(struct machine *machine, struct engine_counter *ret_counters, unsigned max);
/* Behind machine_join, or while the machine stands still (pause.h). */
int machine_get_state(struct machine *machine, unsigned cpu, struct x86_state *ret_state);
unsigned machine_last_exits(struct machine *machine, unsigned cpu, char *buf, unsigned size);
unsigned machine_cpus(const struct machine *machine);

#endif
