/*
 * The kernel of a machine, as its options say: --kernel with --initrd, or the one that lies on the first
 * disk.
 *
 * Threads: main loop, while no vCPU runs.
 */
#ifndef FONDA_VM_KERNEL_H
#define FONDA_VM_KERNEL_H

#include "base/err.h"
#include "vm/boot/boot.h"
#include "vm/config.h"

struct blk_node;

/* disk: the first one, when the machine has its disks open; NULL: it is opened. Errors: those of boot_open
 * and of bootdisk.h. */
int kernel_open(const struct vm_config *config, struct blk_node *disk, struct boot **ret_boot,
                struct err *err);

#endif
