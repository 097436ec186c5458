/*
 * The jail of a machine's process: what its options make it need later on (sandbox/jail.h).
 *
 * Threads: main.
 */
#ifndef FONDA_VM_JAIL_H
#define FONDA_VM_JAIL_H

#include "base/err.h"
#include "vm/config.h"

/* Before anything is opened, but behind terminal_raw. Returns in the process that becomes the machine.
 * Errors: those of jail_split. */
int vm_jail_split(const struct vm_config *config, struct err *err);
/* When everything is open and no other thread runs. Says in one line what this host can't give. Errors: those
 * of jail_enter. */
int vm_jail_enter(const struct vm_config *config, struct err *err);

#endif
