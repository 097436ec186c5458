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

/* disk_in_use: the machine has its disks open. Errors: those of boot_open and bootdisk_find_in_image. */
int kernel_open(const struct vm_config *config, bool disk_in_use, struct boot **ret_boot, struct err *err);

#endif
