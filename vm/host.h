/*
 * The main loop of fonda-vmm: gives a machine its timers, its serial port's other end, signals and the end of
 * its time.
 *
 * Threads: main.
 */
#ifndef FONDA_VM_HOST_H
#define FONDA_VM_HOST_H

#include "base/err.h"
#include "vm/config.h"

struct boot;
struct engine_ops;
struct mem;
struct saved_reader;

/* Runs a machine from its first instruction to its end. Returns an enum vm_status or an exit-port status; err
 * is set when nothing could be run (VM_STATUS_USAGE, VM_STATUS_ENGINE, VM_STATUS_HOST). boot, mem and saved
 * stay the caller's. saved: the state to go on from, with config->restore; boot may be NULL then. */
int host_run(const struct vm_config *config, const struct engine_ops *engine, struct boot *boot,
             struct mem *mem, struct saved_reader *saved, struct err *err);

#endif
