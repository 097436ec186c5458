/*
 * How a machine ended, as the exit status of fonda-vmm and `fonda run`.
 *
 * All named statuses but 2 are even, so that none can be mistaken for the exit port's value * 2 + 1 (port
 * 0xf4, as QEMU's isa-debug-exit has it).
 */
#ifndef FONDA_VM_STATUS_H
#define FONDA_VM_STATUS_H

#include <stdio.h>

enum vm_status {
    VM_STATUS_OFF = 0,        /* the guest powered off, or rebooted under --no-reboot */
    VM_STATUS_USAGE = 2,      /* bad options or bad files: nothing ran */
    VM_STATUS_PANIC = 110,    /* the guest's kernel reported a panic through the pvpanic port */
    VM_STATUS_SHUTDOWN = 112, /* triple fault */
    VM_STATUS_KILLED = 114,   /* SIGTERM, SIGINT, SIGHUP or Ctrl-A X */
    VM_STATUS_ENGINE = 116,   /* the engine can't run on this host, or could not go on */
    VM_STATUS_HALTED = 118,   /* every vCPU halted with interrupts off: nothing can wake the guest */
    VM_STATUS_HOST = 120,     /* the host refused something: memory, a file, a thread */
    VM_STATUS_JAIL = 108,     /* the machine's process tried what its jail forbids */
    VM_STATUS_WATCHDOG = 122, /* the guest's watchdog ran out under --no-reboot */
    VM_STATUS_TIMEOUT = 124,  /* --timeout passed */
};

/* The table for --help. */
void vm_status_print(FILE *out);
/* One or two words ("power off", "triple fault"); for the exit port's too. */
const char *vm_status_name(int status);

#endif
