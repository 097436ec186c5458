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
struct machine;
struct mem;

/* Makes the devices of config and puts them on the machine's bus. Call before vCPUs run, and pc_reset after
 * it. The loop has to outlive the machine. Errors: -EINVAL and those of the back ends; what was made so far
 * belongs to the machine. */
int devices_new(const struct vm_config *config, uv_loop_t *loop, struct mem *mem, struct machine *machine,
                struct devices **ret_devices, struct err *err);
/* Disks try again what the host refused, such as when it has room again. */
void devices_retry(struct devices *devices);
/* Behind machine_free; NULL is accepted. The loop then has to run until it has no handles. */
void devices_free(struct devices *devices);

#endif
