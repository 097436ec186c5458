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

/* For a machine that needs its kernel only when it starts again (a restored one): --kernel and --initrd stay
 * open, config's texts name the descriptors, and kernel_open reads them then. Files that can't be opened keep
 * their names: kernel_open will say so. */
void kernel_keep(struct vm_config *config);

#endif
