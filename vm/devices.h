/*
 * The virtio devices of a machine, as the options ask for them, with their back ends, on the main loop.
 *
 * Threads: main loop. The devices belong to the machine once they are made.
 */
#ifndef FONDA_VM_DEVICES_H
#define FONDA_VM_DEVICES_H

#include <uv.h>

#include "base/err.h"
#include "vm/config.h"

struct devices;
struct mem;
struct pc;

/* Makes the devices of config and puts them on pc's bus. Call before vCPUs run, and pc_reset after it. The
 * loop has to outlive the machine. Errors: -EINVAL and those of the back ends; what was made so far belongs
 * to the machine. */
int devices_new(const struct vm_config *config, uv_loop_t *loop, struct mem *mem, struct pc *pc,
                struct devices **ret_devices, struct err *err);
/* Ends the threads that the back ends have, until they need them again. */
void devices_rest(struct devices *devices);
/* Behind machine_free; NULL is accepted. The loop then has to run until it has no handles. */
void devices_free(struct devices *devices);

#endif
