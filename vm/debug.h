/*
 * A machine under a debugger: vCPUs held one by one, steps and points of the engine, registers and addresses.
 *
 *     running --machine_debug_halt, or a stop (EXIT_DEBUG)--> still --machine_debug_set, _run--> running
 *
 * Threads: main loop. All but halt, hold and stopped need the vCPUs to stand still.
 */
#ifndef FONDA_VM_DEBUG_H
#define FONDA_VM_DEBUG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cpu/engine.h"
#include "cpu/x86/state.h"

struct machine;

/* All vCPUs stand still from the return on. Errors: -ETIMEDOUT. Halting what is halted does nothing. */
int machine_debug_halt(struct machine *machine);
/* The same, without waiting: for a machine that isn't started yet. */
void machine_debug_hold(struct machine *machine);
/* Those that are not held run. */
void machine_debug_run(struct machine *machine);

/* What one vCPU is to stop at, and whether it stays where it is at machine_debug_run. Errors: the engine's.
 */
int machine_debug_set(struct machine *machine, unsigned cpu, const struct engine_debug *debug, bool held);
/* Takes one stop that a vCPU reported (machine_config.debug_stopped). False: there is none. */
bool machine_debug_stopped(struct machine *machine, unsigned *ret_cpu, struct engine_stop *ret_stop);

/* Errors: -EINVAL: a state that can't be. */
int machine_debug_set_state(struct machine *machine, unsigned cpu, const struct x86_state *state);
uint64_t machine_debug_cr8(struct machine *machine, unsigned cpu);
int machine_debug_walk(struct machine *machine, unsigned cpu, uint64_t va, gpa_t *ret_gpa);
const char *machine_debug_describe(struct machine *machine, unsigned cpu);

/* Text on what the engine made of an address. Errors: -ENOTSUP: it does not translate; -ENOENT: nothing. */
int machine_debug_translation(struct machine *machine, unsigned cpu, uint64_t va, char *buf, size_t size);
int machine_debug_count_blocks(struct machine *machine, bool on);

#endif
