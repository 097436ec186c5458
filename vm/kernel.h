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

/* For a machine that needs its kernel only when it starts again (a restored one): --kernel and --initrd stay
 * open, config's texts name the descriptors, and kernel_open reads them then. Files that can't be opened keep
 * their names: kernel_open will say so. */
void kernel_keep(struct vm_config *config);

#endif
